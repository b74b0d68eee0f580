import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { stepOf } from "../../shared/engine/state.ts";
import { InsituError } from "../../shared/errors.ts";
import type { StepSpec } from "../../shared/model/spec.ts";
import { systemClock } from "../../shared/system.ts";
import type { LeaseKey, Offer } from "../../shared/wire/attempt.ts";
import { POOL_SHARD, shardOf, subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { outcome, stepSpec } from "../../test/support/specs.ts";
import { ensureStreams } from "../store/jetstream.ts";
import { JetStreamRunStore } from "../store/jetstream-run-store.ts";
import { PeerMessage, RunRouter } from "./run-router.ts";
import type { RunService } from "./run-service.ts";
import { runWorld, VERSION } from "./runs.fixture.ts";

let nats: TestNats;
let connection: NatsConnection;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

/** Every other read lacks what was written last, as that of a server that has just become the leader may. */
class LateStore extends JetStreamRunStore {
  #reads = 0;
  override async read(runId: string, afterSeq: number) {
    const batches = await super.read(runId, afterSeq);
    return this.#reads++ % 2 === 0 ? batches.slice(0, 1) : batches;
  }
}

function world(
  steps: StepSpec[],
  open = true,
  store = new JetStreamRunStore(connection),
  leaseTtlMs = 30_000,
) {
  return runWorld(connection, steps, { open, store, leaseTtlMs });
}

const create = (service: RunService) => service.create({ version: VERSION, params: {}, by: "ana" });

const status = (service: RunService, runId: string, step: string) =>
  stepOf(service.stateOf(runId)!, step)?.status;

const leaseOf = (runId: string, stepId: string): LeaseKey => ({ runId, stepId, attempt: 1, epoch: 1 });

async function finish(service: RunService, runId: string, stepId: string): Promise<void> {
  const lease = leaseOf(runId, stepId);
  await service.accept("site/a", { kind: "started", lease, atMs: 1 });
  await service.accept("site/a", { kind: "finished", lease, outcome: outcome() });
}

describe("a pool", () => {
  test("passes its place from run to run", async () => {
    await using here = world([stepSpec("load", { pools: ["db"] })]);
    const [one, two] = [await create(here.service), await create(here.service)];
    expect(status(here.service, one.runId, "load")).toBe("offered");
    expect(status(here.service, two.runId, "load")).toBe("ready");
    const offers = connection.subscribe(subjects.work("site"));
    await connection.flush();
    await finish(here.service, one.runId, "load");
    for await (const offer of offers) {
      if (offer.json<Offer>().lease.runId === two.runId) break;
    }
    await finish(here.service, two.runId, "load");
    expect(here.service.stateOf(two.runId)).toBeUndefined();
  });

  test("keeps the place of a step that is offered again when its grant is lost", async () => {
    await using here = world([stepSpec("load", { pools: ["db"] })]);
    const [one, two] = [await create(here.service), await create(here.service)];
    const lease = leaseOf(one.runId, "load");
    const interrupted = outcome({ status: "interrupted", exitCode: null });
    await here.service.accept("site/a", { kind: "finished", lease, outcome: interrupted });
    expect(status(here.service, one.runId, "load")).toBe("offered");
    here.service.factsChanged();
    const three = await create(here.service);
    expect([two, three].map(({ runId }) => status(here.service, runId, "load"))).toEqual(["ready", "ready"]);
  });

  test("gives no place to a step whose run is cancelled while it is placed", async () => {
    await using here = world([stepSpec("load", { pools: ["db"] })], false);
    const one = await create(here.service);
    expect(status(here.service, one.runId, "load")).toBe("ready");
    const cancelled = here.service.cancel(one.runId, "ana", "enough");
    here.site.open = true;
    here.service.factsChanged();
    await cancelled;
    const two = await create(here.service);
    const three = await create(here.service);
    expect([two, three].map(({ runId }) => status(here.service, runId, "load"))).toEqual([
      "offered",
      "ready",
    ]);
  });
});

describe("a report", () => {
  test("is taken from an agent of the granted environment alone", async () => {
    await using here = world([stepSpec("load")]);
    const { runId } = await create(here.service);
    const lease = leaseOf(runId, "load");
    const started = { kind: "started", lease, atMs: 1 } as const;
    expect(await here.service.accept("other/a", started)).toMatchObject({ code: "auth.denied" });
    expect(await here.service.accept("site/a", started)).toEqual({ accepted: true });
    expect(here.service.heartbeat("site/a", [lease]).renewed).toEqual([lease]);
    expect(here.service.heartbeat("site/b", [lease]).superseded).toEqual([lease]);
  });

  test("of a run that is not there is refused, and one of a run that ended is kept as evidence", async () => {
    await using here = world([stepSpec("load")]);
    const { runId } = await create(here.service);
    await finish(here.service, runId, "load");
    expect(here.service.stateOf(runId)).toBeUndefined();
    const lease = leaseOf(runId, "load");
    const late = await here.service.accept("site/b", { kind: "finished", lease, outcome: outcome() });
    expect(late).toEqual({ accepted: true });
    const events = (await new JetStreamRunStore(connection).read(runId, 0)).flatMap((batch) => batch.events);
    expect(events.at(-1)).toMatchObject({ kind: "attempt.fenced", agent: "site/b" });
    const unknown = { kind: "started", lease: leaseOf("nobody", "load"), atMs: 1 } as const;
    expect(await here.service.accept("site/a", unknown)).toMatchObject({ code: "not-found" });
  });
});

test("offers that nobody has taken are counted until they are taken", async () => {
  await using here = world([stepSpec("a"), stepSpec("b")]);
  const { runId } = await create(here.service);
  expect(here.service.outstandingOffers("site")).toBe(2);
  await here.service.accept("site/a", { kind: "started", lease: leaseOf(runId, "a"), atMs: 1 });
  expect(here.service.outstandingOffers("site")).toBe(1);
  await here.service.cancel(runId, "ana", "enough");
  expect(here.service.outstandingOffers("site")).toBe(0);
});

describe("a shard that two replicas believe to own", () => {
  test("is written by the one of the higher epoch alone, once it has taken the run over", async () => {
    await using former = world([stepSpec("load"), stepSpec("after", { needs: ["load"] })]);
    await using latter = world([stepSpec("load"), stepSpec("after", { needs: ["load"] })]);
    const { runId, seq } = await create(former.service);
    const store = new JetStreamRunStore(connection);
    const all = new Map(Array.from({ length: 64 }, (_, shard) => [shard, 2]));
    latter.service.own(all, [{ runId, state: former.service.stateOf(runId)!, seq }]);
    const lease = leaseOf(runId, "load");
    const started = { kind: "started", lease, atMs: 1 } as const;
    expect(await latter.service.accept("site/a", started)).toEqual({ accepted: true });
    const written = await store.read(runId, 0);
    const finished = { kind: "finished", lease, outcome: outcome() } as const;
    await expect(former.service.accept("site/a", finished)).rejects.toMatchObject({
      code: "shard.elsewhere",
    });
    expect(await store.read(runId, 0)).toEqual(written);
    expect(former.service.stateOf(runId)).toBeUndefined();
    // Read again, the run is up to date there: it is not the former owner's all the same.
    await expect(former.service.accept("site/a", finished)).rejects.toMatchObject({
      code: "shard.elsewhere",
    });
    expect(await store.read(runId, 0)).toEqual(written);
    expect(await latter.service.accept("site/a", finished)).toEqual({ accepted: true });
    const kinds = (await store.read(runId, 0)).flatMap(({ events }) => events.map(({ kind }) => kind));
    expect(kinds.filter((kind) => kind === "run.taken-over")).toHaveLength(1);
    expect(kinds.filter((kind) => kind === "attempt.finished")).toHaveLength(1);
  });

  test("and both try at the same moment: one outcome is committed, under one owner", async () => {
    await using former = world([stepSpec("load")]);
    await using latter = world([stepSpec("load")]);
    const { runId, seq } = await create(former.service);
    const lease = leaseOf(runId, "load");
    const finished = { kind: "finished", lease, outcome: outcome() } as const;
    const state = former.service.stateOf(runId)!;
    const all = new Map(Array.from({ length: 64 }, (_, shard) => [shard, 2]));
    const racing = former.service.accept("site/a", finished).catch((err: unknown) => err);
    latter.service.own(all, [{ runId, state, seq }]);
    const second = latter.service.accept("site/a", finished);
    await Promise.all([racing, second]);
    const batches = await new JetStreamRunStore(connection).read(runId, 0);
    const kinds = batches.flatMap(({ events }) => events.map(({ kind }) => kind));
    expect(kinds.filter((kind) => kind === "attempt.finished")).toHaveLength(1);
    expect(kinds.at(-1)).toBe("run.finished");
  });
});

async function recoveredFrom(service: RunService, runId: string) {
  const batches = await new JetStreamRunStore(connection).read(runId, 0);
  return { runId, state: service.stateOf(runId)!, seq: batches.at(-1)!.seq };
}

const SHARDS = Array.from({ length: 64 }, (_, shard) => shard);

test("a former owner gives up all runs of the shard when it meets the later owner in one of them", async () => {
  const steps = [stepSpec("load", { pools: ["scanner"] })];
  await using former = world(steps);
  await using latter = world(steps);
  const first = await create(former.service);
  const second = await create(former.service);
  await vi.waitFor(() => expect(status(former.service, first.runId, "load")).toBe("offered"));
  // The latter has taken over the first run alone so far; its only place must not go to the second one here.
  const { runId } = first;
  const recovered = await recoveredFrom(former.service, runId);
  latter.service.own(new Map(SHARDS.map((shard) => [shard, 2])), [recovered]);
  await vi.waitFor(() => expect(latter.service.stateOf(runId)?.shardEpoch).toBe(2));
  await expect(finish(former.service, runId, "load")).rejects.toMatchObject({ code: "shard.elsewhere" });
  await vi.waitFor(() => expect(former.service.stateOf(second.runId)).toBeUndefined());
  const events = (await new JetStreamRunStore(connection).read(second.runId, 0)).flatMap(
    (batch) => batch.events,
  );
  expect(events.filter(({ kind }) => kind === "attempt.offered")).toEqual([]);
});

test("a start that another owner of the shard has already made a run of takes that run over", async () => {
  await using former = world([stepSpec("load")]);
  await using latter = world([stepSpec("load")]);
  const { runId } = await create(former.service);
  latter.service.own(new Map(SHARDS.map((shard) => [shard, 2])), []);
  await latter.service.create({ version: VERSION, params: {}, by: "ana", runId });
  expect(latter.service.stateOf(runId)).toMatchObject({ shardEpoch: 2 });
  await expect(finish(former.service, runId, "load")).rejects.toMatchObject({ code: "shard.elsewhere" });
});

test("a run with pools is placed only when the record says that its shard is still owned here", async () => {
  await using here = world([stepSpec("load", { pools: ["scanner"] })]);
  let say: (owned: boolean) => void = () => undefined;
  here.site.confirm = () =>
    new Promise((resolve) => {
      say = resolve;
    });
  const { runId } = await create(here.service);
  here.service.factsChanged();
  await finish(here.service, runId, "load").catch(() => undefined);
  expect(status(here.service, runId, "load")).toBe("ready");
  say(true);
  await vi.waitFor(() => expect(status(here.service, runId, "load")).toBe("offered"));
});

test("after a take-over a cut-off agent has the time of a lease to come back, also when its own is over", async () => {
  const steps = [stepSpec("load", { disconnect: { keepMs: 400, then: "fail" } })];
  await using former = world(steps, true, undefined, 100);
  const { runId } = await create(former.service);
  await former.service.accept("site/a", { kind: "started", lease: leaseOf(runId, "load"), atMs: 1 });
  await vi.waitFor(() => expect(status(former.service, runId, "load")).toBe("disconnected"));
  await former.service.close();
  const left = await recoveredFrom(former.service, runId);
  const { untilMs } = stepOf(left.state, "load")!.away!;
  await vi.waitFor(() => expect(systemClock.wallMs()).toBeGreaterThan(untilMs!));
  await using latter = world(steps);
  latter.service.own(new Map(SHARDS.map((shard) => [shard, 2])), [left]);
  await vi.waitFor(() => expect(latter.service.stateOf(runId)?.shardEpoch).toBe(2));
  latter.service.heartbeat("site/a", [leaseOf(runId, "load")]);
  await vi.waitFor(() => expect(status(latter.service, runId, "load")).toBe("running"));
});

test("logs of a grant that a later owner made are not denied by the former one", async () => {
  const steps = [stepSpec("load"), stepSpec("after", { needs: ["load"] })];
  await using former = world(steps);
  await using latter = world(steps);
  const { runId, seq } = await create(former.service);
  const all = new Map(Array.from({ length: 64 }, (_, shard) => [shard, 2]));
  latter.service.own(all, [{ runId, state: former.service.stateOf(runId)!, seq }]);
  await finish(latter.service, runId, "load");
  const granted = (agent: string, epoch: number) =>
    former.service.wasGranted(agent, { runId, stepId: "after", epoch });
  expect(status(former.service, runId, "after")).toBe("pending");
  expect(await granted("site/a", 1)).toBe(true);
  expect(await granted("other/a", 1)).toBe(false);
  expect(await granted("site/a", 2)).toBe(false);
});

test("a report and a log are not refused because the stream does not show their grant at once", async () => {
  const steps = [stepSpec("load"), stepSpec("after", { needs: ["load"] })];
  await using former = world(steps, true, new LateStore(connection));
  await using latter = world(steps);
  const { runId, seq } = await create(former.service);
  const all = new Map(Array.from({ length: 64 }, (_, shard) => [shard, 2]));
  latter.service.own(all, [{ runId, state: former.service.stateOf(runId)!, seq }]);
  await finish(latter.service, runId, "load");
  const lease = leaseOf(runId, "after");
  expect(await former.service.wasGranted("site/a", lease)).toBe(true);
  const started = { kind: "started", lease, atMs: 1 } as const;
  await expect(former.service.accept("site/a", started)).rejects.toMatchObject({ code: "shard.elsewhere" });
});

test("a run that a later owner of its shard created is left alone", async () => {
  await using later = world([stepSpec("load")]);
  await using former = world([stepSpec("load")]);
  const { runId } = await create(later.service);
  const state = { ...later.service.stateOf(runId)!, shardEpoch: 1_000 };
  former.service.adopt({ runId, state, seq: 1 });
  expect(former.service.stateOf(runId)).toBeUndefined();
});

test("a replica that has not heard of a grant does not call it superseded: it is a later owner's", async () => {
  await using here = world([stepSpec("load"), stepSpec("fit", { needs: ["load"] })]);
  const { runId } = await create(here.service);
  const later = [{ ...leaseOf(runId, "load"), epoch: 2 }, leaseOf(runId, "fit")];
  expect(here.service.heartbeat("site/a", later).superseded).toEqual([]);
  await here.service.accept("site/a", { kind: "started", lease: leaseOf(runId, "load"), atMs: 1 });
  expect(here.service.heartbeat("site/a", later)).toMatchObject({ renewed: [], superseded: [] });
  expect(here.service.heartbeat("site/b", [leaseOf(runId, "load")]).superseded).toHaveLength(1);
});

test("starts with one seed are one run, also over another owner of its shard", async () => {
  await using first = world([stepSpec("load")]);
  await using second = world([stepSpec("load", { pools: ["scanner"] })]);
  const seed = { key: "a".repeat(64), firstMs: 1_700_000_000_000 };
  const start = async ({ service }: typeof first) => {
    const runId = await service.seededRunId(VERSION, seed);
    return await service.create({ version: VERSION, params: {}, by: "ana", runId });
  };
  const { runId, seq } = await start(first);
  expect(await start(first)).toEqual({ runId, seq });
  await using later = world([stepSpec("load")]);
  expect(await start(later)).toEqual({ runId, seq });
  const batches = await new JetStreamRunStore(connection).read(runId, 0);
  expect(batches.flatMap(({ events }) => events).filter(({ kind }) => kind === "run.created")).toHaveLength(
    1,
  );
  // Runs that share pools are decided in one place.
  expect(shardOf(await second.service.seededRunId(VERSION, seed))).toBe(POOL_SHARD);
});

test("after a restore, the repeat of a start of before is granted above all that the lost run was", async () => {
  await using here = world([stepSpec("load")]);
  const nowMs = systemClock.wallMs();
  const floor = Math.floor(nowMs / 1_000);
  here.service.own(new Map(Array.from({ length: 64 }, (_, shard) => [shard, 1])), [], floor);
  const start = async (firstMs: number) => {
    const runId = await here.service.seededRunId(VERSION, { key: "b".repeat(64), firstMs });
    await here.service.create({ version: VERSION, params: {}, by: "ana", runId });
    return stepOf(here.service.stateOf(runId)!, "load");
  };
  expect(await start(nowMs - 60_000)).toMatchObject({ status: "offered", epoch: floor + 1 });
  expect(await start(nowMs + 60_000)).toMatchObject({ status: "offered", epoch: 1 });
});

test("a run whose first append fails for good is not kept in memory", async () => {
  class Refusing extends JetStreamRunStore {
    override append(): Promise<never> {
      return Promise.reject(new InsituError("internal", "maximum payload exceeded"));
    }
  }
  await using here = world([stepSpec("load", { pools: ["licence"] })], true, new Refusing(connection));
  const runId = here.service.newRunId(POOL_SHARD);
  await expect(here.service.create({ version: VERSION, params: {}, by: "ana", runId })).rejects.toThrow(
    "payload",
  );
  expect(here.service.stateOf(runId)).toBeUndefined();
  expect(here.service.outstandingOffers("site")).toBe(0);
  await expect(here.service.cancel(runId, "ana", "")).rejects.toThrow("not active");
});

test("a stray message under a run's subject holds up neither the run nor a late report of it", async () => {
  await using here = world([stepSpec("load")]);
  const { runId } = await create(here.service);
  const stray = () => connection.jetstream().publish(subjects.run(runId), "no events");
  await stray();
  await finish(here.service, runId, "load");
  expect(here.service.stateOf(runId)).toBeUndefined();
  await stray();
  const late = { kind: "finished", lease: leaseOf(runId, "load"), outcome: outcome() } as const;
  expect(await here.service.accept("site/b", late)).toEqual({ accepted: true });
  const events = (await new JetStreamRunStore(connection).read(runId, 0)).flatMap((batch) => batch.events);
  expect(events.filter(({ kind }) => kind === "attempt.finished")).toHaveLength(1);
  expect(events.at(-1)).toMatchObject({ kind: "attempt.fenced", agent: "site/b" });
});

/** All but evidence, which may be added. */
async function committed(runId: string) {
  const events = (await new JetStreamRunStore(connection).read(runId, 0)).flatMap((batch) => batch.events);
  return events.filter(({ kind }) => kind !== "attempt.fenced");
}

describe("what comes twice, late or in the wrong order", () => {
  const started = (lease: LeaseKey) => ({ kind: "started", lease, atMs: 1 }) as const;
  const finished = (lease: LeaseKey, exitCode: number) =>
    ({
      kind: "finished",
      lease,
      outcome: outcome({ exitCode, status: exitCode === 0 ? "succeeded" : "failed" }),
    }) as const;

  test("of reports changes nothing that is committed, also after a restart", async () => {
    await using here = world([stepSpec("load")]);
    const { runId } = await create(here.service);
    const lease = leaseOf(runId, "load");
    await here.service.accept("site/a", finished(lease, 0));
    const before = await committed(runId);
    expect(before.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    await using again = world([stepSpec("load")]);
    for (const { service } of [here, again, here]) {
      for (const report of [started(lease), finished(lease, 0), finished(lease, 3)]) {
        for (const agent of ["site/a", "site/b"])
          expect(await service.accept(agent, report)).toEqual({ accepted: true });
      }
    }
    expect(await committed(runId)).toEqual(before);
  });

  test("of reports of one epoch does not speak for another", async () => {
    await using here = world([stepSpec("load")]);
    const { runId } = await create(here.service);
    const first = leaseOf(runId, "load");
    await here.service.accept("site/a", started(first));
    const never = { ...first, epoch: 9 };
    expect(await here.service.accept("site/a", finished(never, 0))).toMatchObject({ accepted: false });
    expect(status(here.service, runId, "load")).toBe("running");
  });

  test("of heartbeats renews nothing of what has ended", async () => {
    await using here = world([stepSpec("load")]);
    const { runId } = await create(here.service);
    const lease = leaseOf(runId, "load");
    await here.service.accept("site/a", started(lease));
    const beat = () => here.service.heartbeat("site/a", [lease, lease]).renewed;
    expect([beat(), beat()].flat().every(({ epoch }) => epoch === 1)).toBe(true);
    await here.service.accept("site/a", finished(lease, 0));
    const before = await committed(runId);
    expect(beat()).toEqual([]);
    expect(await committed(runId)).toEqual(before);
  });

  test("of commands has one effect", async () => {
    await using here = world([stepSpec("load")]);
    const runId = here.service.newRunId(5);
    const start = { version: VERSION, params: {}, by: "ana", runId };
    await Promise.all([here.service.create(start), here.service.create(start)]);
    await here.service.accept("site/a", started(leaseOf(runId, "load")));
    await here.service.create(start);
    for (let times = 0; times < 2; times++) {
      const decision = {
        runId,
        step: "load",
        decision: "failed",
        evenIfItRan: false,
        by: "ana",
        reason: "x",
      } as const;
      await expect(here.service.resolve(decision)).rejects.toMatchObject({ code: "step.not-resolvable" });
      await here.service.cancel(runId, "ana", "enough");
    }
    const kinds = (await committed(runId)).map(({ kind }) => kind);
    expect(kinds.filter((kind) => kind === "run.created")).toHaveLength(1);
    expect(kinds.filter((kind) => kind === "run.cancel-requested")).toHaveLength(1);
    await here.service.accept("site/a", finished(leaseOf(runId, "load"), 3));
    const before = await committed(runId);
    await expect(here.service.cancel(runId, "ana", "again")).rejects.toMatchObject({ code: "run.terminal" });
    await here.service.create(start).catch(() => undefined); // as the replica's router answers, with the run that is there
    expect(await committed(runId)).toEqual(before);
  });

  test("of what replicas tell each other commits nothing, and renews nothing of what has ended", async () => {
    await using here = world([stepSpec("load")]);
    const { runId } = await create(here.service);
    const lease = leaseOf(runId, "load");
    await here.service.accept("site/a", started(lease));
    const answers: PeerMessage[] = [];
    const router = new RunRouter({
      runs: here.service,
      shards: { replicaId: "r1", size: 2, ownerOf: () => "r1" },
      bus: {
        broadcast: () => undefined,
        send: (_, message) => void answers.push(PeerMessage.parse(message)),
        request: () => Promise.reject(new Error("nobody asks here")),
      },
      inbox: { put: () => Promise.resolve() },
      clock: systemClock,
      verify: async () => undefined,
      refused: async () => undefined,
      tell: () => false,
      stop: () => false,
    });
    const renew: PeerMessage = { kind: "renew", from: "r2", agent: "site/a", held: [lease] };
    for (let times = 0; times < 2; times++) {
      router.received(renew);
      router.received({
        kind: "verdict",
        agent: "site/a",
        verdict: { renewed: [], superseded: [lease], cancels: [] },
      });
      router.received({ kind: "stop", agent: "site/a", lease, reason: "late" });
    }
    const renewed = () => answers.map((answer) => (answer.kind === "verdict" ? answer.verdict.renewed : []));
    expect(renewed()).toEqual([[lease], [lease]]);
    expect(status(here.service, runId, "load")).toBe("running");
    await here.service.accept("site/a", finished(lease, 0));
    const before = await committed(runId);
    router.received(renew);
    expect(renewed().at(-1)).toEqual([]);
    const item = { agent: "site/a", report: finished(lease, 0) };
    for (let times = 0; times < 2; times++) expect(await router.acceptFromInbox(item)).toBe(true);
    expect(await committed(runId)).toEqual(before);
  });
});
