/** Sites from which one TCP port of the control plane is reachable and nothing else. With the programs as they ship. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = {
  kind: "pipeline",
  name: "hello",
  steps: [{ id: "say", environment: "site", run: ["sh", "-c", "echo hello"] }],
};
const LIMIT_MS = 60_000;

test("an agent enrols, connects and runs a step through the one port alone", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({
    dist: DIST,
    serverFlags: ["--one-port", "127.0.0.1:0"],
    env: { INSITU_LOG_LEVEL: "info" },
  });
  await plant.startServer();
  await plant.apply(SITE, PIPELINE);
  await plant.startAgent("site", "a");
  const events = (await plant.follow("hello")).events;
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  const state = join(plant.directory, "sites/site/a");
  const identity = JSON.parse(readFileSync(join(state, "identity/identity.json"), "utf8"));
  expect(identity.gateway).toBe(`127.0.0.1:${plant.onePort}`);
  expect(JSON.parse(readFileSync(join(state, "nats.json"), "utf8"))).toMatchObject({ throughGateway: true });
});
