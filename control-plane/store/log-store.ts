/** Logs of steps on the stream `LOGS`: chunks as agents sent them, read back entry by entry. */
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { decodeLogEntries } from "../../shared/wire/log-codec.ts";
import type { LogEntry } from "../../shared/wire/log-entries.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { LogLine } from "../api/schemas.ts";
import type { LogQueries, RunQueries } from "../api/services.ts";
import type { LogDoubts, StoredChunk } from "../gateway/log-doubts.ts";
import type { LogChunk, LogSink } from "../gateway/ports.ts";
import { type PoisonSink, reasonOf } from "../poison/ports.ts";
import { chunkOf, headersOf } from "./log-headers.ts";
import { publish } from "./publish.ts";
import { readToEnd, type StreamMessage, StreamTail } from "./stream-reader.ts";

/** Longer than a cluster takes to elect a leader. Then the agent is told to send it again. */
const PATIENCE_MS = 20_000;
/** After the end of a run, how long a follower waits for chunks that its outcomes announce. */
const LATE_MAX_MS = 10_000;
/** Chunks that wait for one reader; for a slower one the stream is read on when it has taken them. */
const FOLLOW_MAX_BYTES = 4 * 1024 * 1024;

type Query = Parameters<LogQueries["read"]>[0];

export interface LogStoreOptions {
  connection: NatsConnection;
  clock: Clock;
  log: Logger;
  poison: PoisonSink;
  queries: Pick<RunQueries, "get" | "follow">;
  /** Whether the attempt under that epoch was granted to the agent's environment. */
  wasGranted(agent: string, chunk: Pick<LogChunk, "runId" | "stepId" | "epoch">): Promise<boolean>;
  doubts: Pick<LogDoubts, "of">;
}

export class LogStore implements LogSink, LogQueries {
  readonly #options: LogStoreOptions;

  constructor(options: LogStoreOptions) {
    this.#options = options;
  }

  /** @throws auth.denied when the attempt was never granted to the agent's environment: the gateway sets it aside */
  async append(agent: string, chunk: LogChunk): Promise<void> {
    const { runId, stepId, attempt, epoch, firstEntry } = chunk;
    if (!(await this.#options.wasGranted(agent, chunk))) {
      throw new InsituError("auth.denied", `step ${stepId} of run ${runId} was not granted to ${agent}`);
    }
    await publish(
      { ...this.#options, patienceMs: PATIENCE_MS },
      {
        what: `log of step ${stepId} in run ${runId}`,
        stream: STREAMS.logs,
        subject: subjects.log(runId, stepId, attempt),
        payload: chunk.entries,
        // By content, not by the agent's sequence: a reinstalled agent begins that anew. With the count, because
        // a chunk that begins at the same entry and reaches further is another one, and not a repeat.
        messageId: `${runId}/${stepId}/${attempt}/${epoch}/${firstEntry}+${chunk.entryCount}`,
        headers: headersOf(chunk),
      },
    );
  }

  async *read(query: Query): AsyncGenerator<LogLine> {
    const unfolder = new Unfolder((message, reason) => {
      const { subject, seq, data } = message;
      void this.#options.poison.put({ source: "logs", subject, seq, from: "", reason, data });
    });
    const filter = filterOf(query);
    const doubtOf = this.#options.doubts.of(query.runId);
    const source = query.follow ? this.#follow(query, filter, unfolder) : this.#stored(filter);
    for await (const message of source) {
      const chunk = chunkOf(message);
      if (chunk === undefined) unfolder.refuse(message, "it does not say which entries it holds");
      else {
        const doubt = await doubtOf(chunk);
        if (doubt === undefined) yield* unfolder.unfold({ message, chunk });
        else yield refused({ message, chunk }, doubt, unfolder);
      }
    }
    yield* unfolder.rest();
  }

  #stored(filter: string): AsyncIterable<StreamMessage> {
    return readToEnd({ connection: this.#options.connection, stream: STREAMS.logs, filter, fromSeq: 1 });
  }

  async *#follow(query: Query, filter: string, unfolder: Unfolder): AsyncGenerator<StreamMessage> {
    const { connection, clock, log } = this.#options;
    const queue: StreamMessage[] = [];
    const stop = query.signal;
    let wake = (): void => {};
    let ended = false;
    let queuedBytes = 0;
    let lastSeq = 0;
    let full = false;
    const onMessage = (message: StreamMessage): void => {
      // What comes after the queue was full comes again, from the tail that is opened then.
      if (full) return;
      queue.push(message);
      lastSeq = message.seq;
      queuedBytes += message.data.length;
      full = queuedBytes > FOLLOW_MAX_BYTES;
      wake();
    };
    const open = (): StreamTail => {
      const from = { connection, stream: STREAMS.logs, filter, fromSeq: lastSeq + 1 };
      const opened = new StreamTail({ ...from, clock, log, onMessage });
      opened.start();
      return opened;
    };
    let tail = open();
    const watching = new AbortController();
    const onAbort = (): void => {
      watching.abort();
      wake();
    };
    stop.addEventListener("abort", onAbort);
    const end = this.#waitForEnd(query.runId, watching.signal).then(() => {
      ended = true;
      wake();
    });
    let giveUpAtMs: number | undefined;
    try {
      while (!stop.aborted) {
        const message = queue.shift();
        if (message) {
          queuedBytes -= message.data.length;
          yield message;
          continue;
        }
        if (full) {
          await tail.close();
          full = false;
          tail = open();
          continue;
        }
        if (ended) {
          giveUpAtMs ??= clock.monotonicMs() + LATE_MAX_MS;
          if (this.#complete(query, unfolder) || clock.monotonicMs() > giveUpAtMs) return;
        }
        await new Promise<void>((resolve) => {
          wake = resolve;
          if (ended) clock.after(100, resolve);
        });
      }
    } finally {
      stop.removeEventListener("abort", onAbort);
      watching.abort();
      await tail.close();
      await end;
    }
  }

  async #waitForEnd(runId: string, signal: AbortSignal): Promise<void> {
    const { queries, log } = this.#options;
    try {
      for await (const { batch } of queries.follow(runId, queries.get(runId)?.eventSeq ?? 0, signal)) {
        if (batch.events.some((event) => event.kind === "run.finished")) return;
      }
    } catch (err) {
      log.warn({ err, runId }, "the end of a run cannot be seen; its logs end here");
    }
  }

  /** True when every entry that the outcomes announce has been read. */
  #complete(query: Query, unfolder: Unfolder): boolean {
    const steps = this.#options.queries.get(query.runId)?.steps ?? [];
    return steps
      .filter((step) => query.step === undefined || step.id === query.step)
      .every((step) =>
        step.attempts
          .filter((attempt) => query.attempt === undefined || attempt.attempt === query.attempt)
          .every(({ attempt, epoch, logLastSeq }) => unfolder.lastSeq(step.id, attempt, epoch) >= logLastSeq),
      );
  }
}

function filterOf(query: Query): string {
  if (query.step === undefined) return subjects.logsOfRun(query.runId);
  if (query.attempt === undefined) return subjects.logsOfStep(query.runId, query.step);
  return subjects.log(query.runId, query.step, query.attempt);
}

/** A chunk, and the message that it came in. */
interface Piece {
  message: StreamMessage;
  chunk: StoredChunk;
}

/**
 * In the place of a chunk that its agent did not sign. What it says of its entries is not believed either: it takes the
 * place of none. Whoever wants to see it finds it where poison is kept.
 */
function refused({ message, chunk }: Piece, doubt: string, unfolder: Unfolder): LogLine {
  const { stepId: step, attempt, epoch, firstEntry: seq } = chunk;
  const last = seq + chunk.entryCount - 1;
  const why = `entries ${seq} to ${last} of attempt ${attempt} of step ${step}, epoch ${epoch}: ${doubt} (message ${message.seq} of the stream ${STREAMS.logs})`;
  unfolder.refuse(message, why);
  const about = { step, attempt, epoch, seq, atMs: message.storedAtMs, stream: "agent" } as const;
  return { ...about, data: "", droppedBytes: 0, refused: why };
}

/** The log of one attempt under one epoch, while it is read. */
interface Thread {
  /** The entry that comes next. */
  next: number;
  /** Chunks that came before their turn, by their first entry. */
  early: Map<number, Piece>;
}

/** Chunks to entries, in the order in which they were written; what was stored twice is read once. */
class Unfolder {
  readonly #threads = new Map<string, Thread>();
  /** Told of a chunk that is not shown. The others are. */
  readonly refuse: (message: StreamMessage, reason: string) => void;

  constructor(onRefused: (message: StreamMessage, reason: string) => void) {
    this.refuse = onRefused;
  }

  lastSeq(step: string, attempt: number, epoch: number): number {
    return (this.#threads.get(`${step}/${attempt}/${epoch}`)?.next ?? 1) - 1;
  }

  *unfold(piece: Piece): Generator<LogLine> {
    const { stepId, attempt, epoch, firstEntry: first } = piece.chunk;
    const key = `${stepId}/${attempt}/${epoch}`;
    const thread = this.#threads.get(key) ?? { next: 1, early: new Map() };
    this.#threads.set(key, thread);
    if (first > thread.next) {
      const other = thread.early.get(first);
      if (!other || endOf(other) < endOf(piece)) thread.early.set(first, piece);
      return;
    }
    yield* this.#emit(thread, piece);
    // Chunks may overlap: one that waited can begin before the entry that is wanted, and reach beyond it.
    for (let ready = readyIn(thread); ready !== undefined; ready = readyIn(thread)) {
      const early = thread.early.get(ready)!;
      thread.early.delete(ready);
      yield* this.#emit(thread, early);
    }
  }

  /** What waits behind a gap that nothing will fill any more. */
  *rest(): Generator<LogLine> {
    for (const thread of this.#threads.values()) {
      for (const first of [...thread.early.keys()].sort((a, b) => a - b)) {
        yield* this.#emit(thread, thread.early.get(first)!);
      }
      thread.early.clear();
    }
  }

  *#emit(thread: Thread, piece: Piece): Generator<LogLine> {
    const { stepId: step, attempt, epoch } = piece.chunk;
    for (const entry of this.#entriesOf(piece)) {
      if (entry.seq < thread.next) continue;
      yield {
        step,
        attempt,
        epoch,
        seq: entry.seq,
        atMs: entry.atMs || piece.message.storedAtMs,
        stream: entry.stream,
        data: Buffer.from(entry.data).toString("base64"),
        droppedBytes: entry.droppedBytes,
        ...(entry.droppedLines ? { droppedLines: entry.droppedLines } : {}),
      };
    }
    thread.next = Math.max(thread.next, endOf(piece));
  }

  /** Empty when they cannot be decoded: agents compress them, and nobody looks inside before. */
  #entriesOf({ message, chunk }: Piece): LogEntry[] {
    try {
      return decodeLogEntries(chunk.encoding, chunk.entries);
    } catch (err) {
      this.refuse(message, reasonOf(err));
      return [];
    }
  }
}

/** The entry after the last one of a chunk. */
function endOf({ chunk }: Piece): number {
  return chunk.firstEntry + chunk.entryCount;
}

/** First entry of a waiting chunk whose turn has come. */
function readyIn(thread: Thread): number | undefined {
  for (const first of thread.early.keys()) if (first <= thread.next) return first;
  return undefined;
}
