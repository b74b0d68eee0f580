import { expect, test } from "vitest";
import { runDetail, stepView } from "../cli/run-view.fixture.ts";
import { type AgentAtWork, explainWaiting } from "./waiting.ts";

const agent = (id: string, by?: string, reason = "disk change"): AgentAtWork => ({
  id,
  cordon: by === undefined ? null : { by, reason },
});

function waitingFor(agents: AgentAtWork[], change: Parameters<typeof stepView>[2] = {}) {
  const run = runDetail([stepView("fit", [], { status: "offered", environment: "site", ...change })]);
  return explainWaiting(run, (environment) => (environment === "site" ? agents : [])).steps[0]!.waiting;
}

test.each<[string, AgentAtWork[], string]>([
  ["one", [agent("site/a", "ana")], "by ana: disk change"],
  ["several alike", [agent("site/a", "ana"), agent("site/b", "ana")], "by ana: disk change"],
  ["without a reason", [agent("site/a", "ana", "")], "by ana"],
  [
    "several of several",
    [agent("site/a", "ana"), agent("site/b", "bo", ""), agent("site/c", "ana"), agent("site/d", "ana")],
    "(site/a by ana: disk change; site/b by bo; site/c by ana: disk change; and 1 more)",
  ],
])("a step that waits for cordoned agents says who cordoned them: %s", (_, agents, said) => {
  const message = `all connected agents of site are cordoned ${said}`;
  expect(waitingFor(agents)).toEqual({ reason: "cordoned", message });
});

test("nothing is said while an agent may take it, or when the step waits for something else or runs", () => {
  expect(waitingFor([agent("site/a", "ana"), agent("site/b")])).toBeNull();
  expect(waitingFor([agent("site/a", "ana")], { status: "running" })).toBeNull();
  const waiting = { reason: "pool", message: "no place in gpu" };
  expect(waitingFor([agent("site/a", "ana")], { waiting })).toEqual(waiting);
});

test("a site without a connected agent says so", () => {
  expect(waitingFor([])).toEqual({ reason: "no-agent", message: "no agent of site is connected" });
});
