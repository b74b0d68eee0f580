/** One world from one seed: built, troubled for a while, healed, and then asked for progress. */

import type { Authority } from "../../control-plane/access/authority.ts";
import { agentKey } from "../../control-plane/fleet/agent-record.ts";
import { DECISIONS } from "../../shared/engine/disconnection.ts";
import type { LeaseKey, Offer, ReportPayload } from "../../shared/wire/attempt.ts";
import { Agent, HOSTS_MAX, isHostOf, replacementOf } from "./agent.ts";
import { AgentRecords } from "./agent-records.ts";
import type { Bug } from "./bug.ts";
import { Chance } from "./chance.ts";
import { ClusterRecordStore } from "./cluster-record.ts";
import { CordonBook } from "./cordon-book.ts";
import { Forger } from "./forger.ts";
import { type AgentIdentity, authority, identityOf } from "./identities.ts";
import { Network } from "./network.ts";
import { Replica } from "./replica.ts";
import { AGENT_SKEW_MAX_MS, type Behaviour, drawScenario, type Pipeline, type Scenario } from "./scenario.ts";
import { InboxStream, RunsStream, WorkStream } from "./streams.ts";
import { BEGIN_MS, Timeline } from "./timeline.ts";
import { environmentOf, type Violation, Witness } from "./witness.ts";

/** Virtual time within which every run ends once nothing is wrong any more. */
const PROGRESS_MS = 30 * 60_000;
/** After the last run: what was superseded is stopped, and every report delivered. */
const QUIET_MS = 120_000;
/** For so long an operator leaves a cut-off attempt to its agent. */
const RESOLVE_AFTER_MS = 30_000;
const REPLICA_SKEW_MAX_MS = 600_000;
const REPLICA_SKEW_HEALED_MS = 500;

export interface WorldOptions {
  seed: number;
  bug?: Bug | undefined;
  /** At most so many; the seed draws from 1 to this. */
  replicasMax?: number | undefined;
  trace?: ((line: string) => void) | undefined;
}

export interface Verdict {
  seed: number;
  events: number;
  runs: number;
  virtualMs: number;
  violation: Violation | undefined;
}

export class World {
  readonly timeline: Timeline;
  readonly chance: Chance;
  readonly network: Network;
  readonly scenario: Scenario;
  readonly witness: Witness;
  readonly runs: RunsStream;
  readonly work: WorkStream;
  readonly inbox: InboxStream;
  readonly cluster = new ClusterRecordStore();
  readonly records = new AgentRecords();
  readonly cordons = new CordonBook();
  readonly forger: Forger;
  readonly bug: Bug | undefined;
  /** Of the authority that the agents' certificates are of. */
  pki!: Authority;
  /** Policy allows nothing anywhere for the moment. */
  closed = false;
  crashAtAppend: number;
  marks = 0;
  readonly #seed: number;
  readonly #replicas: Replica[];
  readonly #agents: Agent[];
  readonly #names = new Map<string, string>();
  readonly #identities = new Map<string, AgentIdentity>();
  #troubled = true;
  #asked = 0;

  constructor({ seed, bug, replicasMax, trace }: WorldOptions) {
    this.#seed = seed;
    this.bug = bug;
    this.chance = new Chance(seed);
    this.timeline = new Timeline(trace);
    this.network = new Network(this.timeline, this.chance);
    this.scenario = drawScenario(this.chance, replicasMax ?? 3);
    this.inbox = new InboxStream(this.timeline);
    this.witness = new Witness(
      this.scenario,
      (agent, report) => this.#isInInbox(agent, report),
      (agent, report, signed) => {
        const signs = this.scenario.agents.some(({ name, signs }) => signs && isHostOf(name, agent));
        if (!signs) return signed === undefined;
        return signed !== undefined && this.identityOf(agent).hasSigned(report, signed);
      },
    );
    this.records.tails.add(({ value }) => this.cordons.written(value));
    this.crashAtAppend = this.scenario.crashAtAppend;
    this.forger = new Forger(this);
    this.runs = new RunsStream(this.timeline, (batch, writer) => {
      for (const event of batch.events) {
        if (event.kind === "run.created") this.#names.set(batch.runId, `run-${this.#names.size + 1}`);
        this.note(() => `${this.#names.get(batch.runId)}: ${describe(event)}`);
      }
      this.witness.appended(batch, writer);
      this.forger.saw(batch);
    });
    this.work = new WorkStream(this.timeline);
    this.#replicas = this.scenario.replicas.map((name) => new Replica(this, name));
    this.#agents = this.scenario.agents.map((given) => new Agent(this, given));
  }

  async run(): Promise<Verdict> {
    this.pki = await authority();
    for (const { name } of this.scenario.agents) {
      for (let times = 0; times <= HOSTS_MAX; times++) {
        const id = times === 0 ? name : replacementOf(name, times);
        this.#identities.set(id, await identityOf(id));
      }
      this.enrol(name);
    }
    const { faultsForMs, weather } = this.scenario;
    this.network.weather = weather;
    for (const node of [...this.#replicas, ...this.#agents]) node.start();
    for (const { atMs, pipeline } of this.scenario.runs) this.timeline.after(atMs, () => this.#ask(pipeline));
    this.#plan();
    await this.#until(() => false, faultsForMs);
    this.#heal();
    const healedMs = this.timeline.nowMs;
    const done = (): boolean =>
      this.#asked >= this.scenario.runs.length && this.witness.unfinished.length === 0;
    if (!(await this.#until(done, healedMs + PROGRESS_MS)) && !this.witness.violation)
      this.witness.fail("every run ends once nothing is wrong", this.witness.unfinished.join(", "));
    const quiet = (): boolean => this.#agents.every((agent) => agent.idle);
    if (!(await this.#until(quiet, this.timeline.nowMs + QUIET_MS)) && !this.witness.violation)
      this.witness.fail(
        "agents come to rest",
        this.#agents
          .filter(({ idle }) => !idle)
          .map(({ name }) => name)
          .join(", "),
      );
    if (!(await this.#until(() => this.inbox.items.size === 0, this.timeline.nowMs + QUIET_MS)))
      this.witness.fail("everything in the inbox is dealt with", `${this.inbox.items.size} reports are left`);
    const { violation } = this.witness;
    return {
      seed: this.#seed,
      events: this.timeline.count,
      runs: this.witness.runs.size,
      virtualMs: this.timeline.nowMs,
      violation: violation && { ...violation, message: this.#readable(violation.message) },
    };
  }

  note(text: () => string): void {
    this.timeline.note(() => this.#readable(text()));
  }

  /** The gateway that an agent tries next. */
  gateway(): Replica {
    return this.chance.pick(this.#replicas);
  }

  identityOf(agent: string): AgentIdentity {
    return this.#identities.get(agent)!;
  }

  /** Of all that ever enrolled, or will. */
  get identities(): AgentIdentity[] {
    return [...this.#identities.values()];
  }

  enrol(agent: string): void {
    this.records.enrol(this.identityOf(agent).record);
  }

  agentsOf(environment: string): string[] {
    return this.#agents.filter((agent) => agent.environment === environment).map(({ name }) => name);
  }

  environmentOf(agent: string): string {
    return environmentOf(agent);
  }

  replica(name: string): Replica | undefined {
    return this.#replicas.find((replica) => replica.name === name);
  }

  get replicaNames(): readonly string[] {
    return this.scenario.replicas;
  }

  pipeline(version: string): Pipeline {
    return this.scenario.pipelines.find((pipeline) => pipeline.version === version)!;
  }

  allowedFor(pipeline: string, step: string): readonly string[] {
    return this.scenario.pipelines.find(({ plan }) => plan.spec.name === pipeline)!.allowed.get(step)!;
  }

  behaviourOf(offer: Offer): Behaviour {
    return this.pipeline(offer.version).behaviours.get(offer.step.id)!;
  }

  /** Dead now, and back after a while. */
  crash(node: Replica | Agent): void {
    node.crash();
    this.#startLater(node);
  }

  #isInInbox(agent: string, { kind, lease }: ReportPayload): boolean {
    return [...this.inbox.items.values()].some(
      (item) =>
        item.agent === agent &&
        item.report.kind === kind &&
        isSame(item.report.lease, lease) &&
        !this.forger.made(item),
    );
  }

  #cancel(runId: string): void {
    this.chance
      .pick(this.#replicas)
      .cancel(runId)
      .then(
        () => this.witness.cancelAnswered(runId),
        () => undefined, // nobody was told that it is so
      );
  }

  #cordon(agent: string, on: boolean): void {
    const withinMs = this.chance.happens(0.5) ? this.chance.int(0, 20_000) : undefined;
    const once = withinMs !== undefined && this.chance.happens(0.3);
    const drain = this.chance.happens(0.6) ? { withinMs, once } : null;
    this.note(
      () => `somebody wants that ${agent} ${on ? `is ${drain ? "drained" : "cordoned"}` : "takes work"}`,
    );
    // Whoever asked may hear nothing, and it may be so all the same.
    this.chance
      .pick(this.#replicas)
      .cordon(agent, drain, on)
      .catch(() => undefined);
  }

  #startLater(node: Replica | Agent): void {
    this.timeline.after(this.chance.wait(this.scenario.downMs), () => node.start());
  }

  /** Until it is so, or the time is over, or something is wrong. True when it is so. */
  async #until(holds: () => boolean, untilMs: number): Promise<boolean> {
    while (!this.witness.violation) {
      if (holds()) return true;
      if (!(await this.timeline.step(untilMs))) {
        this.timeline.nowMs = untilMs;
        return holds();
      }
    }
    return false;
  }

  /** Somebody starts a run, and asks again when the answer is no. */
  #ask(pipeline: Pipeline): void {
    const replica = this.chance.pick(this.#replicas);
    const again = (): void => void this.timeline.after(1_000, () => this.#ask(pipeline));
    if (!replica.serves) return again();
    this.#asked += 1;
    replica.create(pipeline).catch((err: unknown) => {
      this.note(() => `run refused: ${String(err)}`);
      this.#asked -= 1;
      again();
    });
  }

  #plan(): void {
    const { rates } = this.scenario;
    const agent = (): Agent => this.chance.pick(this.#agents);
    const replica = (): Replica => this.chance.pick(this.#replicas);
    this.#recur(rates.agentCrash, () => this.crash(agent()));
    this.#recur(rates.hostReboot, () => this.#restart(agent(), (host) => host.reboot()));
    this.#recur(rates.hostWipe, () => this.#restart(agent(), (host) => host.wipe()));
    this.#recur(rates.replicaCrash, () => this.crash(replica()));
    this.#recur(rates.cut, () => {
      const [one, other] = this.chance.pick([
        [agent().name, replica().name],
        [agent().name, "nats"],
        [replica().name, "nats"],
      ] as const);
      this.note(() => `link of ${one} and ${other} is cut`);
      this.network.cut(one, other, this.chance.wait(this.scenario.cutMs));
    });
    this.#recur(rates.reset, () => agent().resetConnection());
    this.#recur(rates.clockJump, () => {
      const host = this.chance.pick([...this.#agents, ...this.#replicas]);
      const most = host instanceof Replica ? REPLICA_SKEW_MAX_MS : AGENT_SKEW_MAX_MS;
      host.skewMs = this.chance.int(-most, most);
      this.note(() => `the clock of ${host.name} jumps: ${host.skewMs} ms beside the truth`);
    });
    this.#recur(rates.diskFull, () => {
      agent().diskFullUntilMs = this.timeline.nowMs + this.chance.wait(5_000);
    });
    this.#recur(rates.resolve, () => this.#resolve(0));
    this.#recur(rates.forge, () => this.forger.act());
    this.#recur(rates.closedPolicy, () => this.#setClosed(!this.closed));
    this.#recur(rates.cancel, () => {
      const { unfinished } = this.witness;
      if (unfinished.length > 0) this.#cancel(this.chance.pick(unfinished));
    });
    this.#recur(rates.cancelCutOff, () => {
      const held = this.witness.granted.filter(({ holder }) => holder !== null);
      if (held.length === 0) return;
      const { holder, lease } = this.chance.pick(held);
      this.note(() => `${holder} is cut off from the control plane, and its run is cancelled`);
      const forMs = this.chance.wait(this.scenario.cutMs);
      for (const name of this.replicaNames) this.network.cut(holder!, name, forMs);
      this.#cancel(lease.runId);
    });
    this.#recur(rates.cordon, () => this.#cordon(agent().name, this.chance.happens(0.6)));
    this.#recur(rates.replicaLeave, () => {
      const leaver = replica();
      void leaver.leave().then(() => this.#startLater(leaver));
    });
  }

  /** After the faults an operator waits until an agent had time to come back. */
  #resolve(patienceMs: number): void {
    for (const { runId, step, sinceMs } of this.witness.disconnected) {
      const replica = this.chance.pick(this.#replicas);
      if (!replica.serves || BEGIN_MS + this.timeline.nowMs - sinceMs < patienceMs) continue;
      const decision = this.chance.pick(DECISIONS);
      this.note(() => `somebody says of ${step} in ${runId}: ${decision}`);
      // A step whose outputs others need is not taken as succeeded; the next look may say something else.
      replica.resolve(runId, step, decision).catch(() => undefined);
    }
  }

  #restart(agent: Agent, end: (agent: Agent) => void): void {
    end(agent);
    this.#startLater(agent);
  }

  #recur(meanMs: number, fault: () => void): void {
    if (!Number.isFinite(meanMs)) return;
    this.timeline.after(this.chance.wait(meanMs), () => {
      if (!this.#troubled) return;
      fault();
      this.#recur(meanMs, fault);
    });
  }

  #setClosed(closed: boolean): void {
    this.closed = closed;
    this.note(() => (closed ? "policy forbids everything" : "policy allows again"));
    for (const replica of this.#replicas) replica.factsChanged();
  }

  #heal(): void {
    this.note(() => "faults end");
    this.#troubled = false;
    this.crashAtAppend = 0;
    this.network.heal();
    this.#setClosed(false);
    // Operators keep the replicas' clocks together; those of the sites are as wrong as they are.
    for (const replica of this.#replicas)
      replica.skewMs = this.chance.int(-REPLICA_SKEW_HEALED_MS, REPLICA_SKEW_HEALED_MS);
    for (const agent of this.#agents) agent.diskFullUntilMs = 0;
    for (const node of [...this.#replicas, ...this.#agents]) node.start();
    const look = (): void => {
      this.#resolve(RESOLVE_AFTER_MS);
      for (const { name } of this.#agents)
        if (this.records.get(agentKey(name))?.value.cordon) this.#cordon(name, false);
      this.timeline.after(RESOLVE_AFTER_MS, look);
    };
    look();
  }

  /** Runs have ids of chance; in traces they have numbers. */
  #readable(text: string): string {
    let readable = text;
    for (const [runId, name] of this.#names) readable = readable.replaceAll(runId, name);
    return readable;
  }
}

function isSame(one: LeaseKey, other: LeaseKey): boolean {
  return one.runId === other.runId && one.stepId === other.stepId && one.epoch === other.epoch;
}

function describe(event: {
  kind: string;
  step?: string;
  epoch?: number;
  agent?: string | null;
  reason?: string;
}): string {
  const { kind, step, epoch, agent, reason } = event;
  const parts = [
    kind,
    step,
    epoch === undefined ? undefined : `epoch ${epoch}`,
    agent,
    reason && `(${reason})`,
  ];
  return parts.filter(Boolean).join(" ");
}

export async function simulate(options: WorldOptions): Promise<Verdict> {
  return await new World(options).run();
}
