/** A NATS cluster of three servers under load: each is killed in turn, then two at once. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { connect } from "nats";
import { expect, test } from "vitest";
import type { RunSummary, ServerView } from "../../control-plane/api/schemas.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { systemClock } from "../../shared/system.ts";
import { STREAMS } from "../../shared/wire/subjects.ts";
import { startTestNatsCluster, type TestNatsCluster } from "../support/nats-cluster.ts";
import { Plant, type Replica } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 120_000;
const STALL_MAX_MS = 30_000;
/** Between two runs of one submitter. */
const PACE_MS = 100;
/** Runs that must have ended after each kill before the next one. */
const RUNS_PER_KILL = 10;

const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const SMALL = {
  kind: "pipeline",
  name: "small",
  steps: [
    { id: "first", environment: "site", uses: "noop" },
    { id: "second", environment: "site", needs: ["first"], uses: "noop" },
  ],
};

/** Fails in time for the test to stop what it has started. */
async function within<T>(ms: number, what: string, work: Promise<T>): Promise<T> {
  const done = new AbortController();
  const late = systemClock.sleep(ms, done.signal).then(() => {
    throw new Error(`${what} took more than ${ms / 1_000} s`);
  });
  late.catch(() => undefined);
  try {
    return await Promise.race([work, late]);
  } finally {
    done.abort();
  }
}

/** Two replicas and two agents over a cluster of three servers. */
async function open() {
  const nats = await startTestNatsCluster();
  const plant = new Plant({
    dist: DIST,
    serverFlags: ["--heartbeat", "500", "--lease-ttl", "20000", "--stream-replicas", "3"],
    env: { INSITU_AGENT_NATS_USER: nats.user, INSITU_AGENT_NATS_PASSWORD: nats.password },
  });
  const flags = ["--nats-url", nats.natsUrl, "--secrets", join(plant.directory, "secrets")];
  const replicas: Replica[] = [];
  for (const name of ["replica-1", "replica-2"]) replicas.push(await plant.startReplica(name, {}, flags));
  plant.url = replicas[0]!.url;
  plant.token = replicas[0]!.token;
  const gates = join(plant.directory, "gates");
  mkdirSync(gates);
  const wait = `while [ ! -e ${gates}/$INSITU_RUN_ID ]; do sleep 0.1; done`;
  await plant.apply(SITE, SMALL, {
    kind: "pipeline",
    name: "gated",
    steps: [{ id: "wait", environment: "site", run: ["sh", "-c", wait] }],
  });
  for (const name of ["a", "b"]) await plant.startAgent("site", name, ["--slots", "8"]);
  return {
    nats,
    plant,
    replicas,
    openGate: (runId: string): void => writeFileSync(join(gates, runId), ""),
    async [Symbol.asyncDispose]() {
      await plant[Symbol.asyncDispose]();
      await nats.stop();
    },
  };
}

interface Submission {
  status: number;
  run: RunSummary | undefined;
  text: string;
}

async function submit(replica: Replica, pipeline: string, key: string | undefined): Promise<Submission> {
  const response = await fetch(`${replica.url}/v1/runs`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${replica.token}`,
      "content-type": "application/json",
      ...(key === undefined ? {} : { "idempotency-key": key }),
    },
    body: JSON.stringify({ pipeline }),
  });
  const text = await response.text();
  return { status: response.status, run: response.ok ? (JSON.parse(text) as RunSummary) : undefined, text };
}

/** Submits runs without a pause, each with a key of its own, and again with the same key until it is acknowledged. */
class Load implements AsyncDisposable {
  readonly acknowledged: string[] = [];
  readonly refusals = new Map<string, number>();
  worstMs = 0;
  readonly #workers: Promise<void>[];
  #stopped = false;

  constructor(replicas: readonly Replica[]) {
    this.#workers = replicas.map((replica, n) => this.#work(replica, `load-${n}`));
  }

  async #work(replica: Replica, name: string): Promise<void> {
    for (let n = 0; !this.#stopped; n++) {
      const startMs = systemClock.monotonicMs();
      while (!this.#stopped) {
        const { status, run, text } = await submit(replica, "small", `${name}-${n}`);
        if (run) {
          this.acknowledged.push(run.id);
          break;
        }
        const { code } = JSON.parse(text) as { code: string };
        this.refusals.set(`${status} ${code}`, (this.refusals.get(`${status} ${code}`) ?? 0) + 1);
        await systemClock.sleep(100);
      }
      this.worstMs = Math.max(this.worstMs, systemClock.monotonicMs() - startMs);
      await systemClock.sleep(PACE_MS);
    }
  }

  /** Resolves when so many more runs have been acknowledged. */
  async more(count: number): Promise<void> {
    const enough = this.acknowledged.length + count;
    while (this.acknowledged.length < enough) await systemClock.sleep(20);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#workers);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

async function leaderOf(nats: TestNatsCluster, stream: string): Promise<string | undefined> {
  const servers = nats.nodes.filter(({ running }) => running).map(({ url }) => url);
  const connection = await connect({ servers, user: nats.user, pass: nats.password });
  try {
    const manager = await connection.jetstreamManager();
    return (await manager.streams.info(stream)).cluster?.leader;
  } finally {
    await connection.close();
  }
}

/** All events of a run that ends. Asked again while the store has no leader. */
async function history(plant: Plant, runId: string): Promise<RunEvent[]> {
  for (;;) {
    const events = await plant.events(runId, () => false).catch(() => []);
    if (events.at(-1)?.kind === "run.finished") return events;
    await systemClock.sleep(50);
  }
}

/** Every run has ended well, and each of its steps was offered once and has one outcome. */
async function checkRuns(plant: Plant, runIds: readonly string[]): Promise<void> {
  expect(new Set(runIds).size).toBe(runIds.length);
  for (const runId of runIds) {
    const kinds = new Map<string, number>();
    for (const event of await history(plant, runId)) {
      const key = "step" in event && event.step !== null ? `${event.kind} ${event.step}` : event.kind;
      kinds.set(key, (kinds.get(key) ?? 0) + 1);
    }
    const { steps, status } = await plant.run(runId);
    expect({ runId, status }).toEqual({ runId, status: "succeeded" });
    expect(kinds.get("run.finished")).toBe(1);
    for (const { id } of steps) {
      const counted = ["attempt.offered", "attempt.finished"].map((kind) => kinds.get(`${kind} ${id}`));
      expect({ runId, id, counted }).toEqual({ runId, id, counted: [1, 1] });
    }
    expect([...kinds.keys()].filter((kind) => /lost|expired/.test(kind))).toEqual([]);
  }
}

test("each server of the cluster is killed under load: nothing acknowledged is lost, no lease expires", {
  timeout: LIMIT_MS,
}, async () => {
  await using here = await open();
  const { nats, plant, replicas } = here;
  const held: string[] = [];
  for (const n of [1, 2, 3, 4]) held.push((await submit(replicas[n % 2]!, "gated", `held-${n}`)).run!.id);
  for (const id of held)
    await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.started"));
  await using load = new Load([...replicas, ...replicas]);
  await load.more(RUNS_PER_KILL);
  const first = await leaderOf(nats, STREAMS.runs);
  const order = [...nats.nodes].sort((a, b) => Number(b.name === first) - Number(a.name === first));
  const stalls: number[] = [];
  for (const node of order) {
    load.worstMs = 0;
    await node.kill();
    await within(STALL_MAX_MS, `load after the kill of ${node.name}`, load.more(RUNS_PER_KILL));
    const late = load.acknowledged.slice(-4);
    for (const id of late) await within(STALL_MAX_MS, `run ${id}`, history(plant, id));
    stalls.push(load.worstMs);
    await within(STALL_MAX_MS, `the return of ${node.name}`, node.start().then(nats.whole));
  }
  await load.stop();
  for (const id of held) here.openGate(id);
  await within(30_000, "the last runs", checkRuns(plant, [...held, ...load.acknowledged]));
  const seconds = stalls.map((ms) => `${(ms / 1_000).toFixed(1)} s`).join(", ");
  process.stdout.write(`longest wait of a submission for each killed server: ${seconds}\n`);
});

test("without a majority nothing is acknowledged, and who asks is told; then all goes on by itself, also with a replica less", {
  timeout: LIMIT_MS,
}, async () => {
  await using here = await open();
  const { nats, plant, replicas } = here;
  const before: string[] = [];
  for (let n = 0; n < 10; n++) before.push((await submit(replicas[n % 2]!, "small", `before-${n}`)).run!.id);
  const held = (await submit(replicas[0]!, "gated", "held")).run!.id;
  await plant.events(held, (events) => events.some(({ kind }) => kind === "attempt.started"));
  const [first, second] = nats.nodes;
  await Promise.all([first!.kill(), second!.kill()]);
  // One as the command line asks, with a key, and one without.
  const refused = await within(
    STALL_MAX_MS,
    "a refusal",
    Promise.all([submit(replicas[0]!, "small", "during"), submit(replicas[1]!, "small", undefined)]),
  );
  for (const { status, text } of refused) {
    expect(status).toBe(503);
    expect(JSON.parse(text)).toMatchObject({ code: expect.stringMatching(/unavailable/), retryable: true });
    expect(text).toMatch(/more than half/);
  }
  const backMs = systemClock.monotonicMs();
  await within(STALL_MAX_MS, "the start of the servers", Promise.all([first!.start(), second!.start()]));
  const again = await within(
    STALL_MAX_MS,
    "the repeat",
    (async () => {
      for (;;) {
        const { run } = await submit(replicas[1]!, "small", "during");
        if (run) return run.id;
        await systemClock.sleep(100);
      }
    })(),
  );
  const seconds = ((systemClock.monotonicMs() - backMs) / 1_000).toFixed(1);
  process.stdout.write(`first run acknowledged ${seconds} s after the servers were started again\n`);
  here.openGate(held);
  await within(STALL_MAX_MS, "the last runs", checkRuns(plant, [...before, held, again]));
  await standIn(plant, replicas);
});

/** Kills the first replica: the second one decides for all shards, and a run of after that ends. */
async function standIn(plant: Plant, [first, second]: readonly Replica[]): Promise<void> {
  const killedMs = systemClock.monotonicMs();
  first!.child.kill("SIGKILL");
  const taken = plant.until(async () => (await shares(second!)).includes(64));
  await within(STALL_MAX_MS, "the take-over", taken);
  const seconds = ((systemClock.monotonicMs() - killedMs) / 1_000).toFixed(1);
  process.stdout.write(`shards of a killed replica decided elsewhere after ${seconds} s\n`);
  const { run } = await submit(second!, "small", "after");
  plant.url = second!.url;
  plant.token = second!.token;
  await within(STALL_MAX_MS, "a run after it", checkRuns(plant, [run!.id]));
}

/** How many shards each living replica decides for. */
async function shares(replica: Replica): Promise<number[]> {
  const headers = { authorization: `Bearer ${replica.token}` };
  const { items } = (await (await fetch(`${replica.url}/v1/servers`, { headers })).json()) as {
    items: ServerView[];
  };
  return items.filter(({ alive }) => alive).map(({ shards }) => shards.length);
}
