/**
 * Long because everything that a run asks of the world meets here: offers, leases, pools, timers and shards.
 *
 * Runs the runs of the shards that this replica owns: one actor each, offers out, reports in, leases and timers
 * watched.
 *
 * Holds nothing that it cannot rebuild: whoever takes a shard over is given its unfinished runs, fences off the
 * former owner, and performs the effects that they are owed again.
 */
import { createHash } from "node:crypto";
import type { Logger } from "pino";
import { type Decision, refuseResolution } from "../../shared/engine/disconnection.ts";
import { type Effect, type Input, owed, type TimerKind } from "../../shared/engine/engine.ts";
import {
  environmentOf,
  evolve,
  holdsPools,
  initialState,
  isDoubted,
  isTerminalRun,
  isTerminalStep,
  type RunState,
  stepOf,
} from "../../shared/engine/state.ts";
import { InsituError } from "../../shared/errors.ts";
import type { ParamValue } from "../../shared/model/spec.ts";
import { type Clock, idTimeMs, newId, newStop, type Random, type Timer } from "../../shared/system.ts";
import type { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import type { ReportSignature } from "../../shared/wire/report-signature.ts";
import { POOL_SHARD, SHARD_COUNT, shardOf } from "../../shared/wire/subjects.ts";
import type { HeartbeatVerdict, LeaseKeeper, ReportSink, ReportVerdict } from "../gateway/ports.ts";
import { LeaseTable } from "../leases/lease-table.ts";
import { explainRefusal } from "../placement/choose.ts";
import { Fifo } from "./fifo.ts";
import { buildOffer, ownersOf } from "./offers.ts";
import { PoolBook } from "./pool-book.ts";
import type { AgentLine, OfferQueue, PlacementDesk, PlanSource, RepeatSeed, RunStore } from "./ports.ts";
import { type ActorWorld, elsewhere, isElsewhere, RunActor } from "./run-actor.ts";
import { TimerQueue } from "./timer-queue.ts";

const LEASE_CHECK_MS = 250;
const OFFER_RETRY_MS = 500;
const CONFIRM_RETRY_MS = 250;
/** Before each look at the stream for a grant that is not known here. */
const LOOK_AGAIN_MS = [0, 200, 600, 1_200];
/** Grants that were looked for in vain. */
const DENIED_MAX = 1_000;
const REOPENED_MAX = 256;
/** Offers on their way to the queue at the same time. */
const PUBLISH_CONCURRENCY = 64;

export interface StepResolution {
  runId: string;
  step: string;
  decision: Decision;
  evenIfItRan: boolean;
  by: string;
  reason: string;
}

export interface RunServiceOptions {
  clock: Clock;
  random: Random;
  log: Logger;
  store: RunStore;
  offers: OfferQueue;
  plans: PlanSource;
  desk: PlacementDesk;
  agents: AgentLine;
  /** Unique per process: prefix of message ids. */
  instanceId: string;
  leaseTtlMs: number;
  offerTtlMs: number;
  /** What the runs' histories call this replica. */
  replicaId: string;
  /** True when the run is known to have ended. */
  isOver(runId: string): boolean;
  /** Asks the record itself, after the call, whether the shard is still owned here under that epoch. */
  confirm(shard: number, epoch: number): Promise<boolean>;
}

/** An unfinished run, as read from the stream. */
export interface RecoveredRun {
  runId: string;
  state: RunState;
  seq: number;
}

interface DueTimer {
  runId: string;
  timer: TimerKind;
  step: string | null;
  /** As the run knows it: what is taken over may be looked at later than that. */
  dueAtMs: number;
}

export class RunService implements ReportSink, LeaseKeeper {
  readonly #options: RunServiceOptions;
  readonly #actors = new Map<string, RunActor>();
  /** Epoch by shard, of the shards that this replica decides for. */
  readonly #owned = new Map<number, number>();
  /** Of the last restore from a backup; 0: there was none. */
  #epochFloor = 0;
  readonly #leases: LeaseTable;
  readonly #pools = new PoolBook();
  /** Runs whose places in pools are not all known yet: until they are, nothing new is placed in any pool. */
  readonly #counting = new Set<string>();
  /** Runs that were just created here, by somebody who may have lost the shard without knowing. */
  readonly #unconfirmed = new Set<string>();
  readonly #timers = new TimerQueue<DueTimer>();
  /** Steps that wait for a place or a pool: tried again when the facts change. */
  readonly #held = new Map<string, { runId: string; stepId: string }>();
  /** Environment by `run/step` of the offers that nobody has taken. */
  readonly #offered = new Map<string, string>();
  readonly #outstanding = new Map<string, number>();
  readonly #stop = newStop();
  readonly #background = new Set<Promise<unknown>>();
  #wake: { atMs: number; timer: Timer } | undefined;
  #leaseTimer: Timer | undefined;
  /** Runs that have ended and are still heard of: their last logs, outcomes that were superseded. */
  readonly #reopened = new Map<string, Promise<RunActor | undefined>>();
  /** Grants that were looked for and are not in the stream: not looked for again. */
  readonly #denied = new Set<string>();
  readonly #offers = new Fifo<{ state: RunState; effect: Extract<Effect, { kind: "offer" }> }>();
  #publishing = 0;
  #messageCount = 0;

  constructor(options: RunServiceOptions) {
    this.#options = options;
    this.#leases = new LeaseTable(options.leaseTtlMs);
  }

  /** Starts the clocks. */
  start(): void {
    this.#leaseTimer = this.#options.clock.every(LEASE_CHECK_MS, () => this.#expireLeases());
  }

  /**
   * Decides for these shards (with their epochs) from now on, and goes on with their unfinished runs.
   * `epochFloor`: of the last restore from a backup, 0 for none.
   */
  own(epochs: ReadonlyMap<number, number>, recovered: readonly RecoveredRun[], epochFloor = 0): void {
    this.#epochFloor = epochFloor;
    for (const [shard, epoch] of epochs) this.#owned.set(shard, epoch);
    for (const run of recovered) this.adopt(run);
    if (recovered.length > 0)
      this.#options.log.info({ runs: recovered.length }, "unfinished runs taken over");
  }

  /** A run of one of our shards that was created elsewhere. Does nothing for one that is known. */
  adopt({ runId, state, seq }: RecoveredRun): void {
    const shardEpoch = this.#owned.get(shardOf(runId));
    if (shardEpoch === undefined || this.#actors.has(runId)) return;
    // Created, or taken over, by a later owner of the shard, of whom nothing was heard here yet.
    if (state.shardEpoch > shardEpoch) return;
    const actor = this.#actor(runId, state, seq);
    // The former owner may go on placing its steps until the take-over is in the stream.
    if (usesPools(state)) this.#counting.add(runId);
    const { replicaId } = this.#options;
    const base = { atMs: this.#now(), shardEpoch, replica: replicaId, ...this.#floor() };
    const taken = actor.submit({ kind: "take-over", ...base });
    this.#detach(
      taken.then(() => {
        this.#countPools(runId, actor.state);
        this.#performOwed(actor);
      }),
      "run taken over",
    );
  }

  /** Decides for them no more. Resolves when nothing of theirs is on its way to the stream. */
  async disown(shards: ReadonlySet<number>): Promise<void> {
    for (const shard of shards) this.#owned.delete(shard);
    const gone = [...this.#actors.values()].filter(({ runId }) => shards.has(shardOf(runId)));
    const retired = gone.map((actor) => actor.retire(elsewhere(actor.runId)));
    for (const actor of gone) this.#forget(actor.runId, actor.state);
    for (const runId of this.#reopened.keys()) if (shards.has(shardOf(runId))) this.#reopened.delete(runId);
    await Promise.all(retired);
  }

  owns(runId: string): boolean {
    return this.#owned.has(shardOf(runId));
  }

  /** Shard for a new run: ours if any is, and one for all runs that share pools. */
  async shardFor(version: string): Promise<number> {
    const plan = await this.#options.plans.load(version);
    if (plan.steps.some(({ pools }) => pools.length > 0)) return POOL_SHARD;
    const owned = [...this.#owned.keys()];
    const shards = owned.length > 0 ? owned : Array.from({ length: SHARD_COUNT }, (_, shard) => shard);
    return shards[Math.floor(this.#options.random() * shards.length)]!;
  }

  /** An id that belongs to the shard: one in 64 does. */
  newRunId(shard: number): string {
    for (;;) {
      const runId = newId(this.#now());
      if (shardOf(runId) === shard) return runId;
    }
  }

  /** The same on every replica. Its shard is whose it may be. */
  async seededRunId(version: string, seed: RepeatSeed): Promise<string> {
    const plan = await this.#options.plans.load(version);
    const pooled = plan.steps.some(({ pools }) => pools.length > 0);
    for (let count = 0; ; count++) {
      const runId = newId(seed.firstMs, createHash("sha256").update(`${seed.key}/${count}`).digest());
      if (!pooled || shardOf(runId) === POOL_SHARD) return runId;
    }
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("unavailable", "the server stops"));
    this.#leaseTimer?.cancel();
    this.#wake?.timer.cancel();
    await Promise.allSettled(this.#background);
  }

  /**
   * Resolves with the id once the run is durable. A repeat with the same id is the same run.
   *
   * @throws shard.elsewhere (retryable) when another replica decides for the id
   */
  async create(request: {
    version: string;
    params: Record<string, ParamValue>;
    by: string;
    runId?: string;
  }): Promise<{ runId: string; seq: number }> {
    const { version, params, by } = request;
    const plan = await this.#options.plans.load(version);
    const runId = request.runId ?? this.newRunId(await this.shardFor(version));
    if (!this.owns(runId)) throw elsewhere(runId);
    const atMs = this.#now();
    const known = this.#actors.get(runId);
    const actor = known ?? this.#actor(runId, initialState(plan), 0);
    const shardEpoch = this.#owned.get(shardOf(runId))!;
    if (!known && usesPools(actor.state)) this.#unconfirmed.add(runId);
    try {
      const created = actor.submit({
        kind: "create",
        atMs,
        runId,
        version,
        params,
        by,
        shardEpoch,
        ...this.#floor(),
        ...(idTimeMs(runId) < (this.#epochFloor + 1) * 1_000 ? { mayHaveLived: true } : {}),
      });
      // A former owner may have created it, of which nothing was heard here: then it is taken over from that one.
      const taken = actor.submit({
        kind: "take-over",
        atMs,
        shardEpoch,
        replica: this.#options.replicaId,
        ...this.#floor(),
      });
      await Promise.all([created, taken]);
    } finally {
      const { state } = actor;
      if (!known && (state.runId === "" || isTerminalRun(state.status))) this.#forget(runId, state);
    }
    if (this.#unconfirmed.has(runId)) this.#detach(this.#confirm(runId, shardEpoch), "run confirmed");
    this.#options.log.info({ runId, pipeline: plan.spec.name, version }, "run created");
    return { runId, seq: actor.seq };
  }

  /** @throws run.terminal, shard.elsewhere */
  async cancel(runId: string, by: string, reason: string): Promise<{ seq: number }> {
    if (!this.owns(runId)) throw elsewhere(runId);
    const actor = this.#actors.get(runId);
    if (!actor) throw new InsituError("run.terminal", `run ${runId} is not active`);
    await actor.submit({ kind: "cancel", atMs: this.#now(), by, reason });
    return { seq: actor.seq };
  }

  /**
   * An operator's decision about a step whose agent is cut off.
   *
   * @throws run.terminal, step.not-resolvable, shard.elsewhere
   */
  async resolve(request: StepResolution): Promise<{ seq: number }> {
    const { runId, step, decision, evenIfItRan, by, reason } = request;
    if (!this.owns(runId)) throw elsewhere(runId);
    const actor = this.#actors.get(runId);
    if (!actor) throw new InsituError("run.terminal", `run ${runId} is not active`);
    const refusal = refuseResolution(actor.state, request);
    if (refusal !== null) throw new InsituError("step.not-resolvable", refusal);
    const { epoch } = stepOf(actor.state, step)!;
    const about = { step, epoch, by, reason, decision, evenIfItRan };
    await actor.submit({ kind: "resolve", atMs: this.#now(), ...about });
    return { seq: actor.seq };
  }

  stateOf(runId: string): RunState | undefined {
    return this.#actors.get(runId)?.state;
  }

  /** Offers to an environment that nobody has taken yet: what placement weighs. */
  outstandingOffers(environment: string): number {
    return this.#outstanding.get(environment) ?? 0;
  }

  /** Resources or the fleet changed: what could not be placed may be placeable now. */
  factsChanged(): void {
    for (const { runId, stepId } of [...this.#held.values(), ...this.#pools.waiting()])
      this.#replace(runId, stepId);
  }

  /** @throws shard.elsewhere (retryable) when another replica decides for the run */
  async accept(agent: string, report: ReportPayload, signed?: ReportSignature): Promise<ReportVerdict> {
    const { runId, stepId, attempt, epoch } = report.lease;
    if (!this.owns(runId)) throw elsewhere(runId);
    const actor = this.#actors.get(runId) ?? (await this.#reopenOwn(runId));
    if (!actor) {
      if (await this.#isGrantedLater(agent, report.lease)) throw elsewhere(runId);
      return { accepted: false, code: "not-found", message: `there is no run ${runId}` };
    }
    if (!isGranted(actor.state, stepId, epoch, agent)) {
      // A grant that is newer than what is known here was made by a later owner of the shard: that one decides.
      const known = stepOf(actor.state, stepId)?.epoch ?? 0;
      if (epoch > known && (await this.#isGrantedLater(agent, report.lease))) throw elsewhere(runId);
      const message = `no attempt of step ${stepId} under epoch ${epoch} was granted to the environment of ${agent}`;
      return { accepted: false, code: "auth.denied", message };
    }
    const atMs = this.#now();
    const about = { atMs, step: stepId, attempt, epoch, agent };
    await actor.submit(
      report.kind === "started"
        ? { kind: "started", ...about, ...(signed && { said: { signed, reportedAtMs: report.atMs } }) }
        : {
            kind: "finished",
            ...about,
            outcome: report.outcome,
            ...(signed && { signed }),
            random: this.#options.random(),
          },
    );
    return { accepted: true };
  }

  /** True when that grant of the step went to the agent's environment. Also for runs that are decided elsewhere. */
  async wasGranted(agent: string, at: { runId: string; stepId: string; epoch: number }): Promise<boolean> {
    const { runId, stepId, epoch } = at;
    const known = this.#actors.get(runId) ?? (await this.#reopen(runId));
    if (known && isGranted(known.state, stepId, epoch, agent)) return true;
    // What is known here may be older than the grant, also of a run that this replica believes to decide for.
    if (known && epoch <= (stepOf(known.state, stepId)?.epoch ?? 0)) return false;
    return await this.#isGrantedLater(agent, at);
  }

  /**
   * Whether the stream has a grant that is not known here. What is refused is never sent again, so it is looked for
   * more than once: a NATS server that has just become the leader may not show all that was acknowledged before.
   */
  async #isGrantedLater(
    agent: string,
    { runId, stepId, epoch }: { runId: string; stepId: string; epoch: number },
  ): Promise<boolean> {
    const key = `${agent}/${runId}/${stepId}/${epoch}`;
    if (this.#denied.has(key)) return false;
    for (const waitMs of LOOK_AGAIN_MS) {
      if (waitMs > 0) await this.#options.clock.sleep(waitMs, this.#stop.signal);
      this.#reopened.delete(runId);
      const fresh = await this.#reopen(runId);
      if (fresh && isGranted(fresh.state, stepId, epoch, agent)) return true;
    }
    this.#denied.add(key);
    if (this.#denied.size > DENIED_MAX) this.#denied.delete(this.#denied.values().next().value!);
    return false;
  }

  heartbeat(agent: string, held: LeaseKey[]): HeartbeatVerdict {
    return this.#leases.heartbeat(agent, held, this.#options.clock.monotonicMs(), (key) => {
      const actor = this.#actors.get(key.runId);
      // Never superseded for want of knowledge: the run may be on its way here.
      if (!actor) return this.#options.isOver(key.runId) ? "superseded" : "expected";
      const current = stepOf(actor.state, key.stepId);
      const open = current !== undefined && holdsPools(current.status);
      // The report of the start may still be on its way.
      // Started after the backup that this run was restored from, it may be: to stop it half-way decides nothing.
      if (current?.epoch !== key.epoch && isDoubted(actor.state, key.stepId)) return "expected";
      const its = open && current.epoch === key.epoch && (current.agent ?? agent) === agent;
      if (its && current.status === "disconnected") {
        const back = { atMs: this.#now(), step: key.stepId, epoch: key.epoch, agent };
        this.#detach(actor.submit({ kind: "reconnected", ...back }), "agent is back");
      }
      // A grant that this replica has not heard of is of a later owner of the shard.
      return its || key.epoch > (current?.epoch ?? 0) ? "expected" : "superseded";
    });
  }

  #floor(): { epochFloor?: number } {
    return this.#epochFloor === 0 ? {} : { epochFloor: this.#epochFloor };
  }

  #now(): number {
    return this.#options.clock.wallMs();
  }

  #actor(runId: string, state: RunState, seq: number): RunActor {
    const actor = new RunActor(runId, state, seq, this.#world(runId));
    this.#actors.set(runId, actor);
    return actor;
  }

  #world(runId: string): ActorWorld {
    return {
      store: this.#options.store,
      place: (current, stepId, atMs) => this.#place(runId, current, stepId, atMs),
      perform: (current, effect) => this.#perform(runId, current, effect),
      placed: (current, stepIds) => {
        // Decided twice, when another writer was first, and not offered the second time; or it ended in the same batch.
        for (const id of stepIds)
          if (!holdsPools(stepOf(current, id)?.status)) this.#release(runId, current, id);
      },
      nextMessageId: () => `${this.#options.instanceId}-${++this.#messageCount}`,
      pause: (ms) => this.#options.clock.sleep(ms, this.#stop.signal),
      setAside: (id, err) =>
        this.#options.log.error({ runId: id, err }, "run set aside: its state is impossible"),
      shardEpoch: () => this.#owned.get(shardOf(runId)) ?? 0,
      caughtUp: (id) => {
        const actor = this.#actors.get(id);
        if (!actor) return;
        this.#holdPools(id, actor.state);
        this.#performOwed(actor);
      },
      lost: (id, shardEpoch) => {
        this.#reopened.delete(id);
        const shard = shardOf(id);
        // What an actor of former times has heard says nothing of a shard that is ours again meanwhile.
        if ((this.#owned.get(shard) ?? 0) >= shardEpoch) return;
        // All of the shard: going on with its other runs, we would give away the places in pools of what is lost.
        this.#detach(this.disown(new Set([shard])), "shard given up");
      },
    };
  }

  #performOwed(actor: RunActor): void {
    const { runId } = actor;
    if (this.#actors.get(runId) !== actor) return;
    for (const effect of owed(actor.state)) {
      if (effect.kind === "place") this.#replace(runId, effect.step);
      // Nobody was there to hear of the agent: it has the time of a lease to come back before it is given up.
      else if (effect.kind === "timer" && effect.timer === "disconnect")
        this.#setTimer(runId, effect, this.#now() + this.#options.leaseTtlMs);
      else this.#perform(runId, actor.state, effect);
    }
  }

  /** A run that has ended, read again: a late outcome is kept as evidence and changes nothing. */
  #reopen(runId: string): Promise<RunActor | undefined> {
    const known = this.#reopened.get(runId);
    if (known) return known;
    const opened = this.#readAgain(runId);
    this.#reopened.set(runId, opened);
    const forget = (): void => void this.#reopened.delete(runId);
    opened.then((actor) => actor ?? forget(), forget);
    if (this.#reopened.size > REOPENED_MAX) this.#reopened.delete(this.#reopened.keys().next().value!);
    return opened;
  }

  async #reopenOwn(runId: string): Promise<RunActor | undefined> {
    const read = await this.#reopen(runId);
    const active = this.#actors.get(runId);
    if (active) return active;
    if (!read || isTerminalRun(read.state.status)) return read;
    // Created by a former owner of the shard, who did not know yet that it was one.
    this.#reopened.delete(runId);
    this.adopt(read);
    const adopted = this.#actors.get(runId);
    if (!adopted) throw elsewhere(runId);
    return adopted;
  }

  async #readAgain(runId: string): Promise<RunActor | undefined> {
    const batches = await this.#options.store.read(runId, 0);
    const created = batches[0]?.events[0];
    if (created?.kind !== "run.created") return undefined;
    let state = initialState(await this.#options.plans.load(created.version));
    for (const batch of batches) for (const event of batch.events) state = evolve(state, event);
    return new RunActor(runId, state, batches.at(-1)!.seq, this.#world(runId));
  }

  #place(runId: string, state: RunState, stepId: string, atMs: number): Input | undefined {
    const spec = state.plan.steps[state.plan.indexOf.get(stepId)!]!;
    const { desk, offerTtlMs } = this.#options;
    const verdicts = desk.explain(state.plan.spec.name, spec);
    const environment = desk.choose(verdicts);
    const key = `${runId}/${stepId}`;
    if (environment === null) {
      this.#held.set(key, { runId, stepId });
      return {
        kind: "hold",
        atMs,
        step: stepId,
        reason: "unplaceable",
        message: explainRefusal(spec, verdicts),
      };
    }
    const ref = { runId, stepId };
    if (spec.pools.length > 0 && (this.#counting.size > 0 || this.#unconfirmed.has(runId))) {
      this.#pools.wait(ref, spec.pools);
      return undefined;
    }
    const taken = this.#pools.acquire(ref, spec.pools, (pool) => desk.poolCapacity(pool));
    if (!taken.acquired) return { kind: "hold", atMs, step: stepId, reason: "pool", message: taken.message };
    this.#held.delete(key);
    const { policyVersion } = desk;
    const disconnect = desk.disconnectOf?.(environment);
    const expiresAtMs = atMs + offerTtlMs;
    const offer = { kind: "offer", atMs, step: stepId, environment, policyVersion, expiresAtMs } as const;
    return disconnect ? { ...offer, disconnect } : offer;
  }

  #replace(runId: string, stepId: string): void {
    const actor = this.#actors.get(runId);
    if (!actor || isTerminalRun(actor.state.status)) {
      this.#held.delete(`${runId}/${stepId}`);
      this.#pools.forget({ runId, stepId });
      return;
    }
    // It may have failed or been cancelled while it waited: a place that it took now would never be given back.
    const waits = stepOf(actor.state, stepId);
    if (!waits || isTerminalStep(waits.status)) {
      this.#held.delete(`${runId}/${stepId}`);
      this.#pools.forget({ runId, stepId });
      return;
    }
    // Decided in its turn: a place that is taken before would be given back by what is on its way.
    const placed = actor.submit({ kind: "place", atMs: this.#now(), step: stepId });
    this.#detach(placed, "step placed again");
  }

  #perform(runId: string, state: RunState, effect: Effect): void {
    switch (effect.kind) {
      case "offer":
        this.#noteOffer(`${runId}/${effect.step}`, effect.environment);
        this.#offers.push({ state, effect });
        if (this.#publishing < PUBLISH_CONCURRENCY) this.#detach(this.#publishOffers(), "offers published");
        return;
      case "lease.begin": {
        const { step, attempt, epoch, agent } = effect;
        this.#timers.delete(`${runId}/${step}`);
        this.#forgetOffer(`${runId}/${step}`);
        this.#leases.begin({ runId, stepId: step, attempt, epoch }, agent, this.#options.clock.monotonicMs());
        return;
      }
      case "lease.end":
        this.#timers.delete(`${runId}/${effect.step}`);
        this.#forgetOffer(`${runId}/${effect.step}`);
        return this.#leases.end(runId, effect.step, effect.epoch);
      case "cancel":
        this.#leases.cancel(runId, effect.step, effect.reason);
        this.#tell(runId, effect, effect.reason);
        return;
      case "supersede":
        this.#tell(runId, effect, "superseded: the attempt is no longer this agent's");
        return;
      case "timer":
        return this.#setTimer(runId, effect);
      case "release":
        // Offered again in the same batch: the place that it has is still its own.
        if (!holdsPools(stepOf(state, effect.step)?.status)) this.#release(runId, state, effect.step);
        return;
      case "finished":
        return this.#finish(runId, state);
      default:
        return;
    }
  }

  #tell(
    runId: string,
    to: { step: string; attempt: number; epoch: number; agent: string },
    reason: string,
  ): void {
    const lease = { runId, stepId: to.step, attempt: to.attempt, epoch: to.epoch };
    this.#options.agents.cancel(to.agent, lease, reason);
  }

  #release(runId: string, state: RunState, stepId: string): void {
    this.#forgetOffer(`${runId}/${stepId}`);
    const { pools } = state.plan.steps[state.plan.indexOf.get(stepId)!]!;
    if (pools.length === 0) return;
    for (const next of this.#pools.release({ runId, stepId }, pools)) this.#replace(next.runId, next.stepId);
  }

  /** Counts the places that the run's history says it has; what has ended has none. */
  #holdPools(runId: string, state: RunState): void {
    state.plan.steps.forEach((spec, index) => {
      if (spec.pools.length === 0) return;
      const { status } = state.steps.get(index);
      if (holdsPools(status))
        for (const pool of spec.pools) this.#pools.hold({ runId, stepId: spec.id }, pool);
      else if (isTerminalStep(status)) this.#release(runId, state, spec.id);
    });
  }

  /** Nobody else writes to the run any more, so its places are known. After the last such run, pools are open again. */
  #countPools(runId: string, state: RunState): void {
    if (this.#actors.has(runId)) this.#holdPools(runId, state);
    if (!this.#counting.delete(runId) || this.#counting.size > 0) return;
    for (const next of this.#pools.waiting()) this.#replace(next.runId, next.stepId);
  }

  /**
   * A run with pools is placed when the record of the shards says, after the run was in the stream, that we still
   * own its shard. Whoever owns it next reads the stream after that, finds the run, and counts its places; without
   * this, one that is created by a former owner could take places that the next one has given away.
   */
  async #confirm(runId: string, shardEpoch: number): Promise<void> {
    for (;;) {
      try {
        if (!(await this.#options.confirm(shardOf(runId), shardEpoch))) return;
        break;
      } catch (thrown) {
        if (!InsituError.from(thrown).retryable) throw thrown;
        await this.#options.clock.sleep(CONFIRM_RETRY_MS, this.#stop.signal);
      }
    }
    if (!this.#unconfirmed.delete(runId)) return;
    const actor = this.#actors.get(runId);
    if (actor) this.#performOwed(actor);
  }

  #finish(runId: string, state: RunState): void {
    this.#forget(runId, state);
    const { pipeline, status } = { pipeline: state.plan.spec.name, status: state.status };
    this.#options.log.info({ runId, pipeline, status }, "run ended");
  }

  /** Everything of a run that is in memory here. */
  #forget(runId: string, state: RunState): void {
    this.#timers.delete(runId);
    for (const { id, pools } of state.plan.steps) {
      const key = `${runId}/${id}`;
      this.#timers.delete(key);
      this.#held.delete(key);
      this.#forgetOffer(key);
      if (pools.length === 0) continue;
      this.#pools.forget({ runId, stepId: id });
      this.#pools.release({ runId, stepId: id }, pools); // all others that wait go with it, or were told before
    }
    this.#leases.endRun(
      runId,
      state.plan.steps.map(({ id }) => id),
    );
    this.#actors.delete(runId);
    this.#unconfirmed.delete(runId);
    this.#countPools(runId, state);
  }

  /** A fan-out owes thousands of offers at once: they go out a few at a time, and everything else goes on meanwhile. */
  async #publishOffers(): Promise<void> {
    this.#publishing += 1;
    try {
      for (let next = this.#offers.shift(); next; next = this.#offers.shift()) {
        await this.#publish(next.state, next.effect).catch((err: unknown) => {
          if (!this.#stop.signal.aborted)
            this.#options.log.error({ err }, "offer not published; it is made again when it expires");
        });
      }
    } finally {
      this.#publishing -= 1;
    }
  }

  async #publish(state: RunState, effect: Extract<Effect, { kind: "offer" }>): Promise<void> {
    const { desk, offers, clock, log } = this.#options;
    // It may have waited here: a cancelled step is not offered any more.
    const latest = this.#actors.get(state.runId)?.state ?? state;
    const current = stepOf(latest, effect.step);
    if (current?.status !== "offered" || current.epoch !== effect.epoch) return;
    const offer = buildOffer(state, effect.step, {
      policyVersion: current.policyVersion,
      classificationOf: (dataset) => desk.classificationOf(dataset),
      signatures: desk.signaturesOf?.(state.version),
      issuedAtMs: this.#now(),
    });
    const owners = ownersOf(state, offer, (dataset) => desk.ownerOf?.(dataset));
    for (;;) {
      try {
        return await offers.publish(offer, owners);
      } catch (thrown) {
        const err = InsituError.from(thrown);
        // The offer is owed: it stays in the run's state until it is taken or expires.
        if (!err.retryable || this.#now() > offer.expiresAtMs) throw err;
        log.warn({ err, runId: state.runId, stepId: effect.step }, "offer not published yet");
        await clock.sleep(OFFER_RETRY_MS, this.#stop.signal);
      }
    }
  }

  #expireLeases(): void {
    for (const lease of this.#leases.expired(this.#options.clock.monotonicMs())) {
      const { runId, stepId, epoch, agent, attempt } = lease;
      const actor = this.#actors.get(runId);
      this.#leases.end(runId, stepId, epoch);
      if (!actor) continue;
      this.#options.log.warn({ runId, stepId, attempt, epoch, agent }, "lease expired");
      const input: Input = { kind: "lease-expired", atMs: this.#now(), step: stepId, epoch, agent };
      this.#detach(actor.submit(input), "lease expired");
    }
  }

  #setTimer(runId: string, effect: Extract<Effect, { kind: "timer" }>, notBeforeMs = 0): void {
    const { timer, step, atMs: dueAtMs } = effect;
    const key = step === null ? runId : `${runId}/${step}`;
    this.#timers.set(key, Math.max(dueAtMs, notBeforeMs), { runId, timer, step, dueAtMs });
    this.#armTimers();
  }

  #armTimers(): void {
    const atMs = this.#timers.nextAtMs();
    if (atMs === undefined || this.#stop.signal.aborted) return;
    if (this.#wake && this.#wake.atMs <= atMs) return;
    this.#wake?.timer.cancel();
    const timer = this.#options.clock.after(Math.max(0, atMs - this.#now()), () => this.#fireTimers());
    this.#wake = { atMs, timer };
  }

  #fireTimers(): void {
    this.#wake = undefined;
    const atMs = this.#now();
    for (const due of this.#timers.take(atMs)) {
      const actor = this.#actors.get(due.value.runId);
      if (!actor) continue;
      const { timer, step, dueAtMs } = due.value;
      const input: Input = { kind: "timer", atMs, timer, step, dueAtMs, random: this.#options.random() };
      this.#detach(actor.submit(input), "timer");
    }
    this.#armTimers();
  }

  #noteOffer(key: string, environment: string): void {
    this.#forgetOffer(key);
    this.#offered.set(key, environment);
    this.#outstanding.set(environment, this.outstandingOffers(environment) + 1);
  }

  #forgetOffer(key: string): void {
    const environment = this.#offered.get(key);
    if (environment === undefined) return;
    this.#offered.delete(key);
    this.#outstanding.set(environment, this.outstandingOffers(environment) - 1);
  }

  /** Work that nobody waits for still belongs to this service: it is logged when it fails, awaited when it closes. */
  #detach(work: Promise<unknown>, what: string): void {
    const settled = work.catch((err: unknown) => {
      if (this.#stop.signal.aborted) return;
      // Its owner does it: no failure, and nothing to be woken for.
      if (isElsewhere(err)) this.#options.log.debug({ what }, "work of a run is another replica's by now");
      else this.#options.log.error({ err, what }, "work of a run failed");
    });
    this.#background.add(settled);
    void settled.finally(() => this.#background.delete(settled));
  }
}

function usesPools(state: RunState): boolean {
  return state.plan.steps.some(({ pools }) => pools.length > 0);
}

function isGranted(state: RunState, stepId: string, epoch: number, agent: string): boolean {
  const step = stepOf(state, stepId);
  return step !== undefined && environmentOf(step, epoch) === agent.slice(0, agent.indexOf("/"));
}
