/** Takes in what agents send to be kept: stores it, and acknowledges it when it is durable and not before. */
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Ack } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";
import { Acknowledgements } from "./acknowledgements.ts";
import type { CallKind, OpenCall, OpenCalls } from "./open-calls.ts";
import type { Peer } from "./peer-identity.ts";
import { failCall } from "./rpc-errors.ts";

/** One thing of a batch. */
export interface IntakeItem {
  seq: number;
  bytes: number;
  /**
   * Resolves when it is durable, or with why it was not accepted. A thrown InsituError that is neither retryable
   * nor `internal` is a rejection too; anything else ends the stream, and the agent sends it again.
   */
  store(): Promise<{ code: string; message: string } | undefined>;
}

export interface IntakeDeps {
  openCalls: OpenCalls;
  log: Logger;
  /** Of one agent and stream; reading stops while more than this is being stored. */
  inFlightMaxBytes: number;
}

/** Small things cost memory beyond their bytes. */
const ITEM_OVERHEAD_BYTES = 512;

export class Intake<Batch> implements OpenCall {
  readonly kind: CallKind;
  readonly peer: Peer;
  readonly #call: ServerDuplexStream<Batch, Ack>;
  readonly #itemsOf: (batch: Batch) => IntakeItem[];
  readonly #deps: IntakeDeps;
  readonly #acks = new Acknowledgements();
  #inFlightBytes = 0;
  #ackDue = false;
  #stopping = false;
  #over = false;
  #whenOver: (() => void)[] = [];

  /** `itemsOf` throws InsituError for a batch that makes no sense at all. */
  constructor(
    kind: CallKind,
    call: ServerDuplexStream<Batch, Ack>,
    peer: Peer,
    itemsOf: (batch: Batch) => IntakeItem[],
    deps: IntakeDeps,
  ) {
    this.kind = kind;
    this.#call = call;
    this.peer = peer;
    this.#itemsOf = itemsOf;
    this.#deps = deps;
  }

  begin(): void {
    const call = this.#call;
    call.on("data", (batch: Batch) => this.#receive(batch));
    call.on("end", () => this.stop());
    call.on("cancelled", () => this.#leave());
    call.on("close", () => this.#leave());
    call.on("error", () => this.#leave());
    this.#deps.openCalls.add(this);
  }

  /** Takes nothing more, acknowledges what it has as it becomes durable, and ends the stream then. */
  stop(): void {
    this.#stopping = true;
    if (!this.#over && this.#acks.pending === 0) {
      this.#acknowledge();
      this.#leave();
      this.#call.end();
    }
  }

  /** Resolves when the stream is over. */
  ended(): Promise<void> {
    return this.#over ? Promise.resolve() : new Promise((resolve) => this.#whenOver.push(resolve));
  }

  fail(err: InsituError): void {
    if (this.#over) return;
    this.#leave();
    failCall(this.#call, err);
  }

  #receive(batch: Batch): void {
    if (this.#over || this.#stopping) return;
    let items: IntakeItem[];
    try {
      items = this.#itemsOf(batch);
    } catch (err) {
      this.fail(InsituError.from(err));
      return;
    }
    // All of a batch begin in order and go on side by side.
    for (const item of items) void this.#store(item);
    if (this.#inFlightBytes > this.#deps.inFlightMaxBytes) this.#call.pause();
  }

  async #store(item: IntakeItem): Promise<void> {
    const cost = item.bytes + ITEM_OVERHEAD_BYTES;
    this.#inFlightBytes += cost;
    const done = this.#acks.begin(item.seq);
    try {
      done(await settle(item));
    } catch (err) {
      this.#deps.log.warn(
        { agentId: this.peer.id, kind: this.kind, seq: item.seq, err },
        "could not be stored",
      );
      this.fail(
        new InsituError("unavailable", "what was sent cannot be stored now: send it again later", {
          retryable: true,
        }),
      );
      return;
    } finally {
      this.#inFlightBytes -= cost;
    }
    if (this.#over) return;
    this.#scheduleAck();
    if (this.#call.isPaused() && this.#inFlightBytes <= this.#deps.inFlightMaxBytes / 2) this.#call.resume();
  }

  /** Things that become durable in the same breath share an acknowledgement. */
  #scheduleAck(): void {
    if (this.#ackDue) return;
    this.#ackDue = true;
    queueMicrotask(() => {
      this.#ackDue = false;
      this.#acknowledge();
      if (this.#stopping) this.stop();
    });
  }

  #acknowledge(): void {
    if (this.#over || this.#call.cancelled || this.#call.writableEnded) return;
    const ack = this.#acks.take();
    if (ack === undefined) return;
    for (const { seq, code, message } of ack.rejected) {
      this.#deps.log.warn({ agentId: this.peer.id, kind: this.kind, seq, code, message }, "set aside");
    }
    this.#call.write({
      ackedSeq: String(ack.ackedSeq),
      rejected: ack.rejected.map((r) => ({ ...r, seq: String(r.seq) })),
    });
  }

  #leave(): void {
    if (this.#over) return;
    this.#over = true;
    this.#deps.openCalls.remove(this);
    for (const resolve of this.#whenOver) resolve();
    this.#whenOver = [];
  }
}

async function settle(item: IntakeItem): Promise<{ code: string; message: string } | undefined> {
  try {
    return await item.store();
  } catch (err) {
    if (err instanceof InsituError && !err.retryable && err.code !== "internal") {
      return { code: err.code, message: err.message };
    }
    throw err;
  }
}
