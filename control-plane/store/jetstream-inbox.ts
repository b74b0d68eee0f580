/** Reports on the stream `INBOX`, by shard: put there by whoever took them in, removed by the shard's owner. */
import type { JetStreamManager, NatsConnection } from "nats";
import type { Logger } from "pino";
import { z } from "zod";
import type { Clock, Timer } from "../../shared/system.ts";
import { ReportPayload } from "../../shared/wire/attempt.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { Inbox, InboxItem } from "../shards/ports.ts";
import { errorCode, NO_MESSAGE_FOUND } from "./jetstream.ts";
import { publish } from "./publish.ts";
import { lastSeqOf, readToEnd, type StreamMessage, StreamTail } from "./stream-reader.ts";

/** Longer than a cluster takes to elect a leader. Then the agent is told to send it again. */
const PATIENCE_MS = 20_000;
/** Between two looks at what was left there: by a call that got no answer, or by a shard that moved meanwhile. */
const SWEEP_MS = 5_000;
/** What servers of different versions say of a message that is not there. */
const GONE = new Set<number | undefined>([NO_MESSAGE_FOUND, 10_043, 10_057]);
const Item = z.object({ agent: z.string(), report: ReportPayload });

export class JetStreamInbox implements Inbox {
  readonly #connection: NatsConnection;
  readonly #manager: JetStreamManager;
  readonly #log: Logger;
  readonly #clock: Clock;
  /** True when the item was dealt with and may go. */
  readonly #accept: (item: InboxItem) => Promise<boolean>;
  readonly #sweepMs: number;
  #sweeper: Timer | undefined;
  #sweeping: Promise<void> | undefined;
  /** By sequence: no report at all. Left for a person to look at, and complained of once. */
  readonly #poison = new Set<number>();
  #tail: StreamTail | undefined;
  readonly #working = new Set<Promise<void>>();
  /** One after the other: an outcome does not overtake the start before it. */
  #last: Promise<void> = Promise.resolve();

  constructor(options: {
    connection: NatsConnection;
    manager: JetStreamManager;
    clock: Clock;
    log: Logger;
    accept: (item: InboxItem) => Promise<boolean>;
    sweepMs?: number;
  }) {
    this.#connection = options.connection;
    this.#manager = options.manager;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#accept = options.accept;
    this.#sweepMs = options.sweepMs ?? SWEEP_MS;
  }

  async put(shard: number, item: InboxItem): Promise<void> {
    const { runId, stepId, attempt, epoch } = item.report.lease;
    const world = { connection: this.#connection, clock: this.#clock, patienceMs: PATIENCE_MS };
    await publish(world, {
      what: `report of step ${stepId} in run ${runId}`,
      stream: STREAMS.inbox,
      subject: subjects.inbox(shard),
      payload: JSON.stringify(item),
      messageId: `${item.agent}/${runId}/${stepId}/${attempt}/${epoch}/${item.report.kind}`,
    });
  }

  /** Follows what arrives from now on, and comes back to what could not be dealt with when it did. */
  async start(): Promise<void> {
    const fromSeq = (await lastSeqOf(this.#connection, STREAMS.inbox)) + 1;
    this.#tail = new StreamTail({
      connection: this.#connection,
      stream: STREAMS.inbox,
      fromSeq,
      clock: this.#clock,
      log: this.#log,
      onMessage: (message) => this.#enqueue(message),
    });
    this.#tail.start();
    this.#sweeper = this.#clock.every(this.#sweepMs, () => {
      // What is under way is not to be read a second time.
      if (this.#sweeping || this.#working.size > 0) return;
      this.#sweeping = this.drain()
        .catch((err: unknown) => this.#log.debug({ err }, "inbox not swept; trying again"))
        .finally(() => {
          this.#sweeping = undefined;
        });
    });
  }

  /** Deals with what lies there, after shards have become ours. One read serves all of them. */
  async drain(): Promise<void> {
    const options = { connection: this.#connection, stream: STREAMS.inbox, fromSeq: 1 };
    for await (const message of readToEnd(options)) this.#enqueue(message);
  }

  async close(): Promise<void> {
    this.#sweeper?.cancel();
    await this.#sweeping;
    await this.#tail?.close();
    await Promise.all(this.#working);
  }

  #enqueue(message: StreamMessage): void {
    const work = this.#last.then(() => this.#handle(message));
    this.#last = work;
    this.#working.add(work);
    void work.finally(() => this.#working.delete(work));
  }

  async #handle(message: StreamMessage): Promise<void> {
    const { seq } = message;
    if (this.#poison.has(seq)) return;
    const item = this.#read(message);
    if (!item) return;
    try {
      if (!(await this.#accept(item))) return;
      await this.#remove(seq);
    } catch (err) {
      // It stays where it is, and blocks nothing: the next look at the inbox tries again.
      this.#log.error({ err, seq, subject: message.subject }, "report in the inbox not accepted");
    }
  }

  async #remove(seq: number): Promise<void> {
    try {
      // Not erased, only forgotten: it holds no secrets, and overwriting costs a write.
      await this.#manager.streams.deleteMessage(STREAMS.inbox, seq, false);
    } catch (err) {
      if (!GONE.has(errorCode(err))) throw err; // an earlier try has removed it, and its answer was lost
    }
  }

  #read({ seq, subject, data }: StreamMessage): InboxItem | undefined {
    try {
      return Item.parse(JSON.parse(Buffer.from(data).toString("utf8")));
    } catch (err) {
      this.#poison.add(seq);
      this.#log.error({ err, seq, subject }, "message in the inbox is no report; left there");
      return undefined;
    }
  }
}
