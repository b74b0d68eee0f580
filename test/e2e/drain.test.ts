/** Agents that are to take no new work, with the programs as they are shipped. */
import { type ChildProcess, execFile } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { AgentView } from "../../control-plane/api/schemas.ts";
import type { RunEventBatch } from "../../shared/engine/events.ts";
import { startTestNats } from "../support/nats.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const NOOP = { kind: "pipeline", name: "p", steps: [{ id: "s", environment: "site", uses: "noop" }] };
const LIMIT_MS = 90_000;
const FLAGS = ["--heartbeat", "300", "--lease-ttl", "20000"];

type Events = RunEventBatch["events"];

const agentOf = async (plant: Plant, name: string): Promise<AgentView> =>
  (await plant.call("GET", `/v1/agents/site/${name}`)) as AgentView;
const startersIn = (events: Events): string[] =>
  events.flatMap((event) => (event.kind === "attempt.started" ? [event.agent] : []));
const hasStarted = (events: Events): boolean => events.some(({ kind }) => kind === "attempt.started");

/** The command line, as an operator uses it. */
async function insitu(plant: Plant, ...args: string[]): Promise<{ stdout: string; stderr: string }> {
  const env = { ...process.env, INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token, NO_COLOR: "1" };
  return await promisify(execFile)(process.execPath, [join(DIST, "insitu.js"), ...args], { env });
}

async function kill(child: ChildProcess): Promise<void> {
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

/** Steps that wait until their gate is opened. */
function gated(plant: Plant, name: string, more: object = {}) {
  const gates = join(plant.directory, "gates");
  mkdirSync(gates, { recursive: true });
  const run = ["sh", "-c", `while [ ! -e ${gates}/$INSITU_RUN_ID ]; do sleep 0.05; done; echo done`];
  const document = { kind: "pipeline", name, steps: [{ id: "s", environment: "site", run, ...more }] };
  return { document, open: (runId: string): void => writeFileSync(join(gates, runId), "") };
}

test("a cordoned agent ends what it runs and takes nothing new, whatever is restarted or cut off, until it is uncordoned", {
  timeout: LIMIT_MS,
}, async () => {
  const nats = await startTestNats();
  await using plant = new Plant({
    dist: DIST,
    serverFlags: FLAGS,
    env: { INSITU_AGENT_NATS_USER: nats.user, INSITU_AGENT_NATS_PASSWORD: nats.password },
  });
  const natsUrl = nats.url.replace("//", `//${nats.user}:${nats.password}@`);
  const flags = ["--nats-url", natsUrl, "--secrets", join(plant.directory, "secrets")];
  const use = ({ url, token }: { url: string; token: string }): void =>
    void Object.assign(plant, { url, token });
  const first = await plant.startReplica("first", {}, flags);
  const second = await plant.startReplica("second", {}, flags);
  use(first);
  const { document, open } = gated(plant, "gated");
  await plant.apply(SITE, NOOP, document);
  const agent = await plant.startAgent("site", "a1");
  const running = await plant.start("gated");
  await plant.events(running.id, hasStarted);

  // At the replica that the agent is not connected to.
  use(second);
  await insitu(plant, "agents", "cordon", "site/a1", "--reason", "disk change");
  await plant.until(async () => (await agentOf(plant, "a1")).cordon?.state === "cordoned");
  expect((await agentOf(plant, "a1")).cordon).toMatchObject({
    by: "operator",
    reason: "disk change",
    left: 1,
  });
  open(running.id);
  expect((await plant.events(running.id, () => false)).at(-1)).toMatchObject({ status: "succeeded" });

  const waiting = await plant.start("p");
  const why = "all connected agents of site are cordoned by operator: disk change";
  await plant.until(async () => (await plant.run(waiting.id)).steps[0]?.waiting?.message === why);
  expect((await insitu(plant, "runs", "show", waiting.id)).stdout).toContain(why);
  expect((await insitu(plant, "agents", "list")).stdout).toContain("cordoned by operator: disk change");

  // No replica is there when the agent starts again: it reaches the work queue, which holds an offer, and nobody else.
  await Promise.all([agent, first.child, second.child].map(kill));
  const log = (): string => readFileSync(join(plant.directory, "site-a1.log"), "utf8");
  const connects = (): number => log().split('"work queue connected"').length - 1;
  const before = connects();
  plant.spawnAgent("site", "a1");
  await plant.until(async () => connects() > before);
  const { gatewayPort } = first;
  use(await plant.startReplica("first", { gatewayPort }, flags));
  await plant.until(async () => (await agentOf(plant, "a1")).connected);
  expect((await agentOf(plant, "a1")).cordon).toMatchObject({ state: "cordoned", left: 0 });
  expect(hasStarted(await plant.events(waiting.id, (events) => events.length >= 3))).toBe(false);

  await insitu(plant, "agents", "uncordon", "site/a1");
  const events = await plant.events(waiting.id, () => false);
  expect(startersIn(events)).toEqual(["site/a1"]);
  expect(events.at(-1)).toMatchObject({ status: "succeeded" });
  await nats.stop();
});

test("an agent that is cut off when it is drained and its run is cancelled hears of both when it is back", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: FLAGS });
  await plant.startServer();
  const { document } = gated(plant, "gated");
  await plant.apply(SITE, NOOP, document);
  const agent = await plant.startAgent("site", "a1");
  const { id } = await plant.start("gated");
  await plant.events(id, hasStarted);
  agent.kill("SIGSTOP");
  await insitu(plant, "agents", "drain", "site/a1");
  await plant.call("POST", `/v1/runs/${id}/cancel`, { reason: "enough" });
  expect((await agentOf(plant, "a1")).cordon?.state).toBe("not-heard");
  // An operator waits for it meanwhile.
  const drained = insitu(plant, "agents", "drain", "site/a1", "--wait");
  agent.kill("SIGCONT");
  expect((await plant.events(id, () => false)).at(-1)).toMatchObject({ status: "cancelled" });
  expect((await drained).stdout).toBe("agent site/a1 is drained\n");
  const next = await plant.start("p");
  await plant.until(async () => (await plant.run(next.id)).steps[0]?.waiting?.reason === "cordoned");
  // What is drained stays so, also in the eyes of those who look at it while it is away.
  await kill(agent);
  await plant.until(async () => !(await agentOf(plant, "a1")).connected);
  expect((await agentOf(plant, "a1")).cordon).toMatchObject({ state: "drained", left: 0 });
});

test("at the deadline of a drain what still runs goes to another agent; what is started once goes on, unless it is forced", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: FLAGS });
  await plant.startServer();
  const { document, open } = gated(plant, "gated");
  const single = gated(plant, "single", { once: true });
  await plant.apply(SITE, document, single.document);
  await plant.startAgent("site", "a1", ["--slots", "4"]);
  const moved = await plant.start("gated");
  const stays = await plant.start("single");
  const failing = await plant.start("single");
  for (const { id } of [moved, stays, failing]) await plant.events(id, hasStarted);
  await plant.startAgent("site", "a2", ["--slots", "4"]);

  const waits = insitu(plant, "agents", "drain", "site/a1", "--deadline", "1s", "--wait");
  await plant.events(moved.id, (events) => startersIn(events).length === 2);
  open(moved.id);
  const events = await plant.events(moved.id, () => false);
  expect(startersIn(events)).toEqual(["site/a1", "site/a2"]);
  expect(events.find(({ kind }) => kind === "attempt.lost")).toMatchObject({
    reason: "interrupted",
    outcome: { error: { message: expect.stringMatching(/drained by operator; the deadline/) } },
  });
  // A try that was interrupted counts as none.
  expect(events.at(-1)).toMatchObject({ status: "succeeded" });
  expect((await agentOf(plant, "a1")).cordon?.state).toBe("draining");
  single.open(stays.id);
  const whole = await plant.events(stays.id, () => false);
  expect([startersIn(whole), whole.at(-1)]).toMatchObject([["site/a1"], { status: "succeeded" }]);
  await plant.call("POST", "/v1/agents/site/a1/drain", { withinMs: 0, once: true });
  expect((await plant.events(failing.id, () => false)).at(-1)).toMatchObject({ status: "failed" });
  const { stdout, stderr } = await waits;
  expect(stdout).toBe("agent site/a1 is drained\n");
  expect(stderr).toMatch(/3 steps left \(s of run .*what runs at .* is ended/);
});
