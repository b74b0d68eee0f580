/** Poison on the stream `POISON`: a copy of each message that nobody could make sense of, with the reason as headers. */
import { createHash } from "node:crypto";
import type { JetStreamManager, MsgHdrs, NatsConnection, StoredMsg } from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import {
  type KeptPoison,
  POISON_SOURCES,
  type Poison,
  type PoisonDesk,
  type PoisonSink,
  type PoisonSource,
} from "../poison/ports.ts";
import { errorCode, NO_MESSAGE_FOUND, storeError } from "./jetstream.ts";
import { publish } from "./publish.ts";
import { readToEnd } from "./stream-reader.ts";

/** Copies on their way to the stream; beyond this a message is logged and no copy is kept. */
export const PENDING_MAX = 64;
/** Of one copy. Of a longer message the beginning is kept. */
export const COPY_MAX_BYTES = 256 * 1024;
export const REASON_MAX_CHARS = 500;
/** Nobody waits for a copy, and what is not copied now is met again. */
const PATIENCE_MS = 5_000;
const SOURCE = "Insitu-Source";
const SUBJECT = "Insitu-Subject";
const SEQ = "Insitu-Seq";
const FROM = "Insitu-From";
const REASON = "Insitu-Reason";
const BYTES = "Insitu-Bytes";
/** What servers of different versions say of a message that is not there. */
const GONE: ReadonlySet<number | undefined> = new Set([NO_MESSAGE_FOUND, 10_043, 10_057]);

export class PoisonStream implements PoisonSink, PoisonDesk {
  readonly #connection: NatsConnection;
  readonly #manager: JetStreamManager;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #pending = new Set<Promise<boolean>>();

  constructor(options: {
    connection: NatsConnection;
    manager: JetStreamManager;
    clock: Clock;
    log: Logger;
  }) {
    this.#connection = options.connection;
    this.#manager = options.manager;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  async put(poison: Poison): Promise<boolean> {
    const { data, ...about } = poison;
    if (this.#pending.size >= PENDING_MAX) {
      this.#log.error({ ...about, bytes: data.length }, "poison message passed over; no copy is kept");
      return false;
    }
    const kept = this.#keep(poison).then(
      () => true,
      (err: unknown) => {
        this.#log.error({ ...about, err }, "poison message passed over; its copy could not be kept");
        return false;
      },
    );
    this.#pending.add(kept);
    void kept.finally(() => this.#pending.delete(kept));
    return await kept;
  }

  async close(): Promise<void> {
    await Promise.all(this.#pending);
  }

  async list(): Promise<Omit<KeptPoison, "data">[]> {
    const found: Omit<KeptPoison, "data">[] = [];
    const all = { connection: this.#connection, stream: STREAMS.poison, fromSeq: 1 };
    for await (const { seq, header, storedAtMs } of readToEnd(all))
      found.push(toKept(seq, header, storedAtMs));
    return found;
  }

  async get(id: number): Promise<KeptPoison> {
    const message = await this.#message(id);
    const header = (name: string): string => message.header.get(name);
    return { ...toKept(id, header, message.time.getTime()), data: message.data };
  }

  async drop(id: number): Promise<void> {
    await this.#message(id);
    try {
      await this.#manager.streams.deleteMessage(STREAMS.poison, id, false);
    } catch (err) {
      // An earlier try has removed it, and its answer was lost.
      if (!GONE.has(errorCode(err))) throw storeError(err, `poison message ${id}`);
    }
  }

  async #message(id: number): Promise<StoredMsg & { header: MsgHdrs }> {
    try {
      return await this.#manager.streams.getMessage(STREAMS.poison, { seq: id });
    } catch (err) {
      if (!GONE.has(errorCode(err))) throw storeError(err, `poison message ${id}`);
      throw new InsituError(
        "not-found",
        `there is no poison message ${id}: see "insitu poison list"; copies go after 30 days, or when newer ones need the room`,
      );
    }
  }

  async #keep({ source, subject, seq, from, reason, data }: Poison): Promise<void> {
    const name = seq === null ? digestOf(from, data) : `${digestOf(subject)}-${seq}`;
    const world = { connection: this.#connection, clock: this.#clock, patienceMs: PATIENCE_MS };
    await publish(world, {
      what: "poison message",
      stream: STREAMS.poison,
      subject: subjects.poison(source, name),
      payload: data.subarray(0, COPY_MAX_BYTES),
      messageId: `${source}/${name}`,
      // Also long after the window of message ids: replicas meet the same message at each of their starts.
      expected: { ofSubject: 0 },
      headers: {
        [SOURCE]: source,
        [SUBJECT]: oneLine(subject),
        [SEQ]: seq === null ? "" : String(seq),
        [FROM]: oneLine(from),
        [REASON]: oneLine(reason).slice(0, REASON_MAX_CHARS),
        [BYTES]: String(data.length),
      },
    });
    this.#log.error({ source, subject, seq, from, reason, bytes: data.length }, "poison message set aside");
  }
}

function toKept(id: number, header: (name: string) => string, keptAtMs: number): Omit<KeptPoison, "data"> {
  const source = header(SOURCE) as PoisonSource;
  return {
    id,
    keptAtMs,
    source: POISON_SOURCES.includes(source) ? source : "gateway",
    subject: header(SUBJECT),
    seq: header(SEQ) === "" ? null : Number(header(SEQ)),
    from: header(FROM),
    reason: header(REASON),
    bytes: Number(header(BYTES)) || 0,
  };
}

/** Safe as part of a subject. */
function digestOf(...parts: (string | Uint8Array)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex").slice(0, 32);
}

/** Headers end at the end of a line, and are read as bytes: what is not printable ASCII becomes a dot. */
function oneLine(text: string): string {
  return text
    .replaceAll(/\s+/g, " ")
    .replaceAll(/[^\x20-\x7e]/g, ".")
    .trim();
}
