/**
 * A host with an agent on it: the real `LeaseBook` and `CordonService`, and a model of what carries an attempt, in the order of
 * `attempt-service.ts`: journal, acknowledge the pull, start; the outcome into the journal, then the report.
 *
 * A crash takes the program's memory and leaves the disk. Steps outlive it under their supervisors, whose exit
 * records lie on the disk; a reboot ends them, and a replaced disk forgets everything.
 */
import { pino } from "pino";
import type { CordonState } from "../../agent/leases/cordon.ts";
import { CordonService } from "../../agent/leases/cordon-service.ts";
import { LeaseBook } from "../../agent/leases/lease-book.ts";
import type { Peer } from "../../control-plane/gateway/peer-identity.ts";
import type { AnnouncedKey } from "../../control-plane/gateway/report-keys.ts";
import type { LeaseKey, Offer, Outcome, OutcomeStatus, ReportPayload } from "../../shared/wire/attempt.ts";
import { reportBytes } from "../../shared/wire/report-signature.ts";
import { outcome } from "../support/specs.ts";
import { HEARTBEAT_MS } from "./replica.ts";
import type { AgentGiven } from "./scenario.ts";
import { type Acked, type AgentEnd, Session, type ToAgent } from "./session.ts";
import { type Host, Process } from "./timeline.ts";
import type { World } from "./world.ts";

const PULL_EXPIRES_MS = 5_000;
const CHECK_MS = 500;
const JOURNAL_RETRY_MS = 1_000;
const WRITE_MAX_MS = 5;
const WELCOME_TIMEOUT_MS = 3_000;
const RECONNECT_MAX_MS = 2_000;
const MISSED_MAX = 3;
const NATS = "nats";
/** A host is replaced at most so often: each of its names has keys and a certificate before the world begins. */
export const HOSTS_MAX = 6;
const NO_KEY: AnnouncedKey = { publicKey: new Uint8Array(), proof: new Uint8Array() };
const QUIET = pino({ level: "silent" });
const UNSIGNED = { signature: Buffer.alloc(0), keyId: "" };

/** What the journal keeps. */
interface Disk {
  readonly number: number;
  readonly leases: Map<string, Offer>;
  readonly outbox: Map<number, ReportPayload>;
  lastSeq: number;
  cordon: CordonState | undefined;
}

/** A step's own process and its supervisor: no part of the agent. */
interface Child {
  offer: Offer;
  startedAtMs: number;
  exit: OutcomeStatus | undefined;
  stopping: boolean;
  onExit: () => void;
}

type StopReason = "cancelled" | "interrupted";
type ToldCordon = Extract<ToAgent, { kind: "welcome" }>["cordon"];

interface Running {
  lease: LeaseKey;
  durable: boolean;
  /** The first reason counts. */
  stopped?: StopReason;
  /** Set while a `once` step waits for the control plane's consent to its start. */
  consent?: ((given: boolean) => void) | undefined;
}

export class Agent implements AgentEnd, Host {
  name: string;
  readonly environment: string;
  skewMs: number;
  diskFullUntilMs = 0;
  readonly #world: World;
  readonly #slots: number;
  readonly #signs: boolean;
  #lives = 0;
  #process: Process;
  #disk: Disk = emptyDisk(1);
  readonly #children = new Map<string, Child>();
  #book: LeaseBook;
  #cordon!: CordonService;
  #running = new Map<string, Running>();
  #session: Session | undefined;
  #welcomed = false;
  /** Set by a replica that asks to be left. */
  #reconnectAfterMs: number | undefined;
  /** Wall time of the centre less the monotonic time here; undefined before the first welcome. */
  #centreOffsetMs: number | undefined;
  #sentSeq = 0;
  #beats = { sent: 0, answered: 0 };
  #pulls: { remaining: number; untilMs: number }[] = [];

  constructor(world: World, given: AgentGiven) {
    this.#world = world;
    this.name = given.name;
    this.environment = given.environment;
    this.#slots = given.slots;
    this.skewMs = given.skewMs;
    this.#signs = given.signs;
    this.#book = new LeaseBook(given.environment);
    this.#process = new Process(world.timeline, this);
    this.#process.alive = false;
  }

  get peer(): Peer {
    return this.#world.identityOf(this.name).peer;
  }

  get alive(): boolean {
    return this.#process.alive;
  }

  /** Nothing runs, and nothing waits to be delivered. */
  get idle(): boolean {
    return this.#running.size === 0 && this.#disk.outbox.size === 0 && this.#disk.leases.size === 0;
  }

  start(): void {
    if (this.alive) return;
    this.#world.note(() => `${this.name} starts`);
    this.#process = new Process(this.#world.timeline, this);
    this.#lives += 1;
    this.#book = new LeaseBook(this.environment);
    this.#running = new Map();
    this.#pulls = [];
    this.#centreOffsetMs = undefined;
    this.#reconnectAfterMs = undefined;
    for (const report of this.#disk.outbox.values()) this.#book.note(report.lease);
    for (const [key, offer] of this.#disk.leases) this.#resume(key, offer);
    this.#cordon = this.#openCordon();
    this.#cordon.start();
    this.#process.clock.every(CHECK_MS, () => this.#pull());
    this.#process.clock.every(HEARTBEAT_MS, () => this.#heartbeat());
    this.#connect();
  }

  crash(): void {
    if (!this.alive) return;
    this.#world.note(() => `${this.name} crashes`);
    this.#process.alive = false;
    this.#world.cordons.crashed(this.name);
    this.#session?.break(this.#world.chance.happens(0.5));
  }

  /** The agent and every process of its steps. */
  reboot(): void {
    this.crash();
    // What was still running leaves no exit record.
    for (const [key, child] of this.#children) if (child.exit === undefined) this.#children.delete(key);
  }

  /** The host is replaced. It has no key of its former name any more, and enrols under another one. */
  wipe(): void {
    if (this.#disk.number > HOSTS_MAX) return;
    this.reboot();
    const former = this.name;
    this.name = replacementOf(former, this.#disk.number);
    this.#world.enrol(this.name);
    this.#world.note(() => `${former} has a new disk, and is ${this.name}`);
    this.#children.clear();
    this.#disk = emptyDisk(this.#disk.number + 1);
  }

  resetConnection(): void {
    this.#session?.break(this.#world.chance.happens(0.5));
  }

  receive(session: Session, message: ToAgent): void {
    if (!this.alive || this.#session !== session) return;
    switch (message.kind) {
      case "welcome":
        this.#welcomed = true;
        this.#centreOffsetMs = message.wallMs - this.#process.clock.monotonicMs();
        this.#sentSeq = 0;
        this.#beats = { sent: 0, answered: 0 };
        this.#hear(message.cordon);
        this.#heartbeat();
        return this.#deliver();
      case "reply":
        this.#beats.answered = Math.max(this.#beats.answered, message.seq);
        this.#centreOffsetMs = message.wallMs - this.#process.clock.monotonicMs();
        this.#hear(message.cordon);
        for (const lease of message.verdict.superseded) this.#stop(lease);
        for (const { lease } of message.verdict.cancels) this.#stop(lease);
        for (const lease of message.verdict.renewed) this.#running.get(keyOf(lease))?.consent?.(true);
        return;
      case "cancel":
        return this.#stop(message.lease);
      case "drain":
        this.#reconnectAfterMs = message.reconnectAfterMs;
        return session.break(this.#world.chance.happens(0.5));
    }
  }

  acked(session: Session, { ackedSeq, rejected }: Acked): void {
    if (!this.alive || this.#session !== session) return;
    for (const { seq, code } of rejected) {
      const report = this.#disk.outbox.get(seq);
      if (report) this.#world.witness.rejected(this.name, report, code);
    }
    for (const [seq, report] of this.#disk.outbox) {
      if (seq > ackedSeq) break;
      this.#world.witness.acknowledged(this.name, report);
      this.#disk.outbox.delete(seq);
    }
  }

  broken(session: Session): void {
    if (this.#session !== session) return;
    this.#session = undefined;
    this.#welcomed = false;
    if (this.#world.bug === "forget-cordon-on-reconnect") {
      this.#disk.cordon = undefined;
      this.#cordon.close();
      this.#cordon = this.#openCordon();
    }
    if (this.alive) {
      const afterMs = this.#reconnectAfterMs ?? this.#world.chance.int(100, RECONNECT_MAX_MS);
      this.#reconnectAfterMs = undefined;
      this.#process.clock.after(afterMs, () => this.#connect());
    }
  }

  #connect(): void {
    const session = new Session(this.#world.network, this, this.#world.gateway());
    this.#session = session;
    const announced = this.#signs ? this.#world.identityOf(this.name).announced : NO_KEY;
    const cordonRevision = this.#claim();
    session.toReplica({
      kind: "hello",
      slots: this.#slots,
      held: this.#held(),
      announced,
      cordonRevision,
    });
    this.#process.clock.after(WELCOME_TIMEOUT_MS, () => {
      if (this.#session === session && !this.#welcomed) session.break(true);
    });
  }

  #heartbeat(): void {
    if (!this.#session || !this.#welcomed) return;
    if (this.#beats.sent - this.#beats.answered >= MISSED_MAX) return this.#session.break(true);
    const freeSlots = this.#slots - this.#running.size;
    const cordonRevision = this.#claim();
    const seq = ++this.#beats.sent;
    this.#session.toReplica({ kind: "heartbeat", seq, held: this.#held(), freeSlots, cordonRevision });
  }

  #openCordon(): CordonService {
    return new CordonService({
      clock: this.#process.clock,
      log: QUIET,
      store: {
        cordon: () => this.#disk.cordon,
        keepCordon: (state) =>
          new Promise((resolve, reject) =>
            this.#write(
              () => {
                this.#disk.cordon = state;
              },
              (kept) => (kept ? resolve() : reject(new Error("the disk is full"))),
            ),
          ),
      },
      centreNowMs: () => this.#centreNowMs(),
      onChange: () => {
        this.#heartbeat();
        this.#pull();
      },
      onDeadline: ({ once }) => {
        const ended = [...this.#disk.leases.values()].filter(({ step }) => once || step.once !== true);
        for (const { lease } of ended) this.#stop(lease, "interrupted");
        return ended.length;
      },
    });
  }

  #hear(told: ToldCordon): void {
    this.#world.cordons.heard(this.name, Number(told.revision));
    this.#cordon.hear(told);
  }

  /** What it says of its cordon; it is held to it. */
  #claim(): number {
    const { revision } = this.#cordon;
    this.#world.cordons.claimed(this.name, revision);
    return revision;
  }

  #centreNowMs(): number {
    return this.#centreOffsetMs === undefined
      ? this.#process.clock.wallMs()
      : this.#process.clock.monotonicMs() + this.#centreOffsetMs;
  }

  #held(): LeaseKey[] {
    const undelivered = [...this.#disk.outbox.values()].filter(({ kind }) => kind === "finished");
    return [
      ...[...this.#running.values()].map(({ lease }) => lease),
      ...undelivered.map(({ lease }) => lease),
    ];
  }

  #deliver(): void {
    if (!this.#session || !this.#welcomed) return;
    const due = [...this.#disk.outbox].filter(([seq]) => seq > this.#sentSeq);
    if (due.length === 0) return;
    this.#sentSeq = due.at(-1)![0];
    const { signer } = this.#world.identityOf(this.name);
    this.#session.sendReports(
      due.map(([seq, report]) => {
        const payload = Buffer.from(reportBytes(report));
        return { seq: String(seq), payload, ...(this.#signs ? signer.sign(payload) : UNSIGNED) };
      }),
    );
  }

  #pull(): void {
    if (this.#cordon.cordoned) return;
    const { clock } = this.#process;
    const { network, work } = this.#world;
    const nowMs = clock.monotonicMs();
    this.#pulls = this.#pulls.filter(({ remaining, untilMs }) => remaining > 0 && untilMs > nowMs);
    const asked = this.#pulls.reduce((sum, { remaining }) => sum + remaining, 0);
    const wanted = this.#slots - this.#running.size - asked;
    if (wanted <= 0) return;
    const process = this.#process;
    const pull = { remaining: wanted, untilMs: nowMs + PULL_EXPIRES_MS + WELCOME_TIMEOUT_MS };
    this.#pulls.push(pull);
    network.send(this.name, NATS, () => {
      const untilMs = this.#world.timeline.nowMs + PULL_EXPIRES_MS;
      work.pull(this.environment, {
        remaining: wanted,
        untilMs,
        deliver: (seq, offer) =>
          network.send(NATS, this.name, () => {
            pull.remaining -= 1;
            if (process.alive) this.#take(seq, offer);
          }),
      });
    });
  }

  #take(seq: number, offer: Offer): void {
    const { network, work, bug } = this.#world;
    const ack = (): void => network.send(this.name, NATS, () => work.remove(seq));
    const giveBack = (afterMs: number): void =>
      network.send(this.name, NATS, () => work.giveBack(seq, afterMs));
    if (this.#cordon.cordoned) return giveBack(0);
    const localMs = this.#process.clock.wallMs();
    const centreMs = bug === "trust-local-clock" ? localMs : this.#centreNowMs();
    const decision = this.#book.decide(offer, centreMs);
    const key = keyOf(offer.lease);
    const name = (): string => `${offer.lease.stepId}/${offer.lease.epoch}`;
    if (decision.kind === "refuse") {
      this.#world.note(() => `${this.name} refuses ${name()}: ${decision.reason}`);
      ack();
      return this.#pull();
    }
    if (decision.kind === "duplicate" && bug !== "double-start") {
      if (this.#running.get(key)?.durable !== false) ack();
      return this.#pull();
    }
    if (this.#running.size >= this.#slots) return giveBack(0);
    this.#world.note(() => `${this.name} takes ${name()}`);
    if (this.#world.cordons.knowsOfCordon(this.name))
      this.#world.witness.fail(
        "an agent that knows of its cordon takes nothing",
        `${name()} by ${this.name}`,
      );
    this.#book.note(offer.lease);
    const running: Running = { lease: offer.lease, durable: false };
    this.#running.set(key, running);
    const started: ReportPayload = { kind: "started", lease: offer.lease, atMs: localMs };
    this.#write(
      () => {
        this.#disk.leases.set(key, offer);
        this.#putReport(started);
      },
      (kept) => {
        if (!kept) {
          this.#running.delete(key);
          this.#book.forget(offer.lease);
          return giveBack(JOURNAL_RETRY_MS);
        }
        running.durable = true;
        ack();
        if (offer.step.once !== true || bug === "start-without-consent")
          return this.#launch(key, offer, running);
        this.#world.note(() => `${this.name} asks whether it may start ${name()}`);
        running.consent = (given) => {
          running.consent = undefined;
          this.#world.note(() => `${this.name} may ${given ? "" : "not "}start ${name()}`);
          if (given) this.#launch(key, offer, running);
          else this.#finish(key, offer, running.stopped ?? "cancelled");
        };
        if (running.stopped) running.consent(false);
      },
    );
  }

  #launch(key: string, offer: Offer, running: Running): void {
    this.#world.note(() => `${this.name} starts ${offer.lease.stepId}/${offer.lease.epoch}`);
    this.#world.witness.started(offer.lease, this.name, this.#lives);
    const child: Child = {
      offer,
      startedAtMs: this.#world.timeline.nowMs,
      exit: undefined,
      stopping: false,
      onExit: () => undefined,
    };
    this.#children.set(key, child);
    const { takesMs, failShare } = this.#world.behaviourOf(offer);
    const fails = this.#world.chance.happens(failShare);
    this.#world.timeline.after(this.#world.chance.wait(Math.max(1, takesMs)), () =>
      this.#exit(key, child, fails ? "failed" : "succeeded"),
    );
    this.#follow(key, child);
    if (running.stopped) this.#stop(offer.lease, running.stopped);
  }

  /** The supervisor writes the exit record, whether or not an agent is there to read it. */
  #exit(key: string, child: Child, status: OutcomeStatus): void {
    if (this.#children.get(key) !== child || child.exit !== undefined) return;
    child.exit = status;
    child.onExit();
  }

  #follow(key: string, child: Child): void {
    const process = this.#process;
    child.onExit = () => {
      if (process.alive) this.#finish(key, child.offer, child.exit!);
    };
    if (child.exit !== undefined) child.onExit();
  }

  /** After a start: attaches to what still runs, reads what has ended, and says of the rest that it is unknown. */
  #resume(key: string, offer: Offer): void {
    this.#book.note(offer.lease);
    this.#running.set(key, { lease: offer.lease, durable: true });
    const child = this.#children.get(key);
    if (child) this.#follow(key, child);
    else this.#finish(key, offer, "interrupted");
  }

  #finish(key: string, offer: Offer, status: OutcomeStatus): void {
    const said: Outcome = outcome({
      status,
      exitCode: status === "succeeded" ? 0 : 1,
      // A mark by which the witness knows this outcome again.
      logBytes: ++this.#world.marks,
    });
    this.#world.note(() => `${this.name} ends ${offer.lease.stepId}/${offer.lease.epoch}: ${status}`);
    this.#world.witness.ended(offer.lease, this.name, said);
    const write = (): void =>
      this.#write(
        () => {
          this.#disk.leases.delete(key);
          this.#putReport({ kind: "finished", lease: offer.lease, outcome: said });
        },
        (kept) => {
          if (!kept) return void this.#process.clock.after(JOURNAL_RETRY_MS, write);
          this.#children.delete(key);
          this.#running.delete(key);
          this.#pull();
        },
      );
    write();
  }

  #stop(lease: LeaseKey, reason: StopReason = "cancelled"): void {
    const key = keyOf(lease);
    const running = this.#running.get(key);
    if (!running) return;
    running.stopped ??= reason;
    running.consent?.(false);
    const child = this.#children.get(key);
    if (!child || child.stopping || child.exit !== undefined) return;
    child.stopping = true;
    this.#world.timeline.after(this.#world.chance.int(1, 500), () => this.#exit(key, child, reason));
  }

  #putReport(report: ReportPayload): void {
    this.#world.witness.reported(report, this.name);
    this.#disk.outbox.set(++this.#disk.lastSeq, report);
  }

  /** Durable at one moment, known to be so at a later one: a crash may come between. */
  #write(change: () => void, then: (kept: boolean) => void): void {
    const { clock } = this.#process;
    const disk = this.#disk;
    clock.after(this.#world.chance.int(1, WRITE_MAX_MS), () => {
      const kept = this.#world.timeline.nowMs >= this.diskFullUntilMs;
      if (kept && this.#disk === disk) change();
      clock.after(this.#world.chance.int(0, 1), () => {
        if (kept) this.#deliver();
        then(kept);
      });
    });
  }
}

/** Whether the host that first enrolled as `name` is or was this agent. */
export function isHostOf(name: string, agent: string): boolean {
  return agent === name || agent.startsWith(`${name}-again-`);
}

/** As which a host enrols when it was replaced so many times. */
export function replacementOf(name: string, times: number): string {
  return `${name.replace(/-again.*/, "")}-again-${times}`;
}

function emptyDisk(number: number): Disk {
  return { number, leases: new Map(), outbox: new Map(), lastSeq: 0, cordon: undefined };
}

function keyOf(lease: LeaseKey): string {
  return `${lease.runId}/${lease.stepId}/${lease.attempt}/${lease.epoch}`;
}
