/** Boxes and their limits in the programs as they ship: what agents say of them, and what placement makes of it. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { AgentView } from "../../control-plane/api/schemas.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 60_000;

test("a step that requires a box waits, with the reason, until an agent comes that boxes", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "error" } });
  await plant.startServer();
  const step = { id: "fit", environment: "site", run: ["sh", "-c", "echo in a box"], sandbox: "required" };
  const bomb = {
    ...{ id: "eat", environment: "site", resources: { memory: "64MiB" } },
    run: ["node", "-e", "const kept = []; for (;;) kept.push(Buffer.alloc(4 << 20, 1));"],
  };
  await plant.apply(
    { kind: "environment", name: "site", jurisdiction: "DE" },
    { kind: "pipeline", name: "boxed", steps: [step] },
    { kind: "pipeline", name: "bomb", steps: [bomb] },
  );
  const agent = await plant.startAgent("site", "plain", ["--sandbox", "off"]);
  const plain = (await plant.call("GET", "/v1/agents/site/plain")) as AgentView;
  expect(plain.sandbox).toMatchObject({ boxes: false, summary: expect.stringMatching(/^off/) });

  const { id } = await plant.start("boxed");
  const held = await plant.events(id, (events) => events.some(({ kind }) => kind === "step.held"));
  expect(JSON.stringify(held)).toMatch(/no agent in site boxes steps, and the step requires a sandbox/);
  expect(held.map(({ kind }) => kind)).not.toContain("attempt.offered");

  agent.kill("SIGTERM");
  await once(agent, "exit");
  await plant.startAgent("site", "boxing", ["--sandbox", "required"]);
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });

  const { stdout } = await promisify(execFile)(
    process.execPath,
    [join(DIST, "insitu.js"), "agents", "show", "site/boxing"],
    { env: { ...process.env, INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token } },
  );
  expect(stdout).toMatch(/sandbox +bubblewrap \d/);
  expect(stdout).toMatch(/openFiles: rlimit/);

  const boxing = (await plant.call("GET", "/v1/agents/site/boxing")) as AgentView;
  // A host that lets the agent make no control groups says so, and a bomb would take it down.
  if (!boxing.sandbox?.held.memory?.startsWith("cgroup")) {
    expect(boxing.sandbox?.notHeld.memory).toBeTruthy();
    return;
  }
  const { events: ended } = await plant.follow("bomb");
  expect(JSON.stringify(ended)).toMatch(/out of memory: it needed more than its limit of 64 MiB/);
});
