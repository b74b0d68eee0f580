/**
 * Takes offers and carries attempts to their outcome.
 *
 * Order is the point: journal, then acknowledge the pull, then start; log chunks, then the outcome, then the
 * report. What an earlier process of this agent left is taken up again; of what nothing is left, is reported as
 * interrupted.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { LeaseKey, Offer, Outcome, ReportPayload } from "../../shared/wire/attempt.ts";
import type { OfferOwners } from "../../shared/wire/offer-owners.ts";
import { OUTPUTS_MAX_BYTES, REPORT_MAX_BYTES } from "../../shared/wire/protocol.ts";
import { type EgressVerdicts, highestClassification, release, verdictsFor } from "../egress/egress-gate.ts";
import {
  type Execution,
  type ExecutionResult,
  type Executor,
  failure,
  type StopReason,
} from "../executors/executor.ts";
import type { HeldLease, Journal } from "../journal/journal.ts";
import { type LogTotals, LogWriter } from "../journal/log-writer.ts";
import { type OfferPolicy, VETO } from "../policy/decision.ts";
import type { Receipts } from "../receipts/receipt-signer.ts";
import { LeaseBook } from "./lease-book.ts";
import type { OfferReader } from "./offer-reader.ts";

const ERROR_MAX_CHARS = 4_000;
/** An offer that this agent cannot take now stays away from it, and from its like, for so long. */
const GIVE_BACK_MS = 1_000;
const NO_LOG: LogTotals = { lastSeq: 0, bytes: 0, droppedBytes: 0 };

/** What the pull loop hands over. */
export interface OfferMessage {
  payload: Uint8Array;
  signature: string;
  /** Who answers for what it names, signed as well; empty when the control plane does not say. */
  owners?: string;
  /** Takes it off the queue. */
  ack(): void;
  /** Takes it off the queue: it can never be used. */
  discard(): void;
  /** Leaves it on the queue, for another agent or for a later moment. */
  giveBack(afterMs: number): void;
}

export interface AttemptServiceOptions {
  clock: Clock;
  log: Logger;
  journal: Journal;
  reader: OfferReader;
  /** Of the site, and asked before anything of an offer is written down. Undefined: it has none. */
  policy?: OfferPolicy | undefined;
  executors: readonly Executor[];
  receipts: Receipts;
  environment: string;
  agent: string;
  stateDir: string;
  slots: number;
  /** Wall time of the control plane, as well as it is known. */
  centreNowMs(): number;
  /** A slot has become free, or is still free after an offer that was not taken: another one may be asked for. */
  onFree(): void;
  /** A message on the queue is no offer, or not of the control plane; it is off the queue. */
  onPoison(payload: Uint8Array, reason: string): void;
}

/** What an attempt was taken under, for its outcome and its receipt. */
type Grant = Pick<HeldLease, "sitePolicy" | "offerDigest">;

interface Running {
  lease: LeaseKey;
  /** A step that is started once. */
  once: boolean;
  /** True once the lease is in the journal. */
  durable: boolean;
  grant: Grant;
  /** The agent ends, and this goes on without it. */
  left?: boolean;
  execution: Execution | undefined;
  stop: { reason: StopReason; message: string } | undefined;
  /** Set while a `once` step waits for the control plane's consent to its start. */
  consent?: (given: boolean) => void;
  done: Promise<void>;
}

export class AttemptService {
  readonly #options: AttemptServiceOptions;
  readonly #book: LeaseBook;
  readonly #running = new Map<string, Running>();
  readonly #executors: Map<string, Executor>;
  /** Offers that were refused, by reason: shown, and a sign of an attack when it grows. */
  readonly refused = new Map<string, number>();

  constructor(options: AttemptServiceOptions) {
    this.#options = options;
    this.#book = new LeaseBook(options.environment);
    this.#executors = new Map(options.executors.map((executor) => [executor.kind, executor]));
  }

  get freeSlots(): number {
    // An agent that was restarted with fewer slots may hold more than it has.
    return Math.max(0, this.#options.slots - this.#running.size);
  }

  get refusedOffers(): number {
    let sum = 0;
    for (const count of this.refused.values()) sum += count;
    return sum;
  }

  running(): LeaseKey[] {
    return [...this.#running.values()].map(({ lease }) => lease);
  }

  /** Running attempts, and ended ones whose outcome is not confirmed yet. */
  held(): LeaseKey[] {
    return [...this.running(), ...this.#options.journal.undelivered()];
  }

  /** Takes up what an earlier process left behind. Resolves when each runs here or has its outcome in the journal. */
  async recover(): Promise<void> {
    const { journal } = this.#options;
    for (const lease of journal.taken()) this.#book.note(lease);
    for (const held of journal.held()) {
      this.#book.note(held.offer.lease);
      if (!(await this.#resume(held))) await this.#interrupted(held);
    }
    for (const lease of journal.undelivered()) this.#book.note(lease);
  }

  async #resume({ offer, takenAtMs, ...grant }: HeldLease): Promise<boolean> {
    const { journal, log, onFree } = this.#options;
    const executor = this.#executors.get(offer.step.executor.kind);
    let writer: LogWriter;
    try {
      writer = this.#writer(offer);
    } catch (err) {
      log.error({ ...offer.lease, err }, "the log of the step cannot be kept at the site");
      return false;
    }
    const execution = executor?.resume(offer, writer, journal.logMark(offer.lease).endOffset);
    if (!execution) {
      await writer.close();
      return false;
    }
    log.info({ ...offer.lease }, "attempt of an earlier process taken up again");
    const key = keyOf(offer.lease);
    const running: Running = {
      lease: offer.lease,
      once: offer.step.once === true,
      durable: true,
      grant,
      execution,
      stop: undefined,
      done: Promise.resolve(),
    };
    this.#running.set(key, running);
    running.done = this.#conclude(offer, running, writer, takenAtMs).finally(() => {
      this.#running.delete(key);
      onFree();
    });
    return true;
  }

  async #interrupted({ offer, takenAtMs, ...grant }: HeldLease): Promise<void> {
    const { journal, log, clock } = this.#options;
    await this.#executors.get(offer.step.executor.kind)?.cleanUp(offer);
    const { lastSeq, bytes, lostBytes } = journal.logMark(offer.lease);
    const message =
      "the step had not begun when its agent was ended, or all that it left was removed, for example with its disk";
    const result = failure("interrupted", "interrupted", message);
    const totals = { lastSeq, bytes, droppedBytes: lostBytes };
    const outcome = this.#outcome(offer, result, totals, takenAtMs, clock.wallMs(), grant);
    await journal.finish({ kind: "finished", lease: offer.lease, outcome });
    log.warn({ ...offer.lease }, "attempt of an earlier process reported as interrupted");
  }

  /** Never rejects: a bad offer is counted and taken off the queue. */
  async take(message: OfferMessage): Promise<void> {
    const { policy, reader } = this.#options;
    // Only a policy of the site asks who answers for what: nobody else pays for looking at the signature.
    const read = reader.read(message.payload, message.signature, policy ? message.owners : "");
    if (read.kind === "refused") {
      this.#refuse(message, read.reason);
      return this.#options.onPoison(message.payload, read.reason);
    }
    const { offer, owners } = read;
    const decision = this.#book.decide(offer, this.#options.centreNowMs());
    if (decision.kind === "refuse") return this.#refuse(message, decision.reason, offer.lease);
    const key = keyOf(offer.lease);
    if (decision.kind === "duplicate") {
      // Not acknowledged while the first is on its way into the journal: that one may still fail.
      if (this.#running.get(key)?.durable !== false) message.ack();
      this.#options.onFree();
      return;
    }
    // More than was asked for: a request that the queue remembered longer than this agent did.
    if (this.freeSlots <= 0) return message.giveBack(0);
    this.#book.note(offer.lease);
    const running: Running = {
      lease: offer.lease,
      once: offer.step.once === true,
      durable: false,
      grant: { offerDigest: sha256Of(message.payload) },
      execution: undefined,
      stop: undefined,
      done: Promise.resolve(),
    };
    this.#running.set(key, running);
    running.done = this.#carry({ offer, owners }, message, running).finally(() => {
      this.#running.delete(key);
      this.#options.onFree();
    });
    await running.done;
  }

  /** Stops an attempt under exactly this epoch. False when it does not run here. */
  stop(lease: LeaseKey, reason: StopReason, message: string): boolean {
    const running = this.#running.get(keyOf(lease));
    if (!running) return false;
    running.stop ??= { reason, message };
    running.consent?.(false);
    running.execution?.stop(reason, message);
    return true;
  }

  /** Stops everything, and resolves when every outcome is in the journal. */
  async stopAll(reason: StopReason, message: string): Promise<void> {
    const all = [...this.#running.values()];
    for (const running of all) this.stop(running.lease, reason, message);
    await Promise.all(all.map((running) => running.done));
  }

  /**
   * Ends what runs as interrupted, so that it is offered to others; steps that are started once go on unless `once` says
   * so, for they would fail. Returns how many are told to end now.
   */
  drain({ once, message }: { once: boolean; message: string }): number {
    const ended = [...this.#running.values()].filter((running) => !running.stop && (once || !running.once));
    for (const { lease } of ended) this.stop(lease, "interrupted", message);
    return ended.length;
  }

  /** The control plane has the attempt on record as this agent's. */
  granted(lease: LeaseKey): void {
    this.#running.get(keyOf(lease))?.consent?.(true);
  }

  /** Whether an attempt waits for its grant. */
  get awaitsGrant(): boolean {
    return [...this.#running.values()].some(({ consent }) => consent !== undefined);
  }

  /** Lets go of what runs: it goes on by itself. Nothing of it is written here any more. Returns how much it is. */
  leave(): number {
    for (const running of this.#running.values()) running.left = true;
    return this.#running.size;
  }

  #refuse(message: OfferMessage, reason: string, lease?: LeaseKey): void {
    this.refused.set(reason, (this.refused.get(reason) ?? 0) + 1);
    this.#options.log.warn({ ...lease, reason }, "offer refused");
    message.discard();
    // At once: after a long time away the queue may hold more offers that have expired than there come new ones.
    this.#options.onFree();
  }

  async #carry(
    { offer, owners }: { offer: Offer; owners: OfferOwners | undefined },
    message: OfferMessage,
    running: Running,
  ): Promise<void> {
    const { clock, journal, log } = this.#options;
    const takenAtMs = clock.wallMs();
    const site = await this.#options.policy?.decide(offer, owners);
    // The agent has ended meanwhile, and its journal with it: the queue gives the offer again.
    if (running.left) return;
    if (site?.kind === "closed") {
      log.warn({ ...offer.lease, reason: site.reason }, "offer given back");
      this.#book.forget(offer.lease);
      return message.giveBack(GIVE_BACK_MS);
    }
    if (site) running.grant.sitePolicy = site.digest;
    if (site?.kind === "veto") return await this.#veto(offer, message, site);
    const held: HeldLease = { offer, takenAtMs, ...running.grant };
    try {
      await journal.take(held, { kind: "started", lease: offer.lease, atMs: takenAtMs });
    } catch (err) {
      log.error({ ...offer.lease, err }, "offer not taken: the journal cannot be written");
      this.#book.forget(offer.lease);
      message.giveBack(GIVE_BACK_MS);
      return;
    }
    running.durable = true;
    message.ack();
    const startedAtMs = clock.wallMs();
    if (offer.step.once && !(await this.#consent(running))) {
      const { reason, message: why } = running.stop!;
      const result = failure(reason, reason, `it was never started: ${why}`);
      await this.#finish(offer, this.#outcome(offer, result, NO_LOG, startedAtMs, clock.wallMs()));
      return;
    }
    let writer: LogWriter;
    try {
      writer = this.#writer(offer);
    } catch (err) {
      // The lease is durable: it needs an outcome, also from a host whose disk is full.
      const message = `the log of the step cannot be kept at the site: ${InsituError.from(err).message}`;
      const result = failure("failed", "agent", message);
      await this.#finish(offer, this.#outcome(offer, result, NO_LOG, startedAtMs, clock.wallMs()));
      return;
    }
    await this.#conclude(offer, running, writer, startedAtMs);
  }

  /** The refusal is the outcome: durable before the offer leaves the queue, like any other. */
  async #veto(offer: Offer, message: OfferMessage, site: { digest: string; message: string }): Promise<void> {
    const { clock, journal, log } = this.#options;
    const nowMs = clock.wallMs();
    const outcome = this.#outcome(offer, failure("refused", VETO, site.message), NO_LOG, nowMs, nowMs);
    try {
      await journal.finish({ kind: "finished", lease: offer.lease, outcome });
    } catch (err) {
      log.error({ ...offer.lease, err }, "veto not told: the journal cannot be written");
      this.#book.forget(offer.lease);
      return message.giveBack(GIVE_BACK_MS);
    }
    log.warn({ ...offer.lease, reason: site.message, sitePolicy: site.digest }, "offer vetoed");
    message.ack();
  }

  /**
   * The queue gives an offer again when it misses the acknowledgement, perhaps to another agent, and both may
   * believe that it is theirs. For a `once` step the control plane, which knows one holder, has the word.
   */
  #consent(running: Running): Promise<boolean> {
    if (running.stop) return Promise.resolve(false);
    return new Promise((resolve) => {
      running.consent = (given) => {
        delete running.consent;
        resolve(given);
      };
    });
  }

  #writer(offer: Offer): LogWriter {
    const { clock, journal } = this.#options;
    const { lease } = offer;
    const siteFile = this.#siteFile(offer, verdictsFor(highestClassification(offer)));
    return new LogWriter({ lease, journal, clock, siteFile, from: journal.logMark(lease) });
  }

  async #conclude(offer: Offer, running: Running, writer: LogWriter, startedAtMs: number): Promise<void> {
    const { clock, log } = this.#options;
    const result = await this.#execute(offer, running, writer);
    // Cut off from its supervisor on purpose: what became of it, the next start finds out.
    if (running.left) return;
    const totals = await writer.close();
    for (const use of result.network ?? []) log.info({ ...offer.lease, ...use }, "network of a step");
    const outcome = this.#outcome(offer, result, totals, startedAtMs, clock.wallMs());
    await this.#finish(offer, outcome);
    await running.execution?.forget();
    log.debug({ ...offer.lease, status: outcome.status, exitCode: outcome.exitCode }, "attempt ended");
  }

  async #execute(offer: Offer, running: Running, writer: LogWriter): Promise<ExecutionResult> {
    const executor = this.#executors.get(offer.step.executor.kind);
    if (!executor) {
      const { kind } = offer.step.executor;
      return failure("refused", "executor.missing", `this agent does not run the executor ${kind}`);
    }
    running.execution ??= executor.start(offer, writer);
    const { execution } = running;
    if (running.stop) execution.stop(running.stop.reason, running.stop.message);
    return await execution.done;
  }

  /** An outcome is never given up: while the journal cannot be written, it waits here. */
  async #finish(offer: Offer, outcome: Outcome): Promise<void> {
    const { journal, log, clock } = this.#options;
    for (;;) {
      try {
        return await journal.finish({ kind: "finished", lease: offer.lease, outcome });
      } catch (err) {
        log.error({ ...offer.lease, err }, "outcome waits: the journal cannot be written");
        await clock.sleep(1_000);
      }
    }
  }

  #siteFile(offer: Offer, verdicts: EgressVerdicts): string | null {
    if (verdicts.logs === "allow") return null;
    const { runId, stepId, attempt, epoch } = offer.lease;
    return join(this.#options.stateDir, "site-logs", runId, stepId, `${attempt}.${epoch}.log`);
  }

  #outcome(
    offer: Offer,
    result: ExecutionResult,
    logs: LogTotals,
    startedAtMs: number,
    finishedAtMs: number,
    grant: Grant = this.#running.get(keyOf(offer.lease))?.grant ?? {},
  ): Outcome {
    const outputBytes = Object.values(result.outputs).reduce(
      (sum, output) => sum + Buffer.byteLength(output.text),
      0,
    );
    if (outputBytes > OUTPUTS_MAX_BYTES) {
      const message = `the outputs have ${outputBytes} bytes together; ${OUTPUTS_MAX_BYTES} are allowed (use artifacts)`;
      return this.#outcome(
        offer,
        failure("failed", "output.too-large", message),
        logs,
        startedAtMs,
        finishedAtMs,
        grant,
      );
    }
    // A veto is in the agent's own words, and nothing was read: its reason leaves whatever the step would have read.
    const read = result.error?.code === VETO ? null : highestClassification(offer);
    const verdicts = verdictsFor(read);
    const released = release(verdicts, { ...result, logBytes: logs.bytes });
    const { environment } = this.#options;
    const error = released.error && {
      ...released.error,
      message: released.error.message.slice(0, ERROR_MAX_CHARS),
    };
    const outcome: Outcome = {
      status: result.status,
      exitCode: result.exitCode,
      signal: result.signal,
      error,
      outputs: released.outputs,
      artifacts: result.artifacts.map((artifact) => ({ ...artifact, environment })),
      egress: released.egress,
      logLastSeq: logs.lastSeq,
      logBytes: logs.bytes,
      logDroppedBytes: logs.droppedBytes,
      startedAtMs,
      finishedAtMs,
      ...(grant.sitePolicy === undefined ? {} : { sitePolicy: grant.sitePolicy }),
      ...(result.sandbox ? { sandbox: result.sandbox } : {}),
    };
    const receipt = this.#receipt(offer, outcome, grant);
    // Last, as the schema has it: the report can be written again from what a run's events say.
    if (receipt) outcome.receipt = receipt;
    const report: ReportPayload = { kind: "finished", lease: offer.lease, outcome };
    const reportBytes = Buffer.byteLength(JSON.stringify(report));
    if (reportBytes <= REPORT_MAX_BYTES) return outcome;
    // The gateway refuses it for good, and the attempt would never end: control characters take six times their room.
    const message = `the report of the step has ${reportBytes} bytes; ${REPORT_MAX_BYTES} are allowed (use artifacts for what is not plain text)`;
    const tooLarge = failure("failed", "report.too-large", message, result);
    return this.#outcome(offer, tooLarge, logs, startedAtMs, finishedAtMs, grant);
  }

  /** An outcome without a receipt is an open item of the audit; no outcome would be a step that never ends. */
  #receipt(offer: Offer, outcome: Outcome, { offerDigest }: Grant): Outcome["receipt"] {
    const { receipts, log } = this.#options;
    try {
      return receipts.receiptFor(offer, outcome, offerDigest ?? null);
    } catch (err) {
      log.error({ ...offer.lease, err }, "no receipt can be made of the attempt");
      return undefined;
    }
  }
}

function sha256Of(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

function keyOf(lease: LeaseKey): string {
  return `${lease.runId}/${lease.stepId}/${lease.attempt}/${lease.epoch}`;
}
