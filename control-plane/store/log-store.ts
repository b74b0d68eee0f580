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
import type { LogChunk, LogSink } from "../gateway/ports.ts";
import { type PoisonSink, reasonOf } from "../poison/ports.ts";
import { publish } from "./publish.ts";
import { readToEnd, type StreamMessage, StreamTail } from "./stream-reader.ts";

const EPOCH = "Insitu-Epoch";
const FIRST = "Insitu-First-Entry";
const COUNT = "Insitu-Entry-Count";
const ENCODING = "Insitu-Encoding";
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
        headers: {
          [EPOCH]: String(epoch),
          [FIRST]: String(firstEntry),
          [COUNT]: String(chunk.entryCount),
          [ENCODING]: chunk.encoding,
        },
      },
    );
  }

  async *read(query: Query): AsyncGenerator<LogLine> {
    const unfolder = new Unfolder((message, reason) => {
      const { subject, seq, data } = message;
      void this.#options.poison.put({ source: "logs", subject, seq, from: "", reason, data });
    });
    const filter = filterOf(query);
    const source = query.follow ? this.#follow(query, filter, unfolder) : this.#stored(filter);
    for await (const message of source) yield* unfolder.unfold(message);
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

/** The log of one attempt under one epoch, while it is read. */
interface Thread {
  /** The entry that comes next. */
  next: number;
  /** Chunks that came before their turn, by their first entry. */
  early: Map<number, StreamMessage>;
}

/** Chunks to entries, in the order in which they were written; what was stored twice is read once. */
class Unfolder {
  readonly #threads = new Map<string, Thread>();
  /** Told of a chunk that cannot be read. The others are. */
  readonly #onPoison: (message: StreamMessage, reason: string) => void;

  constructor(onPoison: (message: StreamMessage, reason: string) => void) {
    this.#onPoison = onPoison;
  }

  lastSeq(step: string, attempt: number, epoch: number): number {
    return (this.#threads.get(`${step}/${attempt}/${epoch}`)?.next ?? 1) - 1;
  }

  *unfold(message: StreamMessage): Generator<LogLine> {
    if (![EPOCH, FIRST, COUNT].every((name) => /^[1-9]\d{0,9}$/.test(message.header(name)))) {
      this.#onPoison(message, "it does not say which entries it holds");
      return;
    }
    const key = `${stepAndAttempt(message).join("/")}/${message.header(EPOCH)}`;
    const thread = this.#threads.get(key) ?? { next: 1, early: new Map() };
    this.#threads.set(key, thread);
    const first = Number(message.header(FIRST));
    if (first > thread.next) {
      const other = thread.early.get(first);
      if (!other || endOf(other) < endOf(message)) thread.early.set(first, message);
      return;
    }
    yield* this.#emit(thread, message);
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

  *#emit(thread: Thread, message: StreamMessage): Generator<LogLine> {
    const [step, attempt] = stepAndAttempt(message);
    for (const entry of this.#entriesOf(message)) {
      if (entry.seq < thread.next) continue;
      yield {
        step,
        attempt,
        epoch: Number(message.header(EPOCH)),
        seq: entry.seq,
        atMs: entry.atMs || message.storedAtMs,
        stream: entry.stream,
        data: Buffer.from(entry.data).toString("base64"),
        droppedBytes: entry.droppedBytes,
        ...(entry.droppedLines ? { droppedLines: entry.droppedLines } : {}),
      };
    }
    thread.next = Math.max(thread.next, endOf(message));
  }

  /** Empty when they cannot be decoded: agents compress them, and nobody looks inside before. */
  #entriesOf(message: StreamMessage): LogEntry[] {
    const encoding = message.header(ENCODING) === "gzip" ? "gzip" : "identity";
    try {
      return decodeLogEntries(encoding, message.data);
    } catch (err) {
      this.#onPoison(message, reasonOf(err));
      return [];
    }
  }
}

/** The entry after the last one of a chunk. */
function endOf(message: StreamMessage): number {
  return Number(message.header(FIRST)) + Number(message.header(COUNT));
}

/** First entry of a waiting chunk whose turn has come. */
function readyIn(thread: Thread): number | undefined {
  for (const first of thread.early.keys()) if (first <= thread.next) return first;
  return undefined;
}

function stepAndAttempt(message: StreamMessage): [string, number] {
  const [, , step, attempt] = message.subject.split(".");
  return [step!, Number(attempt)];
}
