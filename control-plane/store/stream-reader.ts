/** Reads a JetStream stream from a sequence on: to its present end, or for ever. */
import { AckPolicy, DeliverPolicy, type JsMsg, type NatsConnection, nanos } from "nats";
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
/** A reader that nobody asks for so long is forgotten by the server. */
const INACTIVE_MS = 30_000;

export interface ReadOptions {
  connection: NatsConnection;
  stream: string;
  filter?: string;
  /** First sequence that is wanted, from 1. */
  fromSeq: number;
}

const PAGE_MAX = 500;
const PAGE_EXPIRES_MS = 5_000;
/** Pages in a row that may bring nothing before the read is given up. */
const EMPTY_PAGES_MAX = 3;

/**
 * Everything that the stream holds now, in order. Ends at what was the end when the call began.
 *
 * Over a plain consumer without acknowledgements, whose deliveries are numbered: a page with a gap is cut there,
 * and the read goes on behind the last message with a new consumer. The client's ordered consumer resets itself
 * between fetches and was seen to skip hundreds of messages without a word.
 *
 * @throws store.unavailable (retryable) when the store does not answer; what was yielded before is sound
 */
export async function* readToEnd(options: ReadOptions): AsyncGenerator<StreamMessage> {
  const { connection, stream } = options;
  const endSeq = await lastSeqOf(connection, stream);
  let { fromSeq } = options;
  for (let empty = 0; fromSeq <= endSeq; ) {
    const opened = await openReader({ ...options, fromSeq });
    try {
      let { pending } = opened;
      if (pending === 0) return;
      while (pending > 0 && fromSeq <= endSeq) {
        const page = await opened.page(Math.min(pending, PAGE_MAX));
        pending -= page.messages.length;
        empty = page.messages.length === 0 ? empty + 1 : 0;
        for (const message of page.messages) {
          if (message.seq > endSeq) return;
          fromSeq = message.seq + 1;
          yield message;
        }
        if (!page.whole) break;
      }
      if (pending === 0) return;
    } finally {
      await opened.close();
    }
    if (empty >= EMPTY_PAGES_MAX) {
      throw new InsituError("store.unavailable", `read of ${stream} stalled at sequence ${fromSeq}`, {
        retryable: true,
      });
    }
  }
}

interface Reader {
  /** Messages that the consumer had for us when it was opened. */
  pending: number;
  /** Up to so many messages, cut before the first gap. `whole` is false when some did not arrive. */
  page(size: number): Promise<{ messages: StreamMessage[]; whole: boolean }>;
  close(): Promise<void>;
}

async function openReader(options: ReadOptions): Promise<Reader> {
  const { connection, stream, filter, fromSeq } = options;
  const what = `read of ${stream}`;
  try {
    const manager = await connection.jetstreamManager();
    const info = await manager.consumers.add(stream, {
      ack_policy: AckPolicy.None,
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: fromSeq,
      inactive_threshold: nanos(INACTIVE_MS),
      mem_storage: true,
      num_replicas: 1,
      ...(filter === undefined ? {} : { filter_subject: filter }),
    });
    const consumer = await connection.jetstream().consumers.get(stream, info.name);
    let delivered = 0;
    return {
      pending: info.num_pending,
      async page(size) {
        const messages: StreamMessage[] = [];
        let whole = true;
        try {
          // Collected before any is handed on: a slow reader must not hold up the client.
          for await (const message of await consumer.fetch({
            max_messages: size,
            expires: PAGE_EXPIRES_MS,
          })) {
            whole &&= message.info.deliverySequence === delivered + 1;
            if (!whole) continue;
            delivered += 1;
            messages.push(toMessage(message));
          }
        } catch (err) {
          if (messages.length === 0) throw storeError(err, what);
        }
        return { messages, whole: whole && messages.length === size };
      },
      close: async () => {
        await consumer.delete().catch(() => false); // it would vanish by itself; this is only tidier
      },
    };
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
