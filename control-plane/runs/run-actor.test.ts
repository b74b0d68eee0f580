import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Effect, Input } from "../../shared/engine/engine.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { compile } from "../../shared/engine/plan.ts";
import { evolve, initialState, type RunState, stepOf } from "../../shared/engine/state.ts";
import { systemClock } from "../../shared/system.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { ensureStreams } from "../store/jetstream.ts";
import { JetStreamRunStore } from "../store/jetstream-run-store.ts";
import { type ActorWorld, RunActor } from "./run-actor.ts";

const VERSION = `sha256:${"0".repeat(64)}`;
const grant = { attempt: 1, epoch: 1, agent: "site/a" };

let nats: TestNats;
let connection: NatsConnection;
let store: JetStreamRunStore;
let messages = 0;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
  store = new JetStreamRunStore(connection);
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

interface Watched {
  actor: RunActor;
  effects: Effect[];
  aside: Error[];
}

function actor(runId: string, state: RunState, seq = 0): Watched {
  const effects: Effect[] = [];
  const aside: Error[] = [];
  const world: ActorWorld = {
    store,
    place: (_state, step, atMs) => ({
      kind: "offer",
      atMs,
      step,
      environment: "site",
      policyVersion: "p1",
      expiresAtMs: atMs + 60_000,
    }),
    perform: (_state, effect) => effects.push(effect),
    placed: () => undefined,
    nextMessageId: () => `m${++messages}`,
    pause: (ms) => systemClock.sleep(ms),
    setAside: (_runId, err) => aside.push(err),
    caughtUp: () => undefined,
    shardEpoch: () => 1,
    lost: () => undefined,
  };
  return { actor: new RunActor(runId, state, seq, world), effects, aside };
}

const create = (runId: string): Input => ({
  kind: "create",
  atMs: 1,
  runId,
  version: VERSION,
  params: {},
  by: "ana",
});

const planOf = (steps: number) =>
  compile(
    pipelineSpec(
      "nightly",
      Array.from({ length: steps }, (_, n) => stepSpec(`s${n}`)),
    ),
  );

/** Two writers that both believe the run to be theirs, as after a partition. */
async function twoWriters(runId: string, steps: number): Promise<[Watched, Watched]> {
  const first = actor(runId, initialState(planOf(steps)));
  await first.actor.submit(create(runId));
  return [first, actor(runId, first.actor.state, first.actor.seq)];
}

async function stored(runId: string, steps: number): Promise<{ state: RunState; events: RunEvent[] }> {
  const events = (await store.read(runId, 0)).flatMap((batch) => batch.events);
  return { state: events.reduce(evolve, initialState(planOf(steps))), events };
}

describe("of two writers of one run", () => {
  test("the loser catches up and decides again, so that both of their facts are kept in one history", async () => {
    const [one, two] = await twoWriters("both", 2);
    await Promise.all([
      one.actor.submit({ kind: "started", atMs: 2, step: "s0", ...grant }),
      two.actor.submit({ kind: "started", atMs: 2, step: "s1", ...grant }),
    ]);
    const { state } = await stored("both", 2);
    expect([stepOf(state, "s0")?.status, stepOf(state, "s1")?.status]).toEqual(["running", "running"]);
    const last = one.actor.seq > two.actor.seq ? one : two;
    expect(last.actor.state).toEqual(state);
  });

  test("only one gives an attempt to its agent; the other learns that it is taken", async () => {
    const [one, two] = await twoWriters("rivals", 1);
    await Promise.all([
      one.actor.submit({ kind: "started", atMs: 2, step: "s0", ...grant }),
      two.actor.submit({ kind: "started", atMs: 2, step: "s0", ...grant, agent: "site/b" }),
    ]);
    const { events, state } = await stored("rivals", 1);
    expect(events.filter((event) => event.kind === "attempt.started")).toHaveLength(1);
    const effects = [...one.effects, ...two.effects];
    expect(effects.filter((effect) => effect.kind === "lease.begin")).toHaveLength(1);
    const holder = stepOf(state, "s0")?.agent;
    expect(effects.filter((effect) => effect.kind === "supersede")).toMatchObject([
      { agent: holder === "site/a" ? "site/b" : "site/a" },
    ]);
    expect([one.aside, two.aside]).toEqual([[], []]);
  });

  test("a hundred inputs to each leave one history that can be folded, and each end once", async () => {
    const [one, two] = await twoWriters("storm", 50);
    const inputs = planOf(50).steps.flatMap(({ id }): Input[] => [
      { kind: "started", atMs: 2, step: id, ...grant },
      { kind: "finished", atMs: 3, step: id, ...grant, outcome: outcome(), random: 0 },
    ]);
    await Promise.all(inputs.flatMap((input) => [one.actor.submit(input), two.actor.submit(input)]));
    const { events, state } = await stored("storm", 50);
    expect(state.status).toBe("succeeded");
    expect(events.filter((event) => event.kind === "step.succeeded")).toHaveLength(50);
    expect(events.filter((event) => event.kind === "run.finished")).toHaveLength(1);
  });
});

describe("a batch", () => {
  test("is cut so that each message fits, also when its texts are long and not ASCII", async () => {
    const steps = 400;
    const { actor: writer } = actor("wide", initialState(planOf(steps)));
    await writer.submit(create("wide"));
    const message = "長".repeat(4_000);
    const failed = outcome({ status: "failed", exitCode: 1, error: { code: "exit", message } });
    const ids = planOf(steps).steps.map(({ id }) => id);
    await Promise.all(ids.map((step) => writer.submit({ kind: "started", atMs: 2, step, ...grant })));
    await Promise.all(
      ids.map((step) =>
        writer.submit({ kind: "finished", atMs: 3, step, ...grant, outcome: failed, random: 0 }),
      ),
    );
    const sizes = (await store.read("wide", 0)).map(({ events }) =>
      Buffer.byteLength(JSON.stringify(events)),
    );
    expect(Math.max(...sizes)).toBeLessThan(1_000_000);
    const { state } = await stored("wide", steps);
    expect(state.status).toBe("failed");
    expect(writer.state).toEqual(state);
  });

  test("is never empty, though a single event is nearly as large as a message", async () => {
    const { actor: writer } = actor("large", initialState(planOf(1)));
    await writer.submit(create("large"));
    await writer.submit({ kind: "started", atMs: 2, step: "s0", ...grant });
    const text = "x".repeat(920_000);
    const output = { type: "text", digest: VERSION, bytes: text.length, text } as const;
    const ended = outcome({ outputs: { all: output } });
    await writer.submit({ kind: "finished", atMs: 3, step: "s0", ...grant, outcome: ended, random: 0 });
    const batches = await store.read("large", 0);
    expect(batches.filter((batch) => batch.events.length === 0)).toEqual([]);
    expect((await stored("large", 1)).state.status).toBe("succeeded");
  });
});

test("an input that the run's state makes impossible sets the run aside, and it takes no more", async () => {
  const watched = actor("aside", initialState(planOf(1)));
  await watched.actor.submit(create("aside"));
  const impossible: Input = { kind: "started", atMs: 2, step: "nobody", ...grant };
  await expect(watched.actor.submit(impossible)).rejects.toThrow(/nobody/);
  expect(watched.aside).toHaveLength(1);
  await expect(
    watched.actor.submit({ kind: "take-over", atMs: 3, shardEpoch: 1, replica: "r1" }),
  ).rejects.toThrow(/nobody/);
});
