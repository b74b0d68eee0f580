/**
 * Long because everything that a replica asks of the world is simulated here: the streams, the buckets, its agents.
 *
 * A host with a replica on it: the real `RunService` behind simulated ports, and what a gateway does around it.
 */
import type { Logger } from "pino";
import { agentId } from "../../control-plane/access/spiffe.ts";
import type { AgentRecord } from "../../control-plane/fleet/agent-record.ts";
import { type AgentRegistry, createAgentRegistry } from "../../control-plane/fleet/agent-registry.ts";
import { cordonAgent, uncordonAgent } from "../../control-plane/fleet/cordon-agent.ts";
import { Acknowledgements } from "../../control-plane/gateway/acknowledgements.ts";
import { cordonNews } from "../../control-plane/gateway/cordon-news.ts";
import type { IntakeItem } from "../../control-plane/gateway/intake.ts";
import { reportItems } from "../../control-plane/gateway/intake-items.ts";
import type { HeartbeatVerdict, ReportSink } from "../../control-plane/gateway/ports.ts";
import { ReportKeys } from "../../control-plane/gateway/report-keys.ts";
import { chooseEnvironment, type EnvironmentLoad } from "../../control-plane/placement/choose.ts";
import type { EnvironmentVerdict } from "../../control-plane/placement/placement.ts";
import type { PoisonSink } from "../../control-plane/poison/ports.ts";
import type { PlacementDesk, RunStore, StoredBatch } from "../../control-plane/runs/ports.ts";
import { PeerMessage, RunCommand, RunRouter } from "../../control-plane/runs/run-router.ts";
import { type RecoveredRun, RunService } from "../../control-plane/runs/run-service.ts";
import type { ClusterStore, InboxItem, PeerBus } from "../../control-plane/shards/ports.ts";
import { ShardService } from "../../control-plane/shards/shard-service.ts";
import type { KvStore } from "../../control-plane/store/kv.ts";
import type { Decision } from "../../shared/engine/disconnection.ts";
import { stepOf } from "../../shared/engine/state.ts";
import { InsituError } from "../../shared/errors.ts";
import type { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import type { Cordon__Output } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";
import { reportBytes } from "../../shared/wire/report-signature.ts";
import { shardOf } from "../../shared/wire/subjects.ts";
import { recordsOver } from "./agent-records.ts";
import { TRUST_DOMAIN } from "./identities.ts";
import { InboxReader } from "./inbox-reader.ts";
import { ReadModel } from "./read-model.ts";
import type { Pipeline } from "./scenario.ts";
import type { ReplicaEnd, SentReport, Session, ToReplica } from "./session.ts";
import { type Host, Process } from "./timeline.ts";
import type { World } from "./world.ts";

export const HEARTBEAT_MS = 1_500;
const LEASE_TTL_MS = 6_000;
const PUBLISH_TIMEOUT_MS = 5_000;
const NATS = "nats";
/** As in `server.ts` and `gateway.ts`; the look is half of a second, so that worlds stay fast. */
const DRAIN_MS = 10_000;
const DRAIN_SPREAD_MS = 5_000;
const DRAIN_LOOK_MS = 500;

interface Connected {
  session: Session;
  environment: string;
  freeSlots: number;
  /** Of the last heartbeat. */
  lastSeq: number;
}

interface Parts {
  keys: ReportKeys;
  registry: AgentRegistry;
  service: RunService;
  shards: ShardService;
  router: RunRouter;
}

export class Replica implements ReplicaEnd, Host {
  readonly name: string;
  skewMs = 0;
  #parts: Parts | undefined;
  /** Its gateway is open. */
  #ready = false;
  #leaving = false;
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

  get life(): number {
    return this.#lives;
  }

  /** It takes in what comes over the connections that are open. */
  get #hears(): boolean {
    return this.alive && this.#ready;
  }

  /** It lets in who comes anew. */
  get serves(): boolean {
    return this.#hears && !this.#leaving;
  }

  get parts(): Parts | undefined {
    return this.alive ? this.#parts : undefined;
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
    this.#end();
  }

  /** As `server.ts` stops: agents are asked to go elsewhere, then the shards are handed over. Then the program ends. */
  async leave(): Promise<void> {
    const { parts } = this;
    if (!parts || !this.serves) return;
    this.#leaving = true;
    this.#world.note(() => `${this.name} is asked to stop`);
    const { clock } = this.#process;
    for (const { session } of this.#agents.values())
      session.toAgent({ kind: "drain", reconnectAfterMs: this.#world.chance.int(0, DRAIN_SPREAD_MS) });
    const untilMs = clock.monotonicMs() + DRAIN_MS;
    while (this.#agents.size > 0 && clock.monotonicMs() < untilMs) await clock.sleep(DRAIN_LOOK_MS);
    await parts.shards.close();
    await parts.service.close();
    this.#world.note(() => `${this.name} has stopped`);
    this.#end();
  }

  #end(): void {
    this.#process.alive = false;
    this.#leaving = false;
    this.#parts = undefined;
    this.#ready = false;
    const sessions = [...this.#agents.values()].map(({ session }) => session);
    this.#agents.clear();
    this.#acks.clear();
    // Agents notice at once, or by the silence.
    for (const session of sessions) if (this.#world.chance.happens(0.5)) session.break(false);
  }

  async create(pipeline: Pipeline): Promise<void> {
    await this.#parts?.router.create({ version: pipeline.version, params: {}, by: "somebody" });
  }

  /** Resolves when whoever asked is told that it is so. */
  async cancel(runId: string): Promise<void> {
    const { parts } = this;
    if (!parts || !this.serves) throw new InsituError("unavailable", `${this.name} does not serve`);
    const cancelled = parts.router.cancel(runId, "somebody", "no longer wanted");
    if (this.#world.bug !== "answer-cancel-before-durable") await cancelled;
    else cancelled.catch(() => undefined);
  }

  /** An operator has the last word, also that a `once` step may be started again. */
  async resolve(runId: string, step: string, decision: Decision): Promise<void> {
    const about = { runId, step, decision, evenIfItRan: true };
    await this.#parts?.router.resolve({ ...about, by: "somebody", reason: "looked at the site" });
  }

  /** Resolves when whoever asked is told that it is so; null: the agent may take work again. */
  async cordon(
    agent: string,
    drain: { withinMs: number | undefined; once: boolean } | null,
    on: boolean,
  ): Promise<void> {
    const { parts } = this;
    if (!parts || !this.serves) throw new InsituError("unavailable", `${this.name} does not serve`);
    const { clock } = this.#process;
    const [environment = "", name = ""] = agent.split("/");
    const about = { environment, name, by: "somebody" };
    const deps = { registry: parts.registry, clock, log: this.#log() };
    if (on) await cordonAgent(deps, { ...about, reason: "", drain });
    else await uncordonAgent(deps, about);
  }

  factsChanged(): void {
    this.parts?.service.factsChanged();
  }

  receive(session: Session, message: ToReplica): void {
    const { parts } = this;
    if (!parts || !this.#hears) return;
    const name = session.agentName;
    if (message.kind === "hello") {
      if (!this.serves) return session.break(false);
      try {
        parts.keys.announce(session.peer, message.announced);
      } catch (thrown) {
        this.#world.note(() => `${this.name} turns ${name} away: ${InsituError.from(thrown).message}`);
        return session.break(false);
      }
      const environment = this.#world.environmentOf(name);
      this.#agents.set(name, {
        session,
        environment,
        freeSlots: message.slots - message.held.length,
        lastSeq: 0,
      });
      const cordon = this.#cordonOf(parts, name);
      session.toAgent({ kind: "welcome", wallMs: this.#process.clock.wallMs(), cordon });
      return;
    }
    const { freeSlots, seq: lastSeq } = message;
    this.#agents.set(name, { session, environment: this.#world.environmentOf(name), freeSlots, lastSeq });
    const held = this.#world.bug === "renew-all-leases" ? this.#allOf(name) : message.held;
    const verdict = parts.router.heartbeat(name, held);
    const cordon = this.#cordonOf(parts, name);
    session.toAgent({
      kind: "reply",
      seq: message.seq,
      wallMs: this.#process.clock.wallMs(),
      verdict,
      cordon,
    });
  }

  reports(session: Session, reports: SentReport[]): void {
    const { parts } = this;
    if (!parts || !this.#hears) return;
    const { bug } = this.#world;
    const sink: ReportSink = {
      accept: (agent, report, signed) =>
        bug === "accept-stale-epoch"
          ? parts.router.accept(agent, this.#refreshed(report))
          : parts.router.accept(agent, report, signed),
    };
    const take = reportItems(session.peer, { sink, keys: parts.keys, poison: this.#poison() });
    const items = take({ reports, signature: Buffer.alloc(0), keyId: "" }); // each has its own
    for (const item of items) void this.#report(session, item);
  }

  broken(session: Session): void {
    this.#acks.delete(session);
    if (this.#agents.get(session.agentName)?.session === session) this.#agents.delete(session.agentName);
  }

  async #report(session: Session, { seq, store }: IntakeItem): Promise<void> {
    const process = this.#process;
    const acks = this.#acks.get(session) ?? new Acknowledgements();
    this.#acks.set(session, acks);
    const done = acks.begin(seq);
    const answer = (): void => {
      const taken = acks.take();
      if (taken && process.alive) session.acknowledge(taken);
    };
    if (this.#world.bug === "ack-before-durable") {
      done();
      answer();
    }
    try {
      const rejection = await settle(store);
      if (!process.alive) return;
      done(rejection);
      answer();
    } catch (thrown) {
      const error = InsituError.from(thrown);
      this.#world.note(() => `${this.name} cannot take a report of ${session.agentName}: ${error.message}`);
      if (process.alive) session.break(false);
    }
  }

  async #open(process: Process): Promise<void> {
    const world = this.#world;
    const life = world.bug === "reuse-message-id" ? 1 : this.#lives;
    const writer = `${this.name}.${this.#lives}`;
    const { clock } = process;
    const forgets = world.bug === "forget-owed-effect" && this.#lives > 1;
    const reads = new ReadModel((version) => world.pipeline(version).plan);
    const log = this.#log();
    const registry = createAgentRegistry({ kv: this.#records(process), clock, log });
    const keys = new ReportKeys({
      registry,
      clock,
      log,
      trustDomain: TRUST_DOMAIN,
      pki: world.pki,
      requireSigned: false,
      onRefused: () => undefined,
    });
    const service = new RunService({
      clock: forgets ? { ...clock, after: forgettingFirst(clock.after) } : clock,
      random: () => world.chance.next(),
      log,
      store: this.#store(process, writer),
      offers: { publish: (offer) => this.#ask(process, "offer", () => world.work.publish(offer)) },
      plans: { load: (version) => Promise.resolve(world.pipeline(version).plan) },
      desk: this.#desk(),
      agents: { cancel: (agent, lease, reason) => router.stop(agent, lease, reason) },
      instanceId: `${this.name}.${life}`,
      leaseTtlMs: LEASE_TTL_MS,
      offerTtlMs: world.scenario.offerTtlMs,
      replicaId: this.name,
      isOver: (runId) => reads.isOver(runId),
      confirm: (shard, epoch) => shards.confirm(shard, epoch),
    });
    const inbox = new InboxReader({
      world,
      name: this.name,
      process,
      ask: (what, work) => this.#ask(process, what, work),
      accept: (item) => router.acceptFromInbox(item),
    });
    const bus = this.#bus(process);
    const shards = new ShardService({
      store: this.#cluster(process),
      clock,
      log,
      me: {
        id: this.name,
        instance: writer,
        url: "",
        gateway: "",
        software: "",
        startedAtMs: clock.wallMs(),
      },
      fingerprint: "all alike",
      own: async (epochs) => {
        const lastSeq = await this.#ask(process, "last sequence", () => world.runs.batches.length);
        await reads.waitFor(lastSeq);
        world.note(
          () => `${this.name} owns ${[...epochs].map(([shard, epoch]) => `${shard}@${epoch}`).join(" ")}`,
        );
        service.own(
          epochs,
          reads.unfinished().filter(({ runId }) => epochs.has(shardOf(runId))),
        );
        await inbox.drain();
      },
      disown: async (lost) => {
        world.note(() => `${this.name} gives up ${[...lost].join(" ")}`);
        await service.disown(lost);
      },
      announce: () => bus.broadcast({ kind: "shards" }),
    });
    const router = new RunRouter({
      runs: service,
      shards,
      bus,
      inbox,
      clock,
      verify: this.#verifier(keys),
      refused: async (item, why) => {
        world.note(() => `${this.name} refuses a report out of the inbox: ${why.message}`);
        if (!world.forger.made(item)) world.witness.rejected(item.agent, item.report, why.code);
      },
      tell: (agent, verdict) => this.#tell(agent, verdict),
      stop: (agent, lease, reason) => {
        const connected = this.#agents.get(agent);
        connected?.session.toAgent({ kind: "cancel", lease, reason });
        return connected !== undefined;
      },
    });
    this.#follow(process, reads, (run) => service.adopt(run));
    service.start();
    inbox.start();
    this.#parts = { service, shards, router, keys, registry };
    registry.onChange((record) => {
      // The gateway says nothing when nothing has changed; here it is said all the same, which changes nothing.
      if (process.alive) this.#tell(agentId(record), { renewed: [], superseded: [], cancels: [] });
    });
    try {
      await registry.start(new AbortController().signal);
      await shards.start();
    } catch (thrown) {
      // The program ends, and whoever looks after it starts it again.
      world.note(() => `${this.name} cannot start: ${InsituError.from(thrown).message}`);
      if (process.alive) world.crash(this);
      return;
    }
    if (!process.alive) return;
    this.#ready = true;
    world.note(() => `${this.name} serves`);
  }

  /** The whole stream in order, and then whatever is appended. */
  #follow(process: Process, reads: ReadModel, onCreated: (run: RecoveredRun) => void): void {
    const { network, runs } = this.#world;
    const send = network.stream(NATS, this.name, () => process.alive);
    for (const batch of runs.batches) send(() => reads.apply(batch, onCreated));
    const tail = (batch: StoredBatch): void => {
      if (process.alive) send(() => reads.apply(batch, onCreated));
      else runs.tails.delete(tail);
    };
    runs.tails.add(tail);
  }

  #cluster(process: Process): ClusterStore {
    const { cluster } = this.#world;
    return {
      read: () => this.#ask(process, "read the record of the shards", () => cluster.read()),
      write: async (record, revision) => {
        const written = await this.#ask(process, "write the record of the shards", () =>
          cluster.write(record, revision),
        );
        if (!written) throw new InsituError("conflict", "another replica was first", { retryable: true });
      },
    };
  }

  #records(process: Process): KvStore<AgentRecord> {
    return recordsOver({
      bucket: this.#world.records,
      ask: (what, work) => this.#ask(process, what, work),
      stream: this.#world.network.stream(NATS, this.name, () => process.alive),
      isAlive: () => process.alive,
    });
  }

  #verifier(keys: ReportKeys): (item: InboxItem) => Promise<void> {
    switch (this.#world.bug) {
      case "accept-forged-report":
        return async () => undefined;
      case "accept-signature-of-another-lease":
        return async ({ agent, report, signed }) => {
          const payload = signed?.payload === undefined ? reportBytes(report) : Buffer.from(signed.payload);
          const signature = Buffer.from(signed?.signature ?? "", "base64");
          await keys.check(agent, { payload, signature, keyId: signed?.keyId ?? "" });
        };
      default:
        return (item) => keys.checkStored(item);
    }
  }

  /** Nothing that an agent of these worlds sends is malformed, and what is forged comes another way. */
  #poison(): PoisonSink {
    return {
      put: async ({ from, reason }) => {
        this.#world.witness.fail("no report of an agent is poison", `${from}: ${reason}`);
        return true;
      },
    };
  }

  #bus(process: Process): PeerBus {
    const world = this.#world;
    const send = (to: string, deliver: (parts: Parts) => void): void => {
      world.network.send(this.name, NATS, () => {
        world.network.send(NATS, to, () => {
          const parts = world.replica(to)?.parts;
          if (parts) deliver(parts);
        });
      });
    };
    const receive = (message: unknown) => (parts: Parts) => {
      const parsed = PeerMessage.safeParse(message);
      if (parsed.success) parts.router.received(parsed.data);
      else parts.shards.poke();
    };
    return {
      broadcast: (message) => {
        for (const to of world.replicaNames) if (to !== this.name) send(to, receive(message));
      },
      send: (to, message) => send(to, receive(message)),
      request: (to, message, timeoutMs) =>
        new Promise((resolve, reject) => {
          const silent = (): void =>
            reject(new InsituError("unavailable", `${to} does not answer`, { retryable: true }));
          const timer = process.clock.after(timeoutMs, silent);
          const answer = (settle: () => void): void => {
            if (!process.alive) return;
            timer.cancel();
            settle();
          };
          send(to, ({ router }) => {
            const back = (settle: () => void): void =>
              world.network.send(to, NATS, () => {
                world.network.send(NATS, this.name, () => answer(settle));
              });
            router.perform(RunCommand.parse(message)).then(
              (value) => back(() => resolve(value)),
              (err: unknown) => back(() => reject(err)),
            );
          });
        }),
    };
  }

  /** As the gateway does; defaults are what the wire makes of what is left out. */
  #cordonOf({ registry }: Parts, agent: string): Cordon__Output {
    return cordonNews(registry.known(agent)) as Cordon__Output;
  }

  #tell(agent: string, verdict: HeartbeatVerdict): boolean {
    const connected = this.#agents.get(agent);
    if (connected && this.#parts)
      connected.session.toAgent({
        kind: "reply",
        seq: connected.lastSeq,
        wallMs: this.#process.clock.wallMs(),
        verdict,
        cordon: this.#cordonOf(this.#parts, agent),
      });
    return connected !== undefined;
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

  #store(process: Process, writer: string): RunStore {
    const world = this.#world;
    return {
      append: (runId, events, expectedSeq, messageId) =>
        this.#ask(process, `append ${messageId}`, () => {
          const expected = world.bug === "write-without-fence" ? world.runs.lastSeqOf(runId) : expectedSeq;
          const result = world.runs.append(runId, events, expected, messageId, writer);
          if (process.alive && world.chance.happens(world.crashAtAppend)) world.crash(this);
          return result;
        }),
      read: (runId, afterSeq) => this.#ask(process, "read", () => world.runs.read(runId, afterSeq)),
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
      disconnectOf: (environment) => world.scenario.disconnects.get(environment),
      poolCapacity: (pool) => world.scenario.pools.get(pool),
      classificationOf: () => "public",
    };
  }

  #loads(): Map<string, EnvironmentLoad> {
    const loads = new Map<string, EnvironmentLoad>();
    for (const { environment, freeSlots } of this.#agents.values()) {
      const load = loads.get(environment) ?? { agents: 0, freeSlots: 0, outstandingOffers: 0 };
      const outstandingOffers = this.parts?.service.outstandingOffers(environment) ?? 0;
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
      const state = this.parts?.service.stateOf(runId);
      return (state?.plan.steps ?? []).flatMap(({ id: stepId }) => {
        const step = stepOf(state!, stepId)!;
        const { attempt, epoch } = step;
        return step.status === "running" && step.agent === agent ? [{ runId, stepId, attempt, epoch }] : [];
      });
    });
  }

  #refreshed(report: ReportPayload): ReportPayload {
    const state = this.parts?.service.stateOf(report.lease.runId);
    const step = state && stepOf(state, report.lease.stepId);
    if (!step || report.kind !== "finished" || step.epoch === 0) return report;
    return { ...report, lease: { ...report.lease, attempt: step.attempt, epoch: step.epoch } };
  }
}

/** As `intake.ts` does: what is refused for good is acknowledged, with the reason. */
async function settle(store: IntakeItem["store"]): Promise<{ code: string; message: string } | undefined> {
  try {
    return await store();
  } catch (err) {
    if (err instanceof InsituError && !err.retryable && err.code !== "internal")
      return { code: err.code, message: err.message };
    throw err;
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
