/** Reports on the stream `INBOX`, by shard: put there by whoever took them in, removed by the shard's owner. */
import type { JetStreamManager, NatsConnection } from "nats";
import type { Logger } from "pino";
import { z } from "zod";
import type { Clock, Timer } from "../../shared/system.ts";
import { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import { ReportSignature } from "../../shared/wire/report-signature.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { type PoisonSink, reasonOf } from "../poison/ports.ts";
import type { Inbox, InboxItem } from "../shards/ports.ts";
import { errorCode, NO_MESSAGE_FOUND } from "./jetstream.ts";
import { publish } from "./publish.ts";
import { lastSeqOf, readToEnd, type StreamMessage, StreamTail } from "./stream-reader.ts";
import { whenReady } from "./when-ready.ts";

/** Longer than a cluster takes to elect a leader. Then the agent is told to send it again. */
const PATIENCE_MS = 20_000;
/** Between two looks at what was left there: by a call that got no answer, or by a shard that moved meanwhile. */
const SWEEP_MS = 5_000;
/** What servers of different versions say of a message that is not there. */
const GONE = new Set<number | undefined>([NO_MESSAGE_FOUND, 10_043, 10_057]);
/** Sequences that are remembered as not to be looked at again. */
const NOT_OURS_MAX = 10_000;
const Item = z.object({ agent: z.string(), report: ReportPayload, signed: ReportSignature.optional() });
/** What a report of a later release looks like to this one. */
const LaterItem = z.looseObject({ agent: z.string(), report: z.looseObject({ lease: LeaseKey }) });

export class JetStreamInbox implements Inbox {
  readonly #connection: NatsConnection;
  readonly #manager: JetStreamManager;
  readonly #log: Logger;
  readonly #clock: Clock;
  /** True when the item was dealt with and may go. */
  readonly #accept: (item: InboxItem) => Promise<boolean>;
  readonly #poisonSink: PoisonSink;
  readonly #sweepMs: number;
  #sweeper: Timer | undefined;
  #sweeping: Promise<void> | undefined;
  /** By sequence: a report of a later release, which a replica of that release will take. Complained of once. */
  readonly #notOurs = new Set<number>();
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
    poison: PoisonSink;
    sweepMs?: number;
  }) {
    this.#connection = options.connection;
    this.#manager = options.manager;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#accept = options.accept;
    this.#poisonSink = options.poison;
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
    const world = { connection: this.#connection, clock: this.#clock };
    const fromSeq = (await whenReady(world, () => lastSeqOf(this.#connection, STREAMS.inbox))) + 1;
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
    if (this.#notOurs.has(seq)) return;
    try {
      const item = await this.#read(message);
      if (!item) return;
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

  /** Undefined for what is no report: it is moved to where poison is kept, and until it is there it stays here. */
  async #read({ seq, subject, data }: StreamMessage): Promise<InboxItem | undefined> {
    let json: unknown;
    let reason: string;
    try {
      json = JSON.parse(Buffer.from(data).toString("utf8"));
      return Item.parse(json);
    } catch (err) {
      reason = reasonOf(err);
    }
    const kept = await this.#poisonSink.put({ source: "inbox", subject, seq, from: "", reason, data });
    if (LaterItem.safeParse(json).success) {
      // It was acknowledged to an agent, so it is not taken away from the replica that can read it.
      if (this.#notOurs.size < NOT_OURS_MAX) this.#notOurs.add(seq);
      this.#log.error({ reason, seq, subject }, "report in the inbox is of a later release; left there");
    } else if (kept) await this.#remove(seq);
    return undefined;
  }
}
