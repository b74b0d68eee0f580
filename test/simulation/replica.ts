/** A host with a replica on it: the real `RunService` behind simulated ports, and what a gateway does around it. */
import type { Logger } from "pino";
import { Acknowledgements } from "../../control-plane/gateway/acknowledgements.ts";
import { chooseEnvironment, type EnvironmentLoad } from "../../control-plane/placement/choose.ts";
import type { EnvironmentVerdict } from "../../control-plane/placement/placement.ts";
import type { OfferQueue, PlacementDesk, RunStore, StoredBatch } from "../../control-plane/runs/ports.ts";
import { type RecoveredRun, RunService } from "../../control-plane/runs/run-service.ts";
import { evolve, initialState, isTerminalRun, stepOf } from "../../shared/engine/state.ts";
import { InsituError } from "../../shared/errors.ts";
import type { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import type { Pipeline } from "./scenario.ts";
import type { ReplicaEnd, SentReport, Session, ToReplica } from "./session.ts";
import { type Host, Process } from "./timeline.ts";
import type { World } from "./world.ts";

export const HEARTBEAT_MS = 1_500;
const LEASE_TTL_MS = 6_000;
const PUBLISH_TIMEOUT_MS = 5_000;
const START_RETRY_MS = 1_000;
const NATS = "nats";

interface Connected {
  session: Session;
  environment: string;
  freeSlots: number;
}

export class Replica implements ReplicaEnd, Host {
  readonly name: string;
  skewMs = 0;
  service: RunService | undefined;
  readonly #world: World;
  #process: Process;
  #lives = 0;
  readonly #agents = new Map<string, Connected>();
  readonly #acks = new Map<Session, Acknowledgements>();

  constructor(world: World, name: string) {
    this.#world = world;
    this.name = name;
    this.#process = new Process(world.timeline, this);
    this.#process.alive = false;
  }

  get alive(): boolean {
    return this.#process.alive;
  }

  get serves(): boolean {
    return this.alive && this.service !== undefined;
  }

  start(): void {
    if (this.alive) return;
    this.#process = new Process(this.#world.timeline, this);
    this.#lives += 1;
    this.#world.note(() => `${this.name} starts`);
    void this.#open(this.#process);
  }

  crash(): void {
    if (!this.alive) return;
    this.#world.note(() => `${this.name} crashes`);
    this.#process.alive = false;
    this.service = undefined;
    const sessions = [...this.#agents.values()].map(({ session }) => session);
    this.#agents.clear();
    this.#acks.clear();
    // Agents notice at once, or by the silence.
    for (const session of sessions) if (this.#world.chance.happens(0.5)) session.break(false);
  }

  async create(pipeline: Pipeline): Promise<void> {
    await this.service?.create({ version: pipeline.version, params: {}, by: "somebody" });
  }

  async cancel(runId: string): Promise<void> {
    await this.service?.cancel(runId, "somebody", "no longer wanted");
  }

  factsChanged(): void {
    this.service?.factsChanged();
  }

  receive(session: Session, message: ToReplica): void {
    const { service } = this;
    if (!this.alive || !service) return;
    const { name } = session.agent;
    if (message.kind === "hello") {
      const environment = this.#world.environmentOf(name);
      this.#agents.set(name, { session, environment, freeSlots: message.slots - message.held.length });
      session.toAgent({ kind: "welcome", wallMs: this.#process.clock.wallMs() });
      return;
    }
    const connected = this.#agents.get(name);
    if (connected?.session === session) connected.freeSlots = message.freeSlots;
    const held = this.#world.bug === "renew-all-leases" ? this.#allOf(name) : message.held;
    session.toAgent({ kind: "reply", seq: message.seq, verdict: service.heartbeat(name, held) });
  }

  reports(session: Session, reports: SentReport[]): void {
    for (const { seq, report } of reports) void this.#report(session, seq, report);
  }

  broken(session: Session): void {
    this.#acks.delete(session);
    if (this.#agents.get(session.agent.name)?.session === session) this.#agents.delete(session.agent.name);
  }

  async #report(session: Session, seq: number, given: ReportPayload): Promise<void> {
    const [{ service }, process] = [this, this.#process];
    if (!process.alive || !service) return;
    const { name } = session.agent;
    const acks = this.#acks.get(session) ?? new Acknowledgements();
    this.#acks.set(session, acks);
    const done = acks.begin(seq);
    const answer = (): void => {
      const taken = acks.take();
      if (taken && process.alive) session.acknowledge(taken);
    };
    const report = this.#world.bug === "accept-stale-epoch" ? this.#refreshed(given) : given;
    if (this.#world.bug === "ack-before-durable") {
      done();
      answer();
    }
    try {
      const verdict = await service.accept(name, report);
      if (!process.alive) return;
      done(verdict.accepted ? undefined : verdict);
      answer();
    } catch (thrown) {
      const error = InsituError.from(thrown);
      this.#world.note(() => `${this.name} cannot take ${report.kind} of ${name}: ${error.message}`);
      if (process.alive) session.break(false);
    }
  }

  async #open(process: Process): Promise<void> {
    const store = this.#store(process);
    let batches: StoredBatch[] | undefined;
    while (!batches) {
      batches = await this.#ask(process, "read all", () => [...this.#world.runs.batches]).catch(
        () => undefined,
      );
      if (!batches) await process.clock.sleep(START_RETRY_MS);
    }
    const life = this.#world.bug === "reuse-message-id" ? 1 : this.#lives;
    const { clock } = process;
    const forgets = this.#world.bug === "forget-owed-effect" && this.#lives > 1;
    const service = new RunService({
      clock: forgets ? { ...clock, after: forgettingFirst(clock.after) } : clock,
      random: () => this.#world.chance.next(),
      log: this.#log(),
      store,
      offers: this.#offers(process),
      plans: { load: (version) => Promise.resolve(this.#world.pipeline(version).plan) },
      desk: this.#desk(),
      agents: {
        cancel: (agent, lease, reason) => {
          const connected = this.#agents.get(agent);
          connected?.session.toAgent({ kind: "cancel", lease, reason });
          return connected !== undefined;
        },
      },
      instanceId: `${this.name}.${life}`,
      leaseTtlMs: LEASE_TTL_MS,
      offerTtlMs: this.#world.scenario.offerTtlMs,
    });
    service.start(this.#unfinished(batches));
    this.service = service;
    this.#world.note(() => `${this.name} serves`);
  }

  #unfinished(batches: readonly StoredBatch[]): RecoveredRun[] {
    const runs = new Map<string, RecoveredRun>();
    for (const { runId, events, seq } of batches) {
      let state = runs.get(runId)?.state;
      for (const event of events) {
        if (event.kind === "run.created") state = initialState(this.#world.pipeline(event.version).plan);
        if (state) state = evolve(state, event);
      }
      if (state) runs.set(runId, { runId, state, seq });
    }
    return [...runs.values()].filter(({ state }) => !isTerminalRun(state.status));
  }

  /** A request to NATS: both ways may fail, and after the time-out nobody knows which did. */
  #ask<T>(process: Process, what: string, work: () => T): Promise<T> {
    const { network } = this.#world;
    return new Promise((resolve, reject) => {
      const timer = process.clock.after(PUBLISH_TIMEOUT_MS, () => {
        this.#world.note(() => `${this.name} hears nothing of: ${what}`);
        reject(new InsituError("store.unavailable", `${what}: no answer`, { retryable: true }));
      });
      network.send(this.name, NATS, () => {
        const answer = work();
        network.send(NATS, this.name, () => {
          if (!process.alive) return;
          timer.cancel();
          resolve(answer);
        });
      });
    });
  }

  #store(process: Process): RunStore {
    return {
      append: (runId, events, expectedSeq, messageId) =>
        this.#ask(process, `append ${messageId}`, () => {
          const result = this.#world.runs.append(runId, events, expectedSeq, messageId);
          if (process.alive && this.#world.chance.happens(this.#world.crashAtAppend)) this.#world.crash(this);
          return result;
        }),
      read: (runId, afterSeq) => this.#ask(process, "read", () => this.#world.runs.read(runId, afterSeq)),
    };
  }

  #offers(process: Process): OfferQueue {
    return {
      publish: (offer) => this.#ask(process, "offer", () => this.#world.work.publish(offer)),
    };
  }

  #desk(): PlacementDesk {
    const world = this.#world;
    return {
      policyVersion: "policy",
      explain: (pipeline, step): EnvironmentVerdict[] => {
        const allowed = world.closed ? [] : world.allowedFor(pipeline, step.id);
        return world.scenario.environments.map((environment) => ({
          environment,
          allowed: allowed.includes(environment),
          reasons: allowed.includes(environment)
            ? []
            : [{ policy: "rule", dataset: null, message: "not there" }],
        }));
      },
      choose: (verdicts) => chooseEnvironment(verdicts, this.#loads()),
      poolCapacity: (pool) => world.scenario.pools.get(pool),
      classificationOf: () => "public",
    };
  }

  #loads(): Map<string, EnvironmentLoad> {
    const loads = new Map<string, EnvironmentLoad>();
    for (const { environment, freeSlots } of this.#agents.values()) {
      const load = loads.get(environment) ?? { agents: 0, freeSlots: 0, outstandingOffers: 0 };
      const outstandingOffers = this.service?.outstandingOffers(environment) ?? 0;
      loads.set(environment, {
        agents: load.agents + 1,
        freeSlots: load.freeSlots + freeSlots,
        outstandingOffers,
      });
    }
    return loads;
  }

  /** Nothing that is logged may change what happens; an impossible state is a fault by itself. */
  #log(): Logger {
    const ignore = (): void => undefined;
    const error = (fields: { err?: unknown }, text: string): void => {
      const why = fields.err instanceof Error ? fields.err.message : String(fields.err);
      this.#world.note(() => `${this.name} logs: ${text}: ${why}`);
      if (text.startsWith("run set aside")) this.#world.witness.fail("no state is impossible", why);
    };
    return { debug: ignore, info: ignore, warn: ignore, error } as unknown as Logger;
  }

  #allOf(agent: string): LeaseKey[] {
    return [...this.#world.witness.runs.keys()].flatMap((runId) => {
      const state = this.service?.stateOf(runId);
      return (state?.plan.steps ?? []).flatMap(({ id: stepId }) => {
        const step = stepOf(state!, stepId)!;
        const { attempt, epoch } = step;
        return step.status === "running" && step.agent === agent ? [{ runId, stepId, attempt, epoch }] : [];
      });
    });
  }

  #refreshed(report: ReportPayload): ReportPayload {
    const state = this.service?.stateOf(report.lease.runId);
    const step = state && stepOf(state, report.lease.stepId);
    if (!step || report.kind !== "finished" || step.epoch === 0) return report;
    return { ...report, lease: { ...report.lease, attempt: step.attempt, epoch: step.epoch } };
  }
}

function forgettingFirst(after: Process["clock"]["after"]): Process["clock"]["after"] {
  let forgotten = false;
  return (ms, run) => {
    if (forgotten) return after(ms, run);
    forgotten = true;
    return { cancel: () => undefined };
  };
}
