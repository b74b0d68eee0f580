/** What the ledger's leaves are made from, on NATS: the streams `RUNS` and `RESOURCES`, and the pipelines' versions. */
import { createHash } from "node:crypto";
import type { NatsConnection } from "nats";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { FILLER_HEADER, STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { LedgerSource, LedgerSources, RunFacts, SourceMessage } from "../evidence/ports.ts";
import type { PlanSource } from "../runs/ports.ts";
import { storeError } from "./jetstream.ts";
import { toBatch } from "./jetstream-run-store.ts";
import { nextMessage } from "./publish.ts";
import { parseApply } from "./resource-log.ts";
import { flushed, readable } from "./stream-disk.ts";
import { lastSeqOf, readToEnd, type StreamMessage, StreamTail, type TailLog } from "./stream-reader.ts";

/** Messages that wait to be made leaves of; when there are more, the stream is read again from there. */
const WAITING_MAX = 5_000;
/** In one bunch. */
const BUNCH_MAX = 500;

export class JetStreamLedgerSources implements LedgerSources {
  readonly #options: { connection: NatsConnection; plans: PlanSource; clock: Clock; log: TailLog };

  constructor(options: { connection: NatsConnection; plans: PlanSource; clock: Clock; log: TailLog }) {
    this.#options = options;
  }

  async lastSeq(source: LedgerSource): Promise<number> {
    const { connection } = this.#options;
    await readable(connection);
    const seq = await lastSeqOf(connection, source);
    await flushed(connection, source, seq);
    return seq;
  }

  async *read(source: LedgerSource, signal: AbortSignal): AsyncGenerator<SourceMessage> {
    const { connection } = this.#options;
    for await (const message of readToEnd({ connection, stream: source, fromSeq: 1 })) {
      signal.throwIfAborted();
      if (!isFiller(message)) yield toSource(source, message);
    }
  }

  async *follow(
    source: LedgerSource,
    afterSeq: number,
    signal: AbortSignal,
  ): AsyncGenerator<readonly SourceMessage[]> {
    const { connection } = this.#options;
    for (let fromSeq = afterSeq + 1; !signal.aborted; ) {
      for await (const bunch of this.#bunches(source, fromSeq, signal)) {
        const lastSeq = bunch.at(-1)!.seq;
        // A leaf must not outlive the message that it was made of: in a power cut it would name another one.
        await flushed(connection, source, lastSeq);
        const said = bunch.filter((message) => !isFiller(message));
        if (said.length > 0) yield said.map((message) => toSource(source, message));
        fromSeq = lastSeq + 1;
      }
    }
  }

  /** Ends when more came than may wait. */
  async *#bunches(
    source: LedgerSource,
    fromSeq: number,
    signal: AbortSignal,
  ): AsyncGenerator<StreamMessage[]> {
    const waiting: StreamMessage[] = [];
    let tooMany = false;
    let wake = (): void => undefined;
    const onMessage = (message: StreamMessage): void => {
      tooMany ||= waiting.length >= WAITING_MAX;
      if (!tooMany) waiting.push(message);
      wake();
    };
    const tail = new StreamTail({ ...this.#options, stream: source, fromSeq, onMessage });
    const onAbort = (): void => wake();
    signal.addEventListener("abort", onAbort, { once: true });
    tail.start();
    try {
      while (!signal.aborted) {
        if (waiting.length > 0) yield waiting.splice(0, BUNCH_MAX);
        else if (tooMany) return;
        else await new Promise<void>((resolve) => (wake = resolve));
        if (tooMany) await tail.close();
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
      await tail.close();
    }
  }

  async factsOf(runId: string): Promise<RunFacts | undefined> {
    const { connection, plans } = this.#options;
    try {
      const at = { stream: STREAMS.runs, subject: subjects.run(runId), fromSeq: 1 };
      await readable(connection);
      const first = await nextMessage(connection, at);
      // Also when there is none: a NATS that has lost something says so of what will be back.
      await flushed(connection, STREAMS.runs, first?.seq ?? 0);
      const created = first && readEvents(first)?.[0];
      if (created?.kind !== "run.created") return undefined;
      return { pipeline: (await plans.load(created.version)).spec, version: created.version };
    } catch (thrown) {
      const err = storeError(thrown, `pipeline of run ${runId}`);
      if (err.retryable) throw err;
      return undefined; // the version is not there, or is not what its name says
    }
  }
}

/** It has the place of a message that nobody was ever told of, and says nothing. */
function isFiller(message: StreamMessage): boolean {
  return message.header(FILLER_HEADER) !== "";
}

function toSource(source: LedgerSource, message: StreamMessage): SourceMessage {
  const { seq, data, subject } = message;
  const about = { seq, digest: () => `sha256:${createHash("sha256").update(data).digest("hex")}` };
  if (source === "RESOURCES") return { ...about, source, read: () => parseApply(data) };
  const runId = subject.slice(subject.lastIndexOf(".") + 1);
  return { ...about, source, runId, read: () => readEvents(message) };
}

function readEvents(message: Pick<StreamMessage, "seq" | "subject" | "data">) {
  try {
    const { foreign, events } = toBatch(message);
    return foreign === undefined ? events : undefined;
  } catch (err) {
    if (err instanceof InsituError) return undefined;
    throw err;
  }
}
