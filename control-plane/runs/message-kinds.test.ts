/** Commands, reports, renewals and what replicas say, each twice, in another order and very late, to the real router. */
import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, expect } from "vitest";
import { type StepState, stepOf } from "../../shared/engine/state.ts";
import { systemClock } from "../../shared/system.ts";
import type { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import { type Deliveries, harmless } from "../../test/support/harmless.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { outcome, stepSpec } from "../../test/support/specs.ts";
import { ensureStreams } from "../store/jetstream.ts";
import { JetStreamRunStore } from "../store/jetstream-run-store.ts";
import { PeerMessage, type RunCommand, RunRouter } from "./run-router.ts";
import { runWorld, VERSION } from "./runs.fixture.ts";

const AGENT = "site/a";
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

/** A replica that decides for all runs, and one run of one step. */
class Replica implements AsyncDisposable {
  readonly #runs: ReturnType<typeof runWorld>;
  readonly router: RunRouter;
  readonly runId: string;
  /** What agents that are connected here were told, and other replicas. */
  readonly told: unknown[] = [];

  /** `ttlMs`: how long a lease lasts. The step waits for an agent that is cut off. */
  constructor(ttlMs = 30_000) {
    const step = stepSpec("load", { disconnect: { keepMs: 600_000, then: "wait" } });
    this.#runs = runWorld(connection, [step], { leaseTtlMs: ttlMs });
    this.runId = this.#runs.service.newRunId(5);
    this.router = new RunRouter({
      runs: this.#runs.service,
      shards: { replicaId: "r1", size: 2, ownerOf: () => "r1" },
      bus: {
        broadcast: (message) => void this.told.push(PeerMessage.parse(message)),
        send: (_, message) => void this.told.push(PeerMessage.parse(message)),
        request: () => Promise.reject(new Error("all shards are here")),
      },
      inbox: { put: () => Promise.reject(new Error("all shards are here")) },
      clock: systemClock,
      verify: async () => undefined,
      refused: async () => undefined,
      tell: (agent, verdict) => this.told.push({ agent, verdict }) > 0,
      stop: (agent, lease, reason) => this.told.push({ agent, lease, reason }) > 0,
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#runs[Symbol.asyncDispose]();
  }

  get service() {
    return this.#runs.service;
  }

  get step(): StepState | undefined {
    const state = this.service.stateOf(this.runId);
    return state && stepOf(state, "load");
  }

  lease(epoch = 1): LeaseKey {
    return { runId: this.runId, stepId: "load", attempt: 1, epoch };
  }

  /** What is refused is refused: only the state counts. */
  async command(command: RunCommand): Promise<void> {
    await this.router.command(command).catch(() => undefined);
  }

  create = () => this.command({ kind: "create", runId: this.runId, version: VERSION, params: {}, by: "ana" });
  cancel = () => this.command({ kind: "cancel", runId: this.runId, by: "ana", reason: "enough" });
  resolve = (decision: "failed" | "reassign" = "failed") =>
    this.command({
      kind: "resolve",
      runId: this.runId,
      step: "load",
      decision,
      evenIfItRan: false,
      by: "ana",
      reason: "seen at the site",
    });

  async cutOff(): Promise<void> {
    await expect.poll(() => this.step?.status, { timeout: 20_000 }).toBe("disconnected");
  }

  report(report: ReportPayload): Promise<unknown> {
    return this.router.accept(AGENT, report);
  }

  started = (epoch = 1) => this.report({ kind: "started", lease: this.lease(epoch), atMs: 1 });
  finished = (epoch = 1, exitCode: number | null = 0) =>
    this.report(finishedReport(this.lease(epoch), exitCode));
  fromInbox = (report: ReportPayload) => this.router.acceptFromInbox({ agent: AGENT, report });

  /** What is decided and stored, in order. That a report came too late is noted, and changes nothing. */
  async decided() {
    const batches = await new JetStreamRunStore(connection).read(this.runId, 0);
    const events = batches.flatMap((batch) => batch.events);
    const starts = events.filter(({ kind }) => kind === "attempt.started").length;
    return {
      events: events
        .filter(({ kind }) => kind !== "attempt.fenced" && kind !== "attempt.started")
        .map(
          (event) => JSON.parse(JSON.stringify(event, withoutTimes).replaceAll(this.runId, "RUN")) as object,
        ),
      startedTwice: starts > 2,
    };
  }
}

function withoutTimes(key: string, value: unknown): unknown {
  return /atMs$/i.test(key) ? undefined : value;
}

/** Without an exit code: interrupted, so that the step is offered again. */
function finishedReport(lease: LeaseKey, exitCode: number | null): ReportPayload {
  const status = exitCode === null ? "interrupted" : exitCode === 0 ? "succeeded" : "failed";
  return { kind: "finished", lease, outcome: outcome({ exitCode, status }) };
}

const decided = (replica: Replica) => replica.decided();
const empty = async () => new Replica();
const offered = async () => {
  const replica = new Replica();
  await replica.create();
  return replica;
};
const running = async () => {
  const replica = await offered();
  await replica.started();
  return replica;
};

harmless("command create", {
  world: empty,
  state: decided,
  async sound(r) {
    await r.create();
    await r.started();
    await r.finished();
  },
  async twice(r) {
    await Promise.all([r.create(), r.create()]);
    await r.started();
    await r.create();
    await r.finished();
  },
  // What comes before it speaks of a run that is not there.
  async order(r) {
    await r.cancel();
    await r.started().catch(() => undefined);
    await this.sound(r);
  },
  async late(r) {
    await this.sound(r);
    await r.create();
  },
});

harmless("command cancel", {
  world: running,
  state: decided,
  async sound(r) {
    await r.cancel();
    await r.finished(1, 3);
  },
  async twice(r) {
    await Promise.all([r.cancel(), r.cancel()]);
    await r.finished(1, 3);
  },
  async order(r) {
    await r.cancel();
    await r.started();
    await r.finished(1, 3);
  },
  async late(r) {
    await this.sound(r);
    await r.cancel();
  },
});

harmless("command resolve", {
  world: async () => {
    const replica = new Replica(300);
    await replica.create();
    await replica.started();
    return replica;
  },
  state: decided,
  async sound(r) {
    await r.cutOff();
    await r.resolve();
  },
  async twice(r) {
    await r.cutOff();
    await Promise.all([r.resolve(), r.resolve()]);
  },
  // Before there is anything to decide.
  async order(r) {
    await r.resolve("reassign");
    await this.sound(r);
  },
  async late(r) {
    await this.sound(r);
    for (const decision of ["reassign", "failed"] as const) await r.resolve(decision);
  },
});

harmless("report started", {
  world: offered,
  state: decided,
  async sound(r) {
    await r.started();
    await r.finished(1, null);
    await r.started(2);
    await r.finished(2);
  },
  async twice(r) {
    await Promise.all([r.started(), r.started()]);
    await r.finished(1, null);
    await Promise.all([r.started(2), r.started(2)]);
    await r.finished(2);
  },
  async order(r) {
    await r.finished(1, null);
    await r.started();
    await r.finished(2);
    await r.started(2);
  },
  async late(r) {
    await r.started();
    await r.finished(1, null);
    await r.started(2);
    await r.started(1);
    await r.finished(2);
    for (const epoch of [1, 2]) await r.started(epoch);
  },
});

harmless("report finished", {
  world: running,
  state: decided,
  async sound(r) {
    await r.finished(1, null);
    await r.started(2);
    await r.finished(2);
  },
  async twice(r) {
    await Promise.all([r.finished(1, null), r.finished(1, null)]);
    await r.started(2);
    await Promise.all([r.finished(2), r.finished(2)]);
  },
  async order(r) {
    await r.finished(1, null);
    await r.finished(2);
    await r.started(2);
  },
  async late(r) {
    await r.finished(1, null);
    for (const exitCode of [null, 0, 3]) await r.finished(1, exitCode);
    await r.started(2);
    for (const exitCode of [null, 0, 3]) await r.finished(1, exitCode);
    await r.finished(2);
    for (const epoch of [1, 2]) for (const exitCode of [null, 0, 3]) await r.finished(epoch, exitCode);
  },
});

harmless("stream INBOX", {
  world: running,
  state: decided,
  async sound(r) {
    await r.fromInbox(finishedReport(r.lease(), null));
    await r.fromInbox({ kind: "started", lease: r.lease(2), atMs: 1 });
    await r.fromInbox(finishedReport(r.lease(2), 0));
  },
  async twice(r) {
    for (const _ of [1, 2]) await r.fromInbox(finishedReport(r.lease(), null));
    for (const _ of [1, 2]) await r.fromInbox(finishedReport(r.lease(2), 0));
  },
  async order(r) {
    await r.fromInbox(finishedReport(r.lease(), null));
    await r.fromInbox(finishedReport(r.lease(2), 0));
    await r.fromInbox({ kind: "started", lease: r.lease(2), atMs: 1 });
  },
  async late(r) {
    await r.fromInbox(finishedReport(r.lease(), null));
    await r.fromInbox(finishedReport(r.lease(), 0));
    await r.fromInbox(finishedReport(r.lease(2), 0));
    for (const exitCode of [null, 3]) await r.fromInbox(finishedReport(r.lease(), exitCode));
    await r.fromInbox(finishedReport(r.lease(2), 3));
  },
});

/** What a heartbeat renews, and what is decided. */
const renewed = async (r: Replica) => ({
  ...(await r.decided()),
  renewed: r.service.heartbeat(AGENT, [r.lease(1), r.lease(2)]).renewed.map(({ epoch }) => epoch),
});

harmless("agent heartbeat", {
  world: offered,
  state: renewed,
  async sound(r) {
    await r.started();
    r.router.heartbeat(AGENT, [r.lease()]);
    await r.finished(1, null);
    await r.started(2);
    r.router.heartbeat(AGENT, [r.lease(2)]);
  },
  async twice(r) {
    await r.started();
    for (const _ of [1, 2]) r.router.heartbeat(AGENT, [r.lease(), r.lease()]);
    await r.finished(1, null);
    await r.started(2);
    for (const _ of [1, 2]) r.router.heartbeat(AGENT, [r.lease(2)]);
  },
  async order(r) {
    r.router.heartbeat(AGENT, [r.lease()]);
    await r.started();
    await r.finished(1, null);
    r.router.heartbeat(AGENT, [r.lease(2)]);
    r.router.heartbeat(AGENT, [r.lease(1)]);
    await r.started(2);
  },
  async late(r) {
    await this.sound(r);
    r.router.heartbeat(AGENT, [r.lease(1)]);
  },
});

const renewal = (r: Replica, epoch: number): PeerMessage => ({
  kind: "renew",
  from: "r2",
  agent: AGENT,
  held: [r.lease(epoch)],
});

harmless("peer renew", {
  world: offered,
  state: renewed,
  async sound(r) {
    await r.started();
    r.router.received(renewal(r, 1));
    await r.finished(1, null);
    await r.started(2);
    r.router.received(renewal(r, 2));
  },
  async twice(r) {
    await r.started();
    for (const _ of [1, 2]) r.router.received(renewal(r, 1));
    await r.finished(1, null);
    await r.started(2);
    for (const _ of [1, 2]) r.router.received(renewal(r, 2));
  },
  async order(r) {
    r.router.received(renewal(r, 1));
    await r.started();
    await r.finished(1, null);
    for (const epoch of [2, 1]) r.router.received(renewal(r, epoch));
    await r.started(2);
  },
  async late(r) {
    await this.sound(r);
    r.router.received(renewal(r, 1));
  },
});

/** Of what goes through to an agent: what is decided, and what the agent was told, each once. What it makes of that is tested at it. */
const passedOn = async (r: Replica) => ({
  ...(await r.decided()),
  told: [...new Set(r.told.map((told) => JSON.stringify(told).replaceAll(r.runId, "RUN")))],
});
const passing: Record<"verdict" | "stop", (r: Replica) => PeerMessage> = {
  verdict: (r) => ({
    kind: "verdict",
    agent: AGENT,
    verdict: { renewed: [], superseded: [r.lease()], cancels: [] },
  }),
  stop: (r) => ({ kind: "stop", agent: AGENT, lease: r.lease(), reason: "cancelled" }),
};

function passedOnAs(message: (r: Replica) => PeerMessage): Deliveries<Replica> {
  const receive = (r: Replica) => r.router.received(message(r));
  return {
    world: offered,
    state: passedOn,
    async sound(r) {
      await r.started();
      receive(r);
      await r.finished();
    },
    async twice(r) {
      await r.started();
      for (const _ of [1, 2]) receive(r);
      await r.finished();
    },
    async order(r) {
      receive(r);
      await r.started();
      await r.finished();
    },
    async late(r) {
      await this.sound(r);
      receive(r);
    },
  };
}

harmless("peer verdict", passedOnAs(passing.verdict));
harmless("peer stop", passedOnAs(passing.stop));
