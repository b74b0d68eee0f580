import { expect, test } from "vitest";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import { parseAgentUri } from "./spiffe.ts";

test("an agent's URI reads back as its name", () => {
  const agent = { environment: "dream", name: "a-1" };
  expect(parseAgentUri("insitu.test", agentUri("insitu.test", agent))).toEqual(agent);
});

test.each([
  "spiffe://other.test/env/dream/agent/a1",
  "spiffe://insitu.test.evil/env/dream/agent/a1",
  "SPIFFE://insitu.test/env/dream/agent/a1",
  "spiffe://insitu.test/env/dream/agent/a1/",
  "spiffe://insitu.test/env/dream/agent/",
  "spiffe://insitu.test/env/dream/server/a1",
  "spiffe://insitu.test/env/dream/agent/a1?x",
  "spiffe://insitu.test/env/%64ream/agent/a1",
  "spiffe://insitu.test/env//agent/a1",
  "spiffe://insitu.test/env/Dream/agent/a1",
  "",
])("%j names no agent", (uri) => {
  expect(parseAgentUri("insitu.test", uri)).toBeUndefined();
});
