/** What the product promises when its parts die, with the programs as they ship. */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import type { LogLine } from "../../control-plane/api/schemas.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const QUICK = ["--heartbeat", "200", "--lease-ttl", "1000"];
/** Leases that outlast a restart of the control plane, as the default ones do. */
const PATIENT = ["--heartbeat", "200", "--lease-ttl", "20000"];
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const LIMIT_MS = 60_000;

async function newPlant(serverFlags = QUICK): Promise<Plant> {
  const plant = new Plant({ dist: DIST, serverFlags, env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  return plant;
}

/** A step that goes on until the test makes the file. */
function gated(plant: Plant, before = "") {
  const gate = join(plant.directory, "gate");
  const run = ["sh", "-ec", `${before}\nwhile [ ! -e "$GATE" ]; do sleep 0.02; done; echo done`];
  const document = {
    kind: "pipeline",
    name: "gated",
    steps: [{ id: "wait", environment: "site", run, env: { GATE: gate } }],
  };
  return { document, open: () => writeFileSync(gate, "") };
}

async function kill(child: ChildProcess): Promise<void> {
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

/** A zombie has ended; only nobody has asked for its exit code. */
function isRunning(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) Z/s.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

const started = (events: RunEvent[]) => events.filter((event) => event.kind === "attempt.started");

async function logs(plant: Plant, runId: string): Promise<Buffer> {
  const response = await fetch(`${plant.url}/v1/runs/${runId}/logs?follow=true`, {
    headers: { authorization: `Bearer ${plant.token}`, "accept-encoding": "gzip" },
  });
  const lines = (await response.text()).split("\n").filter((line) => line !== "");
  return Buffer.concat(lines.map((line) => Buffer.from((JSON.parse(line) as LogLine).data, "base64")));
}

test("an agent that is killed in the middle of a step: another one of its site runs it", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const { document, open } = gated(plant);
  await plant.apply(SITE, document);
  const agents = new Map<string, ChildProcess>();
  for (const name of ["a", "b"])
    agents.set(`site/${name}`, await plant.startAgent("site", name, ["--slots", "1"]));
  const { id } = await plant.start("gated");
  const [first] = started(await plant.events(id, (events) => started(events).length === 1));
  const holder = first!.kind === "attempt.started" ? first!.agent : "";
  await kill(agents.get(holder)!);
  const second = started(await plant.events(id, (events) => started(events).length === 2))[1];
  open();
  const events = await plant.events(id, () => false);
  expect(events.find((event) => event.kind === "attempt.lost")).toMatchObject({
    epoch: 1,
    reason: "lease-expired",
    agent: holder,
  });
  expect(second).toMatchObject({ attempt: 1, epoch: 2 });
  expect(second).not.toMatchObject({ agent: holder });
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
});

test("with no other agent the step waits and says so, and goes on when the agent is back", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const { document, open } = gated(plant);
  await plant.apply(SITE, document);
  const agent = await plant.startAgent("site", "only");
  const { id } = await plant.start("gated");
  await plant.events(id, (events) => started(events).length === 1);
  await kill(agent);
  await plant.until(async () => (await plant.run(id)).steps[0]?.waiting?.reason === "no-agent");
  expect((await plant.run(id)).steps[0]).toMatchObject({
    status: "offered",
    waiting: { message: "no agent of site is connected" },
  });
  plant.spawnAgent("site", "only");
  open();
  expect((await plant.events(id, () => false)).at(-1)).toMatchObject({
    kind: "run.finished",
    status: "succeeded",
  });
});

test("nats-server and control plane killed during a run: it goes on, and its logs are complete", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant(PATIENT);
  const lines = 400;
  const { document, open } = gated(
    plant,
    `i=0; while [ $i -lt ${lines} ]; do echo "line $i"; i=$((i+1)); sleep 0.005; done`,
  );
  const next = { id: "after", environment: "site", needs: ["wait"], run: ["true"] };
  await plant.apply(SITE, { ...document, steps: [...document.steps, next] });
  await plant.startAgent("site", "a");
  const { id } = await plant.start("gated");
  await plant.events(id, (events) => started(events).length === 1);

  const natsPid = Number(readFileSync(join(plant.directory, "server/nats/nats.pid"), "utf8"));
  process.kill(natsPid, "SIGKILL");
  await plant.until(
    async () => Number(readFileSync(join(plant.directory, "server/nats/nats.pid"), "utf8")) !== natsPid,
  );
  const { gatewayPort } = plant;
  await kill(plant.server!);
  await plant.startServer({ gatewayPort });

  open();
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(events.filter((event) => event.kind === "attempt.finished")).toHaveLength(2);
  const text = (await logs(plant, id)).toString("utf8");
  expect(text).toBe(`${Array.from({ length: lines }, (_, i) => `line ${i}`).join("\n")}\ndone\n`);
});

test("a cancel ends the whole tree of processes within two heartbeats, sessions of their own too", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const pidFile = join(plant.directory, "pid");
  const run = [
    "sh",
    "-c",
    `setsid sh -c 'echo $$ > ${pidFile}.tmp; mv ${pidFile}.tmp ${pidFile}; trap "" TERM; while :; do sleep 1; done' & wait`,
  ];
  await plant.apply(SITE, {
    kind: "pipeline",
    name: "stubborn",
    steps: [{ id: "s", environment: "site", run }],
  });
  const config = join(plant.directory, "agent.json");
  writeFileSync(
    config,
    JSON.stringify({
      stateDir: join(plant.directory, "sites/site/a"),
      name: "a",
      killGraceMs: 200,
      sandbox: { mode: "off" },
    }),
  );
  await plant.startAgent("site", "a", ["--config", config]);
  const { id } = await plant.start("stubborn");
  await plant.until(async () => existsSync(pidFile));
  const pid = Number(readFileSync(pidFile, "utf8"));
  await plant.call("POST", `/v1/runs/${id}/cancel`, { reason: "enough" });
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({
    kind: "run.finished",
    status: "cancelled",
    reason: expect.stringContaining("enough"),
  });
  expect(isRunning(pid)).toBe(false);
});

test("bytes that are no text arrive as they were written, also in lines of a megabyte", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const copy = join(plant.directory, "copy");
  const run = ["sh", "-ec", `head -c 3000000 /dev/urandom | tr -d '\\n' | tee ${copy}`];
  await plant.apply(SITE, {
    kind: "pipeline",
    name: "bytes",
    steps: [{ id: "s", environment: "site", run }],
  });
  await plant.startAgent("site", "a");
  const { id } = await plant.start("bytes");
  const printed = await logs(plant, id);
  const written = readFileSync(copy);
  expect(printed.length).toBe(written.length);
  expect(printed.equals(written)).toBe(true);
});

test("a pipeline that would move rows is refused with the step, the dataset, the rule and where it could run", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const hq = { kind: "environment", name: "hq", jurisdiction: "US" };
  const dataset = {
    kind: "dataset",
    name: "rows",
    owner: "team",
    classification: "internal",
    residency: ["DE"],
    environments: ["site"],
  };
  await plant.apply(SITE, hq, dataset);
  const wrong = {
    kind: "pipeline",
    name: "wrong",
    steps: [{ id: "merge", environment: "hq", reads: ["rows"], run: ["true"] }],
  };
  const refusal = await plant.apply(wrong).then(
    () => "accepted",
    (err: unknown) => String(err),
  );
  for (const part of ["422", "placement.denied", "merge", "rows", "residency", "hq", "site"])
    expect(refusal).toContain(part);
  const { items } = (await plant.call("GET", "/v1/pipelines")) as { items: unknown[] };
  expect(items).toEqual([]);
});

test("the read model is built again when its folder is deleted", { timeout: LIMIT_MS }, async () => {
  await using plant = await newPlant();
  await plant.apply(SITE, {
    kind: "pipeline",
    name: "p",
    steps: [{ id: "s", environment: "site", uses: "noop" }],
  });
  await plant.startAgent("site", "a");
  const { id } = await plant.start("p");
  await plant.events(id, () => false);
  const before = await plant.run(id);
  await kill(plant.server!);
  rmSync(join(plant.directory, "server/read-model"), { recursive: true });
  await plant.startServer({ gatewayPort: plant.gatewayPort });
  expect(await plant.run(id)).toEqual(before);
});

test("a step that may be kept goes on over a pause of its agent, and ends once, under its first epoch", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const { document, open } = gated(plant);
  const [wait] = document.steps;
  const kept = { ...wait, disconnect: { keep: "10m", then: "reassign" } };
  await plant.apply(SITE, { ...document, steps: [kept] });
  const agent = await plant.startAgent("site", "only");
  const { id } = await plant.start("gated");
  await plant.events(id, (events) => started(events).length === 1);
  agent.kill("SIGSTOP");
  const kinds = (events: RunEvent[]) => events.map(({ kind }) => kind);
  await plant.events(id, (events) => kinds(events).includes("attempt.disconnected"));
  expect((await plant.run(id)).steps[0]).toMatchObject({ status: "disconnected" });
  agent.kill("SIGCONT");
  await plant.events(id, (events) => kinds(events).includes("attempt.reconnected"));
  open();
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(events.filter(({ kind }) => kind === "attempt.finished")).toMatchObject([{ attempt: 1, epoch: 1 }]);
});

test("a once step whose agent is gone is offered to nobody, and an operator decides", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const { document } = gated(plant);
  const [wait] = document.steps;
  await plant.apply(SITE, { ...document, steps: [{ ...wait, once: true }] });
  const agent = await plant.startAgent("site", "a");
  const { id } = await plant.start("gated");
  await plant.events(id, (events) => started(events).length === 1);
  await plant.startAgent("site", "b");
  await kill(agent);
  await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.disconnected"));
  const decide = (as: string) =>
    plant.call("POST", `/v1/runs/${id}/steps/wait/resolve`, { as, reason: "the host burnt down" });
  await expect(decide("reassign")).rejects.toThrow(/409.*even-if-it-ran/);
  await decide("failed");
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "failed" });
  expect(started(events)).toHaveLength(1);
  expect(events.find(({ kind }) => kind === "attempt.resolved")).toMatchObject({
    decision: "failed",
    reason: "the host burnt down",
  });
});
