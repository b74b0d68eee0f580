/**
 * Runs as readers see them: derived from the stream `RUNS`, kept in LMDB, rebuilt when the folder is deleted.
 *
 * Runs that go on live in memory as projections; LMDB holds a summary of every run and the steps of those that
 * have ended. What is on disk may lag behind by one flush, and is caught up from the stream at start.
 */
import { rmSync } from "node:fs";
import { type Database, open, type RootDatabase } from "lmdb";
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import type { RunEventBatch } from "../../shared/engine/events.ts";
import { isTerminalRun } from "../../shared/engine/state.ts";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import { untilAborted } from "../../shared/until-aborted.ts";
import { FILLER_HEADER, STREAMS } from "../../shared/wire/subjects.ts";
import type { RunDetail, RunSummary, StepView } from "../api/schemas.ts";
import type { Page, RunQueries } from "../api/services.ts";
import { type PoisonSink, reasonOf } from "../poison/ports.ts";
import type { PlanSource, RunStore } from "../runs/ports.ts";
import { RunProjection } from "../runs/run-projection.ts";
import type { RecoveredRun } from "../runs/run-service.ts";
import { type Folded, RunFolds } from "./run-folds.ts";
import { flushed } from "./stream-disk.ts";
import { lastSeqOf, type StreamMessage, StreamTail, storedAtMsOf } from "./stream-reader.ts";
import { whenReady } from "./when-ready.ts";

/** Another number makes a folder written by another release be thrown away and rebuilt. */
const FORMAT = 2;
/** The two ways in which the client reads a time round differently. */
const SAME_TIME_MS = 2;
const FLUSH_MS = 100;
const RETRY_MS = 250;
const FLUSH_AGAIN_MS = 1_000;
/** Batches that wait for one reader; one that is slower reads them from the stream when it is ready for them. */
const FOLLOW_MAX = 1_000;

interface StoredRun {
  summary: RunSummary;
  eventSeq: number;
}

export interface ReadModelOptions {
  directory: string;
  connection: NatsConnection;
  store: RunStore;
  plans: PlanSource;
  clock: Clock;
  log: Logger;
  poison: PoisonSink;
  /** A run was created, here or by another replica. */
  onCreated?(run: RecoveredRun): void;
}

type Listener = (seq: number, batch: RunEventBatch) => void;

export class ReadModel implements RunQueries {
  readonly #options: ReadModelOptions;
  readonly #root: RootDatabase;
  readonly #runs: Database<StoredRun, string>;
  readonly #steps: Database<StepView, [string, number]>;
  readonly #meta: Database<number, string>;
  readonly #folds: RunFolds;
  readonly #dirty = new Set<string>();
  readonly #listeners = new Map<string, Set<Listener>>();
  #waiters: { seq: number; resolve(): void }[] = [];
  #inbox: StreamMessage[] = [];
  #draining = false;
  #seq = 0;
  #storedAtMs = 0;
  #flushedSeq = 0;
  readonly #stop = new AbortController();
  #tail: StreamTail | undefined;
  #flushTimer: Timer | undefined;
  /** When it may be written again, monotonic; 0: the last try went well. */
  #notBeforeMs = 0;

  constructor(options: ReadModelOptions) {
    this.#options = options;
    const { store, plans } = options;
    const versionOf = (runId: string): string | undefined => this.#runs.get(runId)?.summary.version;
    this.#folds = new RunFolds({ store, plans, versionOf });
    this.#root = openRoot(options.directory);
    this.#runs = this.#root.openDB<StoredRun, string>({ name: "runs" });
    this.#steps = this.#root.openDB<StepView, [string, number]>({ name: "steps" });
    this.#meta = this.#root.openDB<number, string>({ name: "meta" });
  }

  /** Resolves when everything that was in the stream at the call is visible. */
  async start(): Promise<void> {
    const { connection, log, clock } = this.#options;
    const lastSeq = await whenReady({ connection, clock }, () => lastSeqOf(connection, STREAMS.runs));
    const known = this.#meta.get("seq") ?? 0;
    const format = this.#meta.get("format") ?? FORMAT;
    if (format !== FORMAT || (known > 0 && !(await this.#isOfStream(known)))) {
      log.warn({ known, lastSeq }, "the read model is not of this stream; building it anew");
      this.#write(() => {
        for (const database of [this.#runs, this.#steps, this.#meta]) database.clearSync();
      });
    }
    // Only where it is missing: a replica whose disk is full starts all the same.
    if (this.#meta.get("format") !== FORMAT) this.#write(() => this.#meta.putSync("format", FORMAT));
    this.#seq = this.#meta.get("seq") ?? 0;
    this.#storedAtMs = this.#meta.get("storedAtMs") ?? 0;
    this.#flushedSeq = this.#seq;
    await this.#loadUnfinished();
    const onMessage = (message: StreamMessage): void => {
      this.#inbox.push(message);
      if (!this.#draining) void this.#drain();
    };
    const fromSeq = this.#seq + 1;
    this.#tail = new StreamTail({ connection, stream: STREAMS.runs, fromSeq, clock, log, onMessage });
    this.#tail.start();
    this.#flushTimer = clock.every(FLUSH_MS, () => this.#tryFlush());
    await this.waitFor(lastSeq);
  }

  async close(): Promise<void> {
    this.#flushTimer?.cancel();
    this.#stop.abort(new InsituError("cancelled", "closed"));
    await this.#tail?.close();
    this.#notBeforeMs = 0;
    this.#tryFlush();
    await this.#root.close();
  }

  /** Resolves when the batch with that sequence is visible to reads. */
  waitFor(seq: number): Promise<void> {
    if (this.#seq >= seq) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push({ seq, resolve }));
  }

  /** The runs that go on, as the stream has them at the call, for whoever decides for them. */
  async unfinished(): Promise<RecoveredRun[]> {
    await this.waitFor(await lastSeqOf(this.#options.connection, STREAMS.runs));
    return [...this.#folds.whole()]
      .filter((run) => !run.terminal && run.state.runId !== "")
      .map((run) => ({ runId: run.state.runId, state: run.state, seq: run.seq }));
  }

  list(query: {
    pipeline?: string;
    pipelines?: readonly string[];
    status?: string;
    limit: number;
    cursor?: string;
  }): Page<RunSummary> {
    this.#flush();
    const items: RunSummary[] = [];
    // Ids begin with the time, so the key order backwards is newest first.
    const range = query.cursor === undefined ? {} : { start: query.cursor, exclusiveStart: true };
    for (const { value } of this.#runs.getRange({ ...range, reverse: true })) {
      const { summary } = value;
      if (query.pipeline !== undefined && summary.pipeline !== query.pipeline) continue;
      if (query.pipelines?.includes(summary.pipeline) === false) continue;
      if (query.status !== undefined && summary.status !== query.status) continue;
      if (items.length === query.limit) return { items, nextCursor: items.at(-1)!.id };
      items.push(summary);
    }
    return { items, nextCursor: null };
  }

  get(runId: string): RunDetail | undefined {
    const active = this.#folds.get(runId);
    if (active) return active.detail();
    const stored = this.#runs.get(runId);
    if (!stored) return undefined;
    const steps = [...this.#steps.getRange({ start: [runId, 0], end: [runId, Number.MAX_SAFE_INTEGER] })];
    return { ...stored.summary, steps: steps.map(({ value }) => value), eventSeq: stored.eventSeq };
  }

  summary(runId: string): RunSummary | undefined {
    return this.#folds.get(runId)?.summary() ?? this.#runs.get(runId)?.summary;
  }

  async *follow(
    runId: string,
    afterSeq: number,
    signal: AbortSignal,
  ): AsyncGenerator<{ seq: number; batch: RunEventBatch }> {
    const buffer: { seq: number; batch: RunEventBatch }[] = [];
    let wake = (): void => {};
    let missed = false;
    const listener: Listener = (seq, batch) => {
      if (buffer.length < FOLLOW_MAX) buffer.push({ seq, batch });
      else missed = true;
      wake();
    };
    const onAbort = (): void => wake();
    this.#listen(runId, listener);
    signal.addEventListener("abort", onAbort);
    try {
      let seen = afterSeq;
      let over = false;
      for (const { seq, events } of await this.#options.store.read(runId, afterSeq)) {
        seen = seq;
        // The stream may be ahead of what is read from it here: whoever sees an event finds it in the run as well.
        await untilAborted(this.waitFor(seq), signal).catch(() => undefined);
        if (signal.aborted) return;
        yield { seq, batch: { v: 1, events } };
        // To the last batch: evidence that came after the end is part of the run's history.
        over ||= ends(events);
      }
      if (over) return;
      while (!signal.aborted) {
        const next = buffer.shift();
        if (next === undefined && missed) {
          missed = false;
          for (const { seq, events } of await this.#options.store.read(runId, seen)) {
            seen = seq;
            yield { seq, batch: { v: 1, events } };
            over ||= ends(events);
          }
          if (over) return;
        } else if (next === undefined) {
          // A reader that comes back after the end has nothing to wait for; nor has one that a late outcome woke.
          if (this.#ended(runId)) return;
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        } else if (next.seq > seen) {
          seen = next.seq;
          yield next;
          if (ends(next.batch.events)) return;
        }
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
      this.#unlisten(runId, listener);
    }
  }

  #ended(runId: string): boolean {
    const active = this.#folds.get(runId);
    if (active) return active.terminal;
    const stored = this.#runs.get(runId);
    return stored !== undefined && isTerminalRun(stored.summary.status);
  }

  #listen(runId: string, listener: Listener): void {
    const listeners = this.#listeners.get(runId) ?? new Set();
    this.#listeners.set(runId, listeners.add(listener));
  }

  #unlisten(runId: string, listener: Listener): void {
    const listeners = this.#listeners.get(runId);
    listeners?.delete(listener);
    if (listeners?.size === 0) this.#listeners.delete(runId);
  }

  /** False after a restore from a backup, too: the same sequences are of other events then. */
  async #isOfStream(seq: number): Promise<boolean> {
    const { connection, clock } = this.#options;
    const atMs = await whenReady({ connection, clock }, () => storedAtMsOf(connection, STREAMS.runs, seq));
    return atMs !== undefined && Math.abs(atMs - (this.#meta.get("storedAtMs") ?? 0)) <= SAME_TIME_MS;
  }

  async #loadUnfinished(): Promise<void> {
    for (const { key, value } of this.#runs.getRange({})) {
      if (value.summary.finishedAtMs !== null) continue;
      const run = new RunProjection(await this.#options.plans.load(value.summary.version));
      for (const { seq, events } of await this.#options.store.read(key, 0)) {
        try {
          run.apply(seq, events);
        } catch (err) {
          // As when they came: one run's history that is impossible keeps no replica from starting.
          this.#options.log.error({ err, runId: key, seq }, "run events not understood");
          this.#folds.stop(key);
          break;
        }
      }
      this.#folds.set(key, run);
      this.#dirty.add(key);
    }
  }

  async #drain(): Promise<void> {
    this.#draining = true;
    while (this.#inbox.length > 0) {
      const taken = this.#inbox;
      this.#inbox = [];
      if (!(await this.#untilFlushed(taken.at(-1)!.seq))) return;
      for (const message of taken) {
        if (message.header(FILLER_HEADER) !== "") {
          this.#advance(message);
          continue;
        }
        try {
          await this.#takeWhenAnswered(message);
        } catch (err) {
          if (this.#stop.signal.aborted) return;
          // A message from outside our own code is an event, not an assertion: the rest goes on.
          this.#options.log.error(
            { err, seq: message.seq, subject: message.subject },
            "run events not understood",
          );
          const { subject, seq, data } = message;
          const reason = reasonOf(err);
          await this.#options.poison.put({ source: "runs", subject, seq, from: "", reason, data });
        }
        this.#advance(message);
      }
    }
    this.#draining = false;
  }

  /** Nobody is shown what a power cut may take, or what the run's own actor does not know yet. False when closed. */
  async #untilFlushed(seq: number): Promise<boolean> {
    const { connection, clock, log } = this.#options;
    for (let told = false; ; told = true) {
      try {
        await flushed(connection, STREAMS.runs, seq);
        return true;
      } catch (err) {
        if (this.#stop.signal.aborted) return false;
        if (!told) log.warn({ err, seq }, "run events not shown yet");
        await clock.sleep(RETRY_MS, this.#stop.signal).catch(() => {}); // closed, which the next round sees
      }
    }
  }

  /** Waits for a store that is away: to go on would lose what the message says. */
  async #takeWhenAnswered(message: StreamMessage): Promise<void> {
    const { clock, log } = this.#options;
    for (;;) {
      try {
        const folded = await this.#folds.take(message);
        if (folded) this.#tell(folded);
        return;
      } catch (thrown) {
        const err = InsituError.from(thrown);
        if (!err.retryable) throw err;
        log.warn({ err, subject: message.subject, seq: message.seq }, "run events not read yet");
        await clock.sleep(RETRY_MS, this.#stop.signal);
      }
    }
  }

  #tell({ runId, seq, events, run }: Folded): void {
    this.#dirty.add(runId);
    if (events[0]?.kind === "run.created")
      this.#options.onCreated?.({ runId, state: run.state, seq: run.seq });
    const listeners = this.#listeners.get(runId);
    if (listeners) for (const listener of listeners) listener(seq, { v: 1, events: [...events] });
  }

  #advance({ seq, storedAtMs }: StreamMessage): void {
    this.#seq = seq;
    this.#storedAtMs = storedAtMs;
    if (this.#waiters.length === 0) return;
    for (const waiter of this.#waiters) if (waiter.seq <= seq) waiter.resolve();
    this.#waiters = this.#waiters.filter((waiter) => waiter.seq > seq);
  }

  /** With a disk that is full, what was read stays in memory: a later try writes it, or the next start reads it again. */
  #tryFlush(): void {
    const { clock, log } = this.#options;
    if (clock.monotonicMs() < this.#notBeforeMs) return;
    try {
      this.#flush();
      if (this.#notBeforeMs > 0) log.info({}, "the read model is on disk again");
      this.#notBeforeMs = 0;
    } catch (err) {
      if (this.#notBeforeMs === 0) log.error({ err }, "read model not written; trying again");
      this.#notBeforeMs = clock.monotonicMs() + FLUSH_AGAIN_MS;
    }
  }

  /** @throws store.unavailable (retryable) when it cannot be written: nothing of it is on the disk then */
  #flush(): void {
    if (this.#dirty.size === 0 && this.#seq === this.#flushedSeq) return;
    const seq = this.#seq;
    this.#write(() => {
      for (const runId of this.#dirty) this.#writeRun(runId, this.#folds.get(runId)!);
      this.#meta.putSync("seq", seq);
      this.#meta.putSync("storedAtMs", this.#storedAtMs);
    });
    this.#flushedSeq = seq;
    for (const runId of this.#dirty) {
      if (this.#folds.get(runId)?.terminal) this.#folds.forget(runId);
    }
    this.#dirty.clear();
  }

  #write(change: () => void): void {
    try {
      this.#root.transactionSync(change);
    } catch (err) {
      const { directory } = this.#options;
      const why = err instanceof Error ? err.message : String(err);
      throw new InsituError(
        "store.unavailable",
        `this replica cannot write its read model to ${directory} (${why}): is there room on the disk? Nothing is lost: it is derived from NATS`,
        { retryable: true, cause: err },
      );
    }
  }

  #writeRun(runId: string, run: RunProjection): void {
    this.#runs.putSync(runId, { summary: run.summary(), eventSeq: run.seq });
    if (!run.terminal) return;
    run.state.plan.steps.forEach((_, index) => {
      this.#steps.putSync([runId, index], run.step(index));
    });
  }
}

function ends(events: RunEventBatch["events"]): boolean {
  return events.some((event) => event.kind === "run.finished");
}

function openRoot(directory: string): RootDatabase {
  try {
    return open({ path: directory, maxDbs: 8 });
  } catch (err) {
    // Nothing here cannot be derived again.
    rmSync(directory, { recursive: true, force: true });
    try {
      return open({ path: directory, maxDbs: 8 });
    } catch {
      throw new InsituError("store.unavailable", `cannot open the read model in ${directory}`, {
        cause: err,
      });
    }
  }
}
