/**
 * What the agent must not forget, in LMDB: the leases it holds, the reports and the logs it has not delivered.
 *
 * Writes of one turn of the event loop share one synchronous transaction: LMDB has called fdatasync when it
 * returns, and a full disk is then a clean error with nothing half-written, which its asynchronous path does
 * not give.
 */
import { type Database, open, type RootDatabase } from "lmdb";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import { type LeaseKey, Offer, type ReportPayload } from "../../shared/wire/attempt.ts";
import { CordonState } from "../leases/cordon.ts";
import { REMEMBERED_MAX } from "../leases/lease-book.ts";
import { joined, type LogChunkRecord, type Loss, lossOf, noteOf } from "./log-chunk.ts";
import { Undo } from "./undo.ts";

/**
 * `sitePolicy`: the digest of the one that allowed it, at a site that has one. `offerDigest`: of the offer as it was
 * signed; missing in what an older release wrote.
 */
const Held = z.object({
  offer: Offer,
  takenAtMs: z.number(),
  sitePolicy: z.string().optional(),
  offerDigest: z.string().optional(),
});
export type HeldLease = z.infer<typeof Held>;

interface Pending {
  run(): void;
  resolve(): void;
  reject(err: unknown): void;
}

export interface JournalOptions {
  logSpoolMaxBytes: number;
  outboxMaxBytes: number;
  clock: Clock;
}

/** Written with each log chunk, so that a restarted agent goes on behind it: nothing lost, nothing twice. */
export interface LogMark {
  /** Sequence of the last entry. */
  lastSeq: number;
  /** Offset in the supervisor's spool behind it. */
  endOffset: number;
  /** Content so far, and what was given up of it. */
  bytes: number;
  lostBytes: number;
}

export interface StoredReport {
  seq: number;
  payload: Buffer;
}

const MAP_SIZE = 16 * 1024 ** 3;
/** What was acknowledged leaves the disk with the next write, or after so long. */
const FORGET_AFTER_MS = 50;
/** In one transaction, which stops everything else while it runs. */
const FORGET_MAX = 1_000;

export class Journal {
  readonly #root: RootDatabase;
  readonly #leases: Database<HeldLease, string>;
  readonly #outbox: Database<Buffer, number>;
  readonly #logs: Database<LogChunkRecord, number>;
  /** How far the log of an attempt is on record, while it runs. */
  readonly #marks: Database<LogMark, string>;
  /** What was taken, ended or not, in its order: an offer that the queue gives again is known after a restart too. */
  readonly #taken: Database<LeaseKey, number>;
  readonly #meta: Database<number, string>;
  readonly #cordon: Database<CordonState, string>;
  readonly #options: JournalOptions;
  /** Sizes of what is stored and not acknowledged, so that the quota needs no look at the store. */
  readonly #logSizes = new Map<number, number>();
  readonly #reportSizes = new Map<number, number>();
  /** The last note of lost log by attempt, to which the next one may be joined. */
  readonly #notes = new Map<string, number>();
  /** Acknowledged, and still on disk. A crash now means that they are sent again, and known there. */
  #forgotten: { store: "outbox" | "logs"; seq: number }[] = [];
  #forgetting: Timer | undefined;
  readonly #ackedSeq = { outbox: 0, logs: 0 };
  /** Outcomes on their way, by report sequence. */
  readonly #undelivered = new Map<number, LeaseKey>();
  #queue: Pending[] = [];
  #scheduled = false;
  #closed = false;
  /** Sequences given out, and bytes: as the store has them, and with it. */
  readonly #counts = {
    reportSeq: 0,
    logSeq: 0,
    takenSeq: 0,
    outboxBytes: 0,
    logBytes: 0,
    droppedLogBytes: 0,
    /** Up to here every chunk is a note. */
    notedSeq: 0,
  };
  readonly #undo = new Undo();
  #onReport: () => void = () => {};
  #onLog: () => void = () => {};

  constructor(directory: string, options: JournalOptions) {
    this.#options = options;
    this.#root = open({ path: directory, maxDbs: 8, mapSize: MAP_SIZE });
    this.#leases = this.#root.openDB<HeldLease, string>({ name: "leases" });
    this.#outbox = this.#root.openDB<Buffer, number>({ name: "outbox", encoding: "binary" });
    this.#logs = this.#root.openDB<LogChunkRecord, number>({ name: "logs" });
    this.#marks = this.#root.openDB<LogMark, string>({ name: "log-marks" });
    this.#taken = this.#root.openDB<LeaseKey, number>({ name: "taken" });
    this.#meta = this.#root.openDB<number, string>({ name: "meta" });
    this.#cordon = this.#root.openDB<CordonState, string>({ name: "cordon" });
    for (const key of this.#taken.getKeys({ reverse: true, limit: 1 })) this.#counts.takenSeq = key;
    for (const { key, value } of this.#outbox.getRange({})) {
      this.#counts.outboxBytes += value.length;
      this.#reportSizes.set(key, value.length);
      const payload = JSON.parse(value.toString("utf8")) as ReportPayload;
      if (payload.kind === "finished") this.#undelivered.set(key, payload.lease);
    }
    for (const { key, value } of this.#logs.getRange({})) {
      this.#logSizes.set(key, value.entries.length);
      this.#counts.logBytes += value.entries.length;
    }
    for (const { key, value } of this.#logs.getRange({ limit: 1 })) {
      this.#ackedSeq.logs = key - 1;
      if (value.dropped) this.#notes.set(keyOf(value.lease), key);
    }
    for (const key of this.#outbox.getKeys({ limit: 1 })) this.#ackedSeq.outbox = key - 1;
    // Sequences are never reused, also when everything was delivered and forgotten.
    for (const name of ["reportSeq", "logSeq", "droppedLogBytes"] as const)
      this.#counts[name] = this.#meta.get(name) ?? 0;
  }

  /** Called after new reports, or new log chunks, are durable. */
  onStored(listeners: { report: () => void; log: () => void }): void {
    this.#onReport = listeners.report;
    this.#onLog = listeners.log;
  }

  /** Keeps the lease, and the report that the attempt starts. Resolves when both are durable. */
  take(held: HeldLease, started: ReportPayload): Promise<void> {
    return this.#write(() => {
      this.#leases.putSync(keyOf(held.offer.lease), held);
      const seq = this.#undo.add(this.#counts, "takenSeq", 1);
      this.#taken.putSync(seq, held.offer.lease);
      this.#taken.removeSync(seq - REMEMBERED_MAX);
      this.#putReport(started);
    });
  }

  /** Replaces the lease by its outcome. Resolves when that is durable. */
  finish(outcome: Extract<ReportPayload, { kind: "finished" }>): Promise<void> {
    return this.#write(() => {
      this.#leases.removeSync(keyOf(outcome.lease));
      this.#marks.removeSync(keyOf(outcome.lease));
      this.#undo.set(this.#undelivered, this.#putReport(outcome), outcome.lease);
    });
  }

  /** Leases without an outcome: after a start, what an earlier process of this agent left behind. */
  held(): HeldLease[] {
    return [...this.#leases.getRange({})].map(({ key, value }) => {
      const parsed = Held.safeParse(value);
      if (!parsed.success)
        throw new InsituError("internal", `the journal's lease ${key} is damaged: ${parsed.error.message}`);
      return parsed.data;
    });
  }

  /** The last that were taken here, ended or not, the oldest first. */
  taken(): LeaseKey[] {
    return [...this.#taken.getRange({})].map(({ value }) => value);
  }

  /** What the control plane said last of whether this agent may take work. */
  cordon(): CordonState | undefined {
    const kept = this.#cordon.get("last");
    if (kept === undefined) return undefined;
    const parsed = CordonState.safeParse(kept);
    if (parsed.success) return parsed.data;
    throw new InsituError("internal", `the journal's cordon is damaged: ${parsed.error.message}`);
  }

  /** Resolves when durable. */
  keepCordon(state: CordonState): Promise<void> {
    return this.#write(
      () => this.#cordon.putSync("last", state),
      () => undefined,
    );
  }

  /** Attempts whose outcome the control plane has not confirmed. */
  undelivered(): LeaseKey[] {
    return [...this.#undelivered.values()];
  }

  /** How far the log of the attempt is on record. */
  logMark(lease: LeaseKey): LogMark {
    return this.#marks.get(keyOf(lease)) ?? { lastSeq: 0, endOffset: 0, bytes: 0, lostBytes: 0 };
  }

  /** Resolves when durable, or when the chunk was given up for want of space. */
  appendLog(chunk: Omit<LogChunkRecord, "seq">, mark: LogMark): Promise<void> {
    return this.#write(() => {
      const seq = this.#undo.add(this.#counts, "logSeq", 1);
      this.#logs.putSync(seq, { ...chunk, seq });
      // A note of a loss comes after what was written later, and must not set the mark back.
      if (mark.lastSeq >= (this.#marks.get(keyOf(chunk.lease))?.lastSeq ?? 0))
        this.#marks.putSync(keyOf(chunk.lease), mark);
      this.#meta.putSync("logSeq", seq);
      this.#undo.set(this.#logSizes, seq, chunk.entries.length);
      this.#undo.add(this.#counts, "logBytes", chunk.entries.length);
      if (this.#counts.logBytes > this.#options.logSpoolMaxBytes) this.#dropOldestLogs();
    }, this.#onLog);
  }

  /** How far the log of an attempt is kept that stays at the site. Resolves when durable. */
  markLog(lease: LeaseKey, mark: LogMark): Promise<void> {
    return this.#write(
      () => {
        if (this.#leases.get(keyOf(lease))) this.#marks.putSync(keyOf(lease), mark);
      },
      () => undefined,
    );
  }

  reportsAfter(seq: number, limit: number): StoredReport[] {
    const range = this.#outbox.getRange({ start: Math.max(seq, this.#ackedSeq.outbox) + 1, limit });
    return [...range].map(({ key, value }) => ({ seq: key, payload: value }));
  }

  /** No more than are wanted: to read a chunk costs as much as to send it. At least one, if there is any. */
  logsAfter(seq: number, limit: number, maxBytes = Number.POSITIVE_INFINITY): LogChunkRecord[] {
    const found: LogChunkRecord[] = [];
    let bytes = 0;
    for (const { value } of this.#logs.getRange({ start: Math.max(seq, this.#ackedSeq.logs) + 1, limit })) {
      bytes += value.entries.length;
      if (found.length > 0 && bytes > maxBytes) break;
      found.push(value);
    }
    return found;
  }

  /** Everything up to `seq` is durable at the control plane. */
  ackReports(seq: number): void {
    for (const acked of this.#forget("outbox", seq)) this.#undelivered.delete(acked);
  }

  ackLogs(seq: number): void {
    this.#forget("logs", seq);
  }

  get spoolBytes(): number {
    return this.#counts.outboxBytes + this.#counts.logBytes;
  }

  get droppedLogBytes(): number {
    return this.#counts.droppedLogBytes;
  }

  /** True when no more results fit: the agent then takes no more work, and drops nothing. */
  get outboxFull(): boolean {
    return this.#counts.outboxBytes > this.#options.outboxMaxBytes;
  }

  /** True when every report was confirmed, and every log chunk. */
  get delivered(): boolean {
    return this.#queue.length === 0 && this.#reportSizes.size === 0 && this.#logSizes.size === 0;
  }

  async close(): Promise<void> {
    this.#flush();
    this.#forgetting?.cancel();
    this.#closed = true;
    await this.#root.close();
  }

  #putReport(payload: ReportPayload): number {
    const seq = this.#undo.add(this.#counts, "reportSeq", 1);
    const bytes = Buffer.from(JSON.stringify(payload));
    this.#outbox.putSync(seq, bytes);
    this.#meta.putSync("reportSeq", seq);
    this.#undo.set(this.#reportSizes, seq, bytes.length);
    this.#undo.add(this.#counts, "outboxBytes", bytes.length);
    return seq;
  }

  /** In memory at once, on disk with the next write. Returns what was not forgotten before. */
  #forget(store: "outbox" | "logs", seq: number): number[] {
    const [sizes, count] =
      store === "outbox"
        ? [this.#reportSizes, "outboxBytes" as const]
        : [this.#logSizes, "logBytes" as const];
    const acked: number[] = [];
    const lastSeq = Math.min(seq, store === "outbox" ? this.#counts.reportSeq : this.#counts.logSeq);
    for (let key = this.#ackedSeq[store] + 1; key <= lastSeq; key++) if (sizes.has(key)) acked.push(key);
    if (store === "logs" && acked.length > 0) {
      for (const [lease, noted] of this.#notes) if (noted <= seq) this.#notes.delete(lease);
    }
    for (const key of acked) {
      this.#counts[count] -= sizes.get(key)!;
      sizes.delete(key);
      this.#forgotten.push({ store, seq: key });
    }
    this.#ackedSeq[store] = Math.max(this.#ackedSeq[store], seq);
    if (acked.length > 0 && !this.#closed)
      this.#forgetting ??= this.#options.clock.after(FORGET_AFTER_MS, () => this.#flush());
    return acked;
  }

  /** Inside a transaction. */
  #removeForgotten(): number {
    const count = Math.min(this.#forgotten.length, FORGET_MAX);
    for (const { store, seq } of this.#forgotten.slice(0, count)) {
      if (store === "outbox") this.#outbox.removeSync(seq);
      else this.#logs.removeSync(seq);
    }
    return count;
  }

  /** On a full disk a small transaction that only frees may pass where a greater one does not. */
  #freeSpace(): void {
    try {
      const removed = this.#root.transactionSync(() => this.#removeForgotten());
      this.#forgotten.splice(0, removed);
    } catch {
      // Nothing is lost: they are removed later.
    }
  }

  /**
   * The oldest chunks give way to a note of how much was lost, so that a reader sees the gap where it is. Notes that
   * lie side by side become one: they are as many as the gaps, however long the flood.
   */
  #dropOldestLogs(): void {
    const target = this.#options.logSpoolMaxBytes * 0.9;
    const firstSeq = Math.max(this.#counts.notedSeq, this.#ackedSeq.logs) + 1;
    for (let seq = firstSeq; seq <= this.#counts.logSeq && this.#counts.logBytes > target; seq++) {
      this.#undo.add(this.#counts, "notedSeq", seq - this.#counts.notedSeq);
      const chunk = this.#logSizes.has(seq) ? this.#logs.get(seq) : undefined;
      if (!chunk || chunk.dropped) continue;
      this.#undo.add(this.#counts, "droppedLogBytes", chunk.contentBytes);
      this.#note(seq, lossOf(chunk));
    }
    this.#meta.putSync("droppedLogBytes", this.#counts.droppedLogBytes);
  }

  #note(seq: number, loss: Loss): void {
    const key = keyOf(loss.lease);
    const beforeSeq = this.#notes.get(key);
    const before =
      beforeSeq !== undefined && this.#logSizes.has(beforeSeq) ? this.#logs.get(beforeSeq) : undefined;
    const both = before && joined(lossOf(before), loss);
    if (both) {
      this.#logs.removeSync(before.seq);
      this.#undo.add(this.#counts, "logBytes", -this.#logSizes.get(before.seq)!);
      this.#undo.delete(this.#logSizes, before.seq);
    }
    const note = noteOf(both ?? loss);
    this.#logs.putSync(seq, { ...note, seq });
    this.#undo.add(this.#counts, "logBytes", note.entries.length - this.#logSizes.get(seq)!);
    this.#undo.set(this.#logSizes, seq, note.entries.length);
    this.#undo.set(this.#notes, key, seq);
  }

  #write(run: () => void, after: () => void = this.#onReport): Promise<void> {
    if (this.#closed) return Promise.reject(new InsituError("unavailable", "the journal is closed"));
    return new Promise((resolve, reject) => {
      const done = (): void => {
        resolve();
        after();
      };
      this.#queue.push({ run, resolve: done, reject });
      if (this.#scheduled) return;
      this.#scheduled = true;
      setImmediate(() => this.#flush());
    });
  }

  #flush(): void {
    this.#scheduled = false;
    this.#forgetting?.cancel();
    this.#forgetting = undefined;
    const taken = this.#queue;
    this.#queue = [];
    if (this.#closed || (taken.length === 0 && this.#forgotten.length === 0)) return;
    try {
      const removed = this.#root.transactionSync(() => {
        for (const pending of taken) pending.run();
        return this.#removeForgotten();
      });
      this.#forgotten.splice(0, removed);
      this.#undo.keep();
    } catch (err) {
      this.#undo.back();
      this.#freeSpace();
      const wrapped = new InsituError("store.unavailable", "the journal cannot be written", {
        retryable: true,
        cause: err,
      });
      for (const pending of taken) pending.reject(wrapped);
      return;
    }
    if (this.#forgotten.length > 0)
      this.#forgetting = this.#options.clock.after(FORGET_AFTER_MS, () => this.#flush());
    for (const pending of taken) pending.resolve();
  }
}

function keyOf(lease: LeaseKey): string {
  return `${lease.runId}/${lease.stepId}/${lease.attempt}/${lease.epoch}`;
}
