/** The two streams of JetStream that matter here, as its servers keep them. They never crash: NATS does that in `chaos`. */

import type { AppendResult, StoredBatch } from "../../control-plane/runs/ports.ts";
import type { InboxItem } from "../../control-plane/shards/ports.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import type { Timeline } from "./timeline.ts";

/** As the streams are set up in production. */
const DUPLICATE_WINDOW_MS = 5 * 60_000;
const ACK_WAIT_MS = 30_000;

/** Message ids within the window, with what they were answered. */
class Ids {
  readonly #known = new Map<string, { seq: number; atMs: number }>();

  find(id: string, nowMs: number): number | undefined {
    const known = this.#known.get(id);
    return known && nowMs - known.atMs <= DUPLICATE_WINDOW_MS ? known.seq : undefined;
  }

  add(id: string, seq: number, nowMs: number): void {
    this.#known.set(id, { seq, atMs: nowMs });
  }
}

/** `RUNS`: one subject a run, compare-and-set on its last sequence. A repeated id is answered before that is looked at. */
export class RunsStream {
  readonly batches: StoredBatch[] = [];
  /** Those who follow what is appended. */
  readonly tails = new Set<(batch: StoredBatch) => void>();
  readonly #timeline: Timeline;
  readonly #ids = new Ids();
  readonly #lastSeq = new Map<string, number>();
  readonly #onAppend: (batch: StoredBatch, writer: string) => void;

  /** `onAppend` is told which process wrote, which the stream itself does not know. */
  constructor(timeline: Timeline, onAppend: (batch: StoredBatch, writer: string) => void) {
    this.#timeline = timeline;
    this.#onAppend = onAppend;
  }

  append(
    runId: string,
    events: RunEvent[],
    expectedSeq: number,
    messageId: string,
    writer: string,
  ): AppendResult {
    const { nowMs } = this.#timeline;
    const repeated = this.#ids.find(messageId, nowMs);
    if (repeated !== undefined) return { kind: "appended", seq: repeated };
    if ((this.#lastSeq.get(runId) ?? 0) !== expectedSeq) return { kind: "conflict" };
    const batch = { seq: this.batches.length + 1, runId, events };
    this.batches.push(batch);
    this.#ids.add(messageId, batch.seq, nowMs);
    this.#lastSeq.set(runId, batch.seq);
    this.#onAppend(batch, writer);
    for (const tail of this.tails) tail(batch);
    return { kind: "appended", seq: batch.seq };
  }

  lastSeqOf(runId: string): number {
    return this.#lastSeq.get(runId) ?? 0;
  }

  read(runId: string, afterSeq: number): StoredBatch[] {
    return this.batches.filter((batch) => batch.runId === runId && batch.seq > afterSeq);
  }
}

/** `INBOX`: reports that came to a replica which does not decide for their run, until its owner has dealt with them. */
export class InboxStream {
  readonly items = new Map<number, InboxItem>();
  readonly tails = new Set<(seq: number) => void>();
  readonly #timeline: Timeline;
  readonly #ids = new Ids();
  #lastSeq = 0;

  constructor(timeline: Timeline) {
    this.#timeline = timeline;
  }

  put(item: InboxItem, messageId?: string): void {
    const { runId, stepId, epoch } = item.report.lease;
    const id = messageId ?? `${item.agent}/${runId}/${stepId}/${epoch}/${item.report.kind}`;
    if (this.#ids.find(id, this.#timeline.nowMs) !== undefined) return;
    const seq = ++this.#lastSeq;
    this.items.set(seq, item);
    this.#ids.add(id, seq, this.#timeline.nowMs);
    for (const tail of this.tails) tail(seq);
  }
}

interface Message {
  seq: number;
  offer: Offer;
  state: "ready" | "pending" | "gone";
  delivery: number;
}

interface Request {
  remaining: number;
  untilMs: number;
  deliver(seq: number, offer: Offer): void;
}

/** `WORK`: a queue an environment; what is not acknowledged in time is delivered again, to whoever asks. */
export class WorkStream {
  readonly #timeline: Timeline;
  readonly #ids = new Ids();
  readonly #messages: Message[] = [];
  readonly #requests = new Map<string, Request[]>();

  constructor(timeline: Timeline) {
    this.#timeline = timeline;
  }

  publish(offer: Offer): void {
    const { runId, stepId, epoch } = offer.lease;
    const id = `${runId}/${stepId}/${epoch}`;
    if (this.#ids.find(id, this.#timeline.nowMs) !== undefined) return;
    const message: Message = { seq: this.#messages.length + 1, offer, state: "ready", delivery: 0 };
    this.#messages.push(message);
    this.#ids.add(id, message.seq, this.#timeline.nowMs);
    this.#serve(offer.environment);
  }

  pull(environment: string, request: Request): void {
    const requests = this.#requests.get(environment) ?? [];
    requests.push(request);
    this.#requests.set(environment, requests);
    this.#serve(environment);
  }

  /** Off the queue: acknowledged, or terminated. */
  remove(seq: number): void {
    this.#messages[seq - 1]!.state = "gone";
  }

  giveBack(seq: number, afterMs: number): void {
    const message = this.#messages[seq - 1]!;
    const { delivery } = message;
    this.#timeline.after(afterMs, () => this.#again(message, delivery));
  }

  #serve(environment: string): void {
    for (const message of this.#messages) {
      if (message.state !== "ready" || message.offer.environment !== environment) continue;
      const requests = this.#requests.get(environment) ?? [];
      while (requests[0] && (requests[0].untilMs < this.#timeline.nowMs || requests[0].remaining <= 0))
        requests.shift();
      const [request] = requests;
      if (!request) return;
      request.remaining -= 1;
      message.state = "pending";
      const delivery = ++message.delivery;
      request.deliver(message.seq, message.offer);
      this.#timeline.after(ACK_WAIT_MS, () => this.#again(message, delivery));
    }
  }

  #again(message: Message, delivery: number): void {
    if (message.state !== "pending" || message.delivery !== delivery) return;
    message.state = "ready";
    this.#serve(message.offer.environment);
  }
}
