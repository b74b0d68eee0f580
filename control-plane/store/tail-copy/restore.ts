/** Puts back into one stream what the tail copy holds and the stream has lost, under the sequences that it had. */
import {
  type JetStreamManager,
  type NatsConnection,
  headers as newHeaders,
  type StoredMsg,
  type StreamConfig,
} from "nats";
import { InsituError } from "../../../shared/errors.ts";
import { FILLER_HEADER, STREAMS, subjects } from "../../../shared/wire/subjects.ts";
import {
  errorCode,
  lastMessageOf,
  NO_MESSAGE_FOUND,
  READ_TIMEOUT_MS,
  STREAM_NOT_FOUND,
  WRONG_LAST_SEQUENCE,
} from "../jetstream.ts";
import { readToEnd } from "../stream-reader.ts";
import type { Keepers } from "./keepers.ts";
import type { Place } from "./tail-files.ts";
import type { TailMessage } from "./tail-record.ts";

/** A message in the copy, without its data. */
export interface Piece {
  seq: number;
  subject: string;
  messageId: string;
  place: Place;
}

export interface HeldStream {
  stream: string;
  config: Record<string, unknown>;
  floor: number;
  /** By sequence, ascending. */
  pieces: Piece[];
}

/** Acknowledged, and gone for good: something else is in its place, or what it follows is gone. */
export interface LostMessage {
  stream: string;
  seq: number;
  subject: string;
  messageId: string;
  reason: string;
  data: string;
}

/** How a stream reads what it holds, which says what may be done to repair it. */
type Order = "placed" | "latest" | "any";

const EXPECTED_SUBJECT_SEQ = "Nats-Expected-Last-Subject-Sequence";
const NOT_KEPT = new Set(["Nats-Expected-Last-Sequence", "Nats-Expected-Last-Msg-Id", EXPECTED_SUBJECT_SEQ]);
/** What servers of different versions say of a message that is not there. */
const GONE = new Set<number | undefined>([NO_MESSAGE_FOUND, 10_043, 10_057]);

export interface RestoreWorld {
  connection: NatsConnection;
  manager: JetStreamManager;
  /** Undefined where sequences do not matter. */
  keepers: Keepers | undefined;
  read(place: Place): Promise<TailMessage>;
  onLost(lost: LostMessage): Promise<void>;
}

export class StreamRestore {
  readonly #world: RestoreWorld;
  readonly #held: HeldStream;
  readonly #order: Order;
  readonly #expectsSubject: boolean;
  #lastSeq = 0;
  restored = 0;

  constructor(world: RestoreWorld, held: HeldStream) {
    this.#world = world;
    this.#held = held;
    this.#order = orderOf(held.stream);
    // The events of a run build on each other; of a bucket, what was before may have expired meanwhile.
    this.#expectsSubject = held.stream === STREAMS.runs;
  }

  /** Looks at the stream, and makes it when it is not there. Gives the first sequence that is to be put back. */
  async begin(): Promise<number | undefined> {
    const { manager } = this.#world;
    const { stream, config, pieces } = this.#held;
    try {
      this.#lastSeq = (await manager.streams.info(stream)).state.last_seq;
    } catch (err) {
      if (errorCode(err) !== STREAM_NOT_FOUND) throw err;
      await manager.streams.add(config as Partial<StreamConfig> & { name: string });
      this.#lastSeq = 0;
    }
    return pieces.find(({ seq }) => seq > this.#lastSeq)?.seq;
  }

  /** @throws conflict when more is gone than the copies hold */
  async run(): Promise<void> {
    const present = this.#held.pieces.filter(({ seq }) => seq <= this.#lastSeq);
    const again = await this.#check(present);
    for (const piece of this.#held.pieces.slice(present.length)) await this.#putBack(piece);
    for (const piece of again) await this.#append(piece);
    await this.#world.keepers?.passed(this.#held.stream);
  }

  /** Of what is not behind the stream's end. Gives those that are gone and may as well come at the end. */
  async #check(present: readonly Piece[]): Promise<Piece[]> {
    const { stream } = this.#held;
    const [first] = present;
    if (!first) return [];
    const { connection } = this.#world;
    const gone: Piece[] = [];
    const options = { connection, stream, fromSeq: first.seq, headersOnly: true };
    let at = 0;
    for await (const message of readToEnd(options)) {
      for (; at < present.length && present[at]!.seq < message.seq; at++) gone.push(present[at]!);
      const piece = present[at];
      if (piece?.seq !== message.seq) continue;
      at += 1;
      if (!isSame(piece, message.subject, message.header("Nats-Msg-Id")))
        await this.#lose(piece, "another message is in its place");
    }
    gone.push(...present.slice(at));
    if (this.#order === "any") return gone;
    if (this.#order === "latest") return await this.#outdated(gone);
    for (const piece of gone)
      await this.#lose(piece, "it is gone, and what came after it is there: nothing can be put in its place");
    return [];
  }

  /** Of a bucket: what is the last that we know of its key, and the bucket has nothing later. */
  async #outdated(gone: readonly Piece[]): Promise<Piece[]> {
    const newest = new Map(this.#held.pieces.map((piece) => [piece.subject, piece]));
    const found: Piece[] = [];
    for (const piece of gone) {
      if (newest.get(piece.subject) !== piece) continue;
      const last = await lastMessageOf(this.#world.connection, this.#held.stream, piece.subject);
      if ((last?.seq ?? 0) < piece.seq) found.push(piece);
    }
    return found;
  }

  async #putBack(piece: Piece): Promise<void> {
    if (this.#order === "any") return await this.#append(piece);
    const { floor, stream } = this.#held;
    for (;;) {
      if (this.#lastSeq >= piece.seq) {
        const stored = await this.#messageAt(piece.seq);
        if (stored && isSame(piece, stored.subject, stored.header.get("Nats-Msg-Id"))) return;
        return await this.#lose(piece, "another message was put in its place");
      }
      const before = this.#lastSeq;
      if (before < piece.seq - 1) {
        // Another replica may have it. What nobody has was never acknowledged to anybody.
        await this.#world.keepers?.untilLowest(stream, piece.seq);
        await this.#look();
        if (this.#lastSeq !== before) continue;
        if (before < floor) throw this.#tooMuchGone(floor);
        await this.#fill();
        continue;
      }
      if (await this.#publish(piece, before)) return;
      await this.#look();
      if (this.#lastSeq !== before) continue;
      await this.#lose(piece, "what it follows is gone");
      await this.#fill();
      return;
    }
  }

  /** At the end of the stream, whatever that is. */
  async #append(piece: Piece): Promise<void> {
    await this.#publish(piece, undefined);
  }

  /** False when the stream does not end there, or the subject is not what it was. */
  async #publish(piece: Piece, after: number | undefined): Promise<boolean> {
    const message = await this.#world.read(piece.place);
    const head = newHeaders();
    for (const [name, value] of message.headers) if (!NOT_KEPT.has(name)) head.append(name, value);
    if (after !== undefined) {
      head.set("Nats-Expected-Last-Sequence", String(after));
      const ofSubject = message.headers.find(([name]) => name === EXPECTED_SUBJECT_SEQ)?.[1];
      if (this.#expectsSubject && ofSubject !== undefined) head.set(EXPECTED_SUBJECT_SEQ, ofSubject);
    }
    try {
      const options = { headers: head, timeout: READ_TIMEOUT_MS };
      const ack = await this.#world.connection.jetstream().publish(piece.subject, message.data, options);
      // A repeat of something that the stream has elsewhere: then its place is still empty.
      if (ack.duplicate && after !== undefined) return false;
      this.#lastSeq = ack.seq;
      this.restored += 1;
      return true;
    } catch (err) {
      if (errorCode(err) === WRONG_LAST_SEQUENCE) return false;
      throw err;
    }
  }

  /** A message that says nothing: what comes after it has its sequence again. */
  async #fill(): Promise<void> {
    const { stream } = this.#held;
    const { subject, payload, headers = {} } = fillerOf(stream);
    const head = newHeaders();
    head.set(FILLER_HEADER, "1");
    for (const [name, value] of Object.entries(headers)) head.set(name, value);
    head.set("Nats-Expected-Last-Sequence", String(this.#lastSeq));
    try {
      const options = { headers: head, timeout: READ_TIMEOUT_MS };
      this.#lastSeq = (await this.#world.connection.jetstream().publish(subject, payload, options)).seq;
    } catch (err) {
      if (errorCode(err) !== WRONG_LAST_SEQUENCE) throw err;
      await this.#look();
    }
  }

  async #look(): Promise<void> {
    this.#lastSeq = (await this.#world.manager.streams.info(this.#held.stream)).state.last_seq;
  }

  async #messageAt(seq: number): Promise<StoredMsg | undefined> {
    try {
      return await this.#world.manager.streams.getMessage(this.#held.stream, { seq });
    } catch (err) {
      if (GONE.has(errorCode(err))) return undefined;
      throw err;
    }
  }

  async #lose(piece: Piece, reason: string): Promise<void> {
    const { seq, subject, messageId } = piece;
    const { data } = await this.#world.read(piece.place);
    const { stream } = this.#held;
    await this.#world.onLost({
      stream,
      seq,
      subject,
      messageId,
      reason,
      data: Buffer.from(data).toString("base64"),
    });
  }

  #tooMuchGone(floor: number): InsituError {
    const { stream } = this.#held;
    return new InsituError(
      "conflict",
      `NATS has the stream ${stream} up to sequence ${this.#lastSeq}, and it had ${floor} and more: that is further back than the copy of what was acknowledged reaches. Was this NATS replaced, or restored from a backup? See docs/runbooks/nats-lost-power.md`,
    );
  }
}

function isSame(piece: Piece, subject: string, messageId: string): boolean {
  return piece.subject === subject && piece.messageId === messageId;
}

function orderOf(stream: string): Order {
  if (stream === STREAMS.runs || stream === STREAMS.resources || stream === STREAMS.ledger) return "placed";
  return stream.startsWith("KV_") ? "latest" : "any";
}

function fillerOf(stream: string): { subject: string; payload: string; headers?: Record<string, string> } {
  if (stream === STREAMS.runs) return { subject: subjects.runsFiller, payload: "" };
  if (stream === STREAMS.resources) {
    const nothing = { v: 1, atMs: 0, by: "insitu", changes: [] };
    return { subject: subjects.resources, payload: JSON.stringify(nothing) };
  }
  // No checkpoint speaks of it: leaves are in a copy before one does.
  if (stream === STREAMS.ledger) return { subject: subjects.ledger("filler"), payload: "" };
  const bucket = stream.slice("KV_".length);
  return { subject: `$KV.${bucket}.filler`, payload: "", headers: { "KV-Operation": "DEL" } };
}
