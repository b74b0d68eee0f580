/** Reads a JetStream stream from a sequence on: to its present end, or for ever. */
import {
  AckPolicy,
  type Consumer,
  ConsumerEvents,
  type ConsumerMessages,
  DeliverPolicy,
  type JsMsg,
  type NatsConnection,
  nanos,
} from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { errorCode, lastMessageOf, NO_MESSAGE_FOUND, onReconnect, passes, storeError } from "./jetstream.ts";

/** What a message is to readers. `data` is valid after the callback too. */
export interface StreamMessage {
  seq: number;
  subject: string;
  data: Uint8Array;
  header(name: string): string;
  /** When the server stored it. */
  storedAtMs: number;
}

const HEARTBEAT_MS = 1_000;
const EXPIRES_MS = 10_000;
const RESTART_MS = 250;
/** A reader that nobody asks for so long is forgotten by the server. */
const INACTIVE_MS = 30_000;

export interface ReadOptions {
  connection: NatsConnection;
  stream: string;
  filter?: string;
  /** First sequence that is wanted, from 1. */
  fromSeq: number;
  /** Without the data. */
  headersOnly?: boolean;
}

/** A call that gets no answer while a cluster elects a leader is made again soon. */
const CALL_TIMEOUT_MS = 2_000;
const PAGE_MAX = 500;
const PAGE_EXPIRES_MS = 5_000;
/** For a server of the cluster that does not have yet what the leader has. */
const BEHIND_EXPIRES_MS = 1_000;
/** Pages in a row that may bring nothing before the read is given up. */
const EMPTY_PAGES_MAX = 5;

/**
 * Everything that the stream holds now, in order. Ends at what was the end when the call began.
 *
 * Over a plain consumer without acknowledgements, whose deliveries are numbered: a page with a gap is cut there,
 * and the read goes on behind the last message with a new consumer. The client's ordered consumer resets itself
 * between fetches and was seen to skip hundreds of messages without a word.
 *
 * In a cluster the consumer may live on a server that lags behind. What the end is, says the leader.
 *
 * @throws store.unavailable (retryable) when the store does not answer; what was yielded before is sound
 */
export async function* readToEnd(options: ReadOptions): AsyncGenerator<StreamMessage> {
  const { connection, stream, filter = ">" } = options;
  const end = async (): Promise<number> => (await lastMessageOf(connection, stream, filter))?.seq ?? 0;
  let endSeq = await end();
  let { fromSeq } = options;
  let trouble: unknown;
  for (let empty = 0; fromSeq <= endSeq; ) {
    const opened = await openReader({ ...options, fromSeq });
    try {
      let { pending } = opened;
      while (fromSeq <= endSeq) {
        const behind = pending <= 0;
        const expiresMs = behind ? BEHIND_EXPIRES_MS : PAGE_EXPIRES_MS;
        const page = await opened
          .page(behind ? 1 : Math.min(pending, PAGE_MAX), expiresMs)
          .catch((err: unknown) => {
            // A consumer that was just made, or has just lost its server, answers nobody: another one will.
            if (!passes(err)) throw err;
            trouble = err;
            return { messages: [], whole: false };
          });
        pending -= page.messages.length;
        empty = page.messages.length === 0 ? empty + 1 : 0;
        for (const message of page.messages) {
          if (message.seq > endSeq) return;
          fromSeq = message.seq + 1;
          yield message;
        }
        if (!page.whole) break;
      }
    } finally {
      opened.close();
    }
    if (fromSeq > endSeq) return;
    // What was the end may have been removed meanwhile.
    endSeq = Math.min(endSeq, await end());
    if (empty >= EMPTY_PAGES_MAX) {
      throw new InsituError("store.unavailable", `read of ${stream} stalled at sequence ${fromSeq}`, {
        retryable: true,
        cause: trouble,
      });
    }
  }
}

interface Reader {
  /** Messages that the consumer had for us when it was opened. */
  pending: number;
  /** Up to so many messages, cut before the first gap. `whole` is false when some did not arrive. */
  page(size: number, expiresMs: number): Promise<{ messages: StreamMessage[]; whole: boolean }>;
  close(): void;
}

/** Delivers from a sequence on, and forgets what it has delivered. */
async function addConsumer(options: ReadOptions): Promise<{ consumer: Consumer; pending: number }> {
  const { connection, stream, filter, fromSeq, headersOnly } = options;
  const limits = { timeout: CALL_TIMEOUT_MS, checkAPI: false };
  const manager = await connection.jetstreamManager(limits);
  const info = await manager.consumers.add(stream, {
    ack_policy: AckPolicy.None,
    deliver_policy: DeliverPolicy.StartSequence,
    opt_start_seq: fromSeq,
    inactive_threshold: nanos(INACTIVE_MS),
    mem_storage: true,
    num_replicas: 1,
    ...(filter === undefined ? {} : { filter_subject: filter }),
    ...(headersOnly ? { headers_only: true } : {}),
  });
  const consumer = connection.jetstream(limits).consumers.getPullConsumerFor(info);
  return { consumer, pending: info.num_pending };
}

/** It would vanish by itself; this is only tidier, and nobody waits for it. */
function forget(consumer: Consumer): void {
  void consumer.delete().catch(() => false);
}

async function openReader(options: ReadOptions): Promise<Reader> {
  const what = `read of ${options.stream}`;
  try {
    const { consumer, pending } = await addConsumer(options);
    let delivered = 0;
    return {
      pending,
      async page(size, expires) {
        const messages: StreamMessage[] = [];
        let whole = true;
        try {
          // Collected before any is handed on: a slow reader must not hold up the client.
          for await (const message of await consumer.fetch({ max_messages: size, expires })) {
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
      close: () => forget(consumer),
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

export type TailLog = Pick<Logger, "warn">;

interface TailOptions extends ReadOptions {
  clock: Clock;
  log: TailLog;
  onMessage(message: StreamMessage): void;
}

/** What says that the consumer is gone, or the server that it lived on. */
const LOST: ReadonlySet<string> = new Set([
  ConsumerEvents.HeartbeatsMissed,
  ConsumerEvents.ConsumerNotFound,
  ConsumerEvents.ConsumerDeleted,
  ConsumerEvents.StreamNotFound,
  ConsumerEvents.NoResponders,
]);

/** When the server stored the message with that sequence; undefined when there is none. */
export async function storedAtMsOf(
  connection: NatsConnection,
  stream: string,
  seq: number,
): Promise<number | undefined> {
  try {
    const manager = await connection.jetstreamManager();
    return (await manager.streams.getMessage(stream, { seq })).time.getTime();
  } catch (err) {
    if (errorCode(err) === NO_MESSAGE_FOUND) return undefined;
    throw storeError(err, `message ${seq} of ${stream}`);
  }
}

/**
 * Follows a stream for ever: each message once, in order, over reconnects, restarts of the server, and the loss of
 * the server of a cluster that the consumer lives on.
 *
 * The client's own recovery was seen to wait for ever for a consumer whose server was killed, and to come back with
 * one that the server has forgotten. Here any sign of trouble makes it open a new one behind the last message seen.
 */
export class StreamTail {
  readonly #options: TailOptions;
  readonly #stop = new AbortController();
  #nextSeq: number;
  #done: Promise<void> | undefined;
  #restart = new AbortController();
  #forget: () => void = () => undefined;

  constructor(options: TailOptions) {
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
        await this.#consume(this.#restart);
      } catch (thrown) {
        if (this.#stop.signal.aborted) return;
        const err = storeError(thrown, `tail of ${stream}`);
        log.warn({ err, stream, seq: this.#nextSeq }, "stream tail interrupted; opening it again");
        await clock.sleep(RESTART_MS, this.#stop.signal).catch(() => undefined);
      }
    }
  }

  async #consume(restart: AbortController): Promise<void> {
    const { log, stream } = this.#options;
    const { consumer } = await addConsumer({ ...this.#options, fromSeq: this.#nextSeq });
    if (restart.signal.aborted) return forget(consumer);
    let delivered = 0;
    const messages = await consumer.consume({
      max_messages: 1_000,
      expires: EXPIRES_MS,
      idle_heartbeat: HEARTBEAT_MS,
      callback: (message) => {
        if (restart.signal.aborted) return;
        delivered += 1;
        if (message.info.deliverySequence !== delivered) return restart.abort();
        if (message.seq < this.#nextSeq) return;
        this.#nextSeq = message.seq + 1;
        this.#options.onMessage(toMessage(message));
      },
    });
    const stop = (): void => messages.stop();
    restart.signal.addEventListener("abort", stop, { once: true });
    const watching = watch(messages, (type) => {
      log.warn({ stream, seq: this.#nextSeq, type }, "stream tail lost its consumer; opening it again");
      restart.abort();
    });
    if (restart.signal.aborted) stop();
    const err = await messages.closed();
    await watching;
    forget(consumer);
    if (err instanceof Error && !restart.signal.aborted) throw err;
  }
}

/** Ends with the messages. */
async function watch(messages: ConsumerMessages, onLost: (type: string) => void): Promise<void> {
  for await (const { type } of await messages.status()) if (LOST.has(type)) return onLost(type);
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
