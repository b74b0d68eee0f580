/** Reads a JetStream stream from a sequence on: to its present end, or for ever. */
import type { JsMsg, NatsConnection } from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { errorCode, onReconnect, storeError } from "./jetstream.ts";

/** What a message is to readers. `data` is valid after the callback too. */
export interface StreamMessage {
  seq: number;
  subject: string;
  data: Uint8Array;
  header(name: string): string;
  /** When the server stored it. */
  storedAtMs: number;
}

const HEARTBEAT_MS = 2_000;
const EXPIRES_MS = 10_000;
const RESTART_MS = 500;

export interface ReadOptions {
  connection: NatsConnection;
  stream: string;
  filter?: string;
  /** First sequence that is wanted, from 1. */
  fromSeq: number;
}

/** Everything that the stream holds now, in order. Ends at what was the end when the call began. */
export async function* readToEnd(options: ReadOptions): AsyncGenerator<StreamMessage> {
  const { connection, stream, filter, fromSeq } = options;
  const what = `read of ${stream}`;
  try {
    const jetstream = connection.jetstream();
    const consumer = await jetstream.consumers.get(stream, {
      ...(filter === undefined ? {} : { filterSubjects: filter }),
      opt_start_seq: fromSeq,
    });
    try {
      let pending = (await consumer.info()).num_pending;
      while (pending > 0) {
        const messages = await consumer.fetch({ max_messages: Math.min(pending, 500), expires: 5_000 });
        let got = 0;
        for await (const message of messages) {
          got += 1;
          pending -= 1;
          yield toMessage(message);
          if (pending === 0) break;
        }
        if (got === 0) throw new InsituError("store.unavailable", `${what} stalled`, { retryable: true });
      }
    } finally {
      await consumer.delete().catch(() => false); // it would vanish by itself; this is only tidier
    }
  } catch (err) {
    throw storeError(err, what);
  }
}

/** The last sequence of the stream, 0 when it is empty. */
export async function lastSeqOf(connection: NatsConnection, stream: string): Promise<number> {
  try {
    const manager = await connection.jetstreamManager();
    return (await manager.streams.info(stream)).state.last_seq;
  } catch (err) {
    throw storeError(err, `state of ${stream}`);
  }
}

/**
 * Follows a stream for ever: each message once, in order, over reconnects and restarts of the server.
 *
 * The client's own recovery waits for two missed heartbeats and can come back with a consumer that the server
 * has forgotten; after a reconnect it is therefore opened anew behind the last message seen.
 */
export class StreamTail {
  readonly #options: ReadOptions & { clock: Clock; log: Logger; onMessage(message: StreamMessage): void };
  readonly #stop = new AbortController();
  #nextSeq: number;
  #done: Promise<void> | undefined;
  #restart = new AbortController();
  #forget: () => void = () => undefined;

  constructor(options: ReadOptions & { clock: Clock; log: Logger; onMessage(message: StreamMessage): void }) {
    this.#options = options;
    this.#nextSeq = options.fromSeq;
  }

  start(): void {
    this.#forget = onReconnect(this.#options.connection, () => this.#restart.abort());
    this.#done = this.#run();
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    this.#restart.abort();
    this.#forget();
    await this.#done;
  }

  async #run(): Promise<void> {
    const { clock, log, stream } = this.#options;
    while (!this.#stop.signal.aborted) {
      this.#restart = new AbortController();
      try {
        await this.#consume(this.#restart.signal);
      } catch (err) {
        if (this.#stop.signal.aborted) return;
        log.warn({ err, stream, seq: this.#nextSeq }, "stream tail interrupted; opening it again");
        await clock.sleep(RESTART_MS, this.#stop.signal).catch(() => undefined);
      }
    }
  }

  async #consume(restart: AbortSignal): Promise<void> {
    const { connection, stream, filter } = this.#options;
    const jetstream = connection.jetstream({ timeout: 5_000 });
    const consumer = await jetstream.consumers.get(stream, {
      ...(filter === undefined ? {} : { filterSubjects: filter }),
      opt_start_seq: this.#nextSeq,
    });
    if (restart.aborted) return;
    const messages = await consumer.consume({
      max_messages: 1_000,
      expires: EXPIRES_MS,
      idle_heartbeat: HEARTBEAT_MS,
      callback: (message) => {
        if (restart.aborted || message.seq < this.#nextSeq) return;
        this.#nextSeq = message.seq + 1;
        this.#options.onMessage(toMessage(message));
      },
    });
    restart.addEventListener("abort", () => messages.stop(), { once: true });
    if (restart.aborted) messages.stop();
    const err = await messages.closed();
    if (err instanceof Error && !restart.aborted)
      throw storeError(err, `tail of ${stream} (${errorCode(err) ?? ""})`);
  }
}

function toMessage(message: JsMsg): StreamMessage {
  return {
    seq: message.seq,
    subject: message.subject,
    data: message.data,
    header: (name) => message.headers?.get(name) ?? "",
    storedAtMs: Math.floor(message.info.timestampNanos / 1e6),
  };
}
