/**
 * Delivers what lies in the journal over a stream: in order, within a window, until it is acknowledged.
 *
 * After every reconnect it begins again behind the last acknowledgement; the other side knows repeats.
 */
import type { ClientDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Ack__Output } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";

export interface Source<Item, Batch> {
  readonly name: string;
  /** Items after `seq`, in order, as many as fit into the bytes and one at least. */
  after(seq: number, limit: number, maxBytes: number): Item[];
  seqOf(item: Item): number;
  bytesOf(item: Item): number;
  batch(items: Item[]): Batch;
  ack(seq: number): void;
}

/** Sent and not acknowledged. */
const WINDOW_ITEMS = 2_000;
const WINDOW_BYTES = 4 * 1024 * 1024;
const BATCH_ITEMS = 200;
const BATCH_BYTES = 512 * 1024;

export class Delivery<Item, Batch> {
  readonly #source: Source<Item, Batch>;
  readonly #log: Logger;
  #stream: ClientDuplexStream<Batch, Ack__Output> | undefined;
  /** Sequence and size of what is on its way. */
  #inFlight: { seq: number; bytes: number }[] = [];
  #inFlightBytes = 0;
  #sentSeq = 0;
  #blocked = false;

  constructor(source: Source<Item, Batch>, log: Logger) {
    this.#source = source;
    this.#log = log;
  }

  /** Begins anew on a fresh stream. The stream stays the caller's. */
  attach(stream: ClientDuplexStream<Batch, Ack__Output>): void {
    this.#stream = stream;
    this.#sentSeq = 0;
    this.#inFlight = [];
    this.#inFlightBytes = 0;
    this.#blocked = false;
    stream.on("data", (ack: Ack__Output) => {
      if (this.#stream === stream) this.#acked(ack);
    });
    stream.on("drain", () => {
      if (this.#stream !== stream) return;
      this.#blocked = false;
      this.pump();
    });
    this.pump();
  }

  detach(): void {
    this.#stream = undefined;
  }

  /** Sends what there is and what the window lets through. */
  pump(): void {
    const stream = this.#stream;
    while (
      stream &&
      !this.#blocked &&
      this.#inFlight.length < WINDOW_ITEMS &&
      this.#inFlightBytes < WINDOW_BYTES
    ) {
      const items = this.#take();
      if (items.length === 0) return;
      if (!stream.write(this.#source.batch(items))) this.#blocked = true;
    }
  }

  #take(): Item[] {
    const taken: Item[] = [];
    let bytes = 0;
    for (const item of this.#source.after(this.#sentSeq, BATCH_ITEMS, BATCH_BYTES)) {
      const size = this.#source.bytesOf(item);
      if (taken.length > 0 && bytes + size > BATCH_BYTES) break;
      taken.push(item);
      bytes += size;
      this.#sentSeq = this.#source.seqOf(item);
      this.#inFlight.push({ seq: this.#sentSeq, bytes: size });
    }
    this.#inFlightBytes += bytes;
    return taken;
  }

  #acked(ack: Ack__Output): void {
    for (const { seq, code, message } of ack.rejected) {
      this.#log.warn({ seq, code, reason: message }, `${this.#source.name} rejected; it is not sent again`);
    }
    const seq = Number(ack.ackedSeq);
    this.#source.ack(seq);
    while (this.#inFlight[0] && this.#inFlight[0].seq <= seq)
      this.#inFlightBytes -= this.#inFlight.shift()!.bytes;
    this.pump();
  }
}
