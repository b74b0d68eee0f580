/** Run events on the stream `RUNS`: one subject a run, one message a batch, compare-and-set on the subject. */
import type { JetStreamClient, NatsConnection } from "nats";
import type { RunEvent, RunEventBatch } from "../../shared/engine/events.ts";
import { InsituError } from "../../shared/errors.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { AppendResult, RunStore, StoredBatch } from "../runs/ports.ts";
import { errorCode, storeError, WRONG_LAST_SEQUENCE } from "./jetstream.ts";
import { readToEnd, type StreamMessage } from "./stream-reader.ts";

const PUBLISH_TIMEOUT_MS = 5_000;

export class JetStreamRunStore implements RunStore {
  readonly #connection: NatsConnection;
  readonly #jetstream: JetStreamClient;

  constructor(connection: NatsConnection) {
    this.#connection = connection;
    this.#jetstream = connection.jetstream();
  }

  async append(
    runId: string,
    events: RunEvent[],
    expectedSeq: number,
    messageId: string,
  ): Promise<AppendResult> {
    const batch: RunEventBatch = { v: 1, events };
    try {
      const ack = await this.#jetstream.publish(subjects.run(runId), JSON.stringify(batch), {
        msgID: messageId,
        expect: { lastSubjectSequence: expectedSeq, streamName: STREAMS.runs },
        timeout: PUBLISH_TIMEOUT_MS,
      });
      return { kind: "appended", seq: ack.seq };
    } catch (err) {
      if (errorCode(err) === WRONG_LAST_SEQUENCE)
        return await this.#ownOrConflict(runId, expectedSeq, messageId);
      throw storeError(err, `append to run ${runId}`);
    }
  }

  async read(runId: string, afterSeq: number): Promise<StoredBatch[]> {
    const batches: StoredBatch[] = [];
    for await (const message of this.#messages(runId, afterSeq)) batches.push(toBatch(message));
    return batches;
  }

  /**
   * A first try whose answer was lost may be what moved the run on. Servers up to 2.9 answer the repeat by its
   * message id; newer ones look at the expectation first, and call it a conflict.
   */
  async #ownOrConflict(runId: string, expectedSeq: number, messageId: string): Promise<AppendResult> {
    for await (const message of this.#messages(runId, expectedSeq)) {
      if (message.header("Nats-Msg-Id") === messageId) return { kind: "appended", seq: message.seq };
    }
    return { kind: "conflict" };
  }

  #messages(runId: string, afterSeq: number): AsyncGenerator<StreamMessage> {
    const filter = subjects.run(runId);
    const from = { connection: this.#connection, stream: STREAMS.runs, filter, fromSeq: afterSeq + 1 };
    return readToEnd(from);
  }
}

/** @throws internal when the message is not a batch of events: the caller sets the run aside. */
export function toBatch(message: StreamMessage): StoredBatch {
  const runId = message.subject.slice(message.subject.lastIndexOf(".") + 1);
  const parsed = JSON.parse(Buffer.from(message.data).toString("utf8")) as Partial<RunEventBatch>;
  if (parsed?.v !== 1 || !Array.isArray(parsed.events)) {
    throw new InsituError(
      "internal",
      `message ${message.seq} of ${STREAMS.runs} is not a batch of run events`,
    );
  }
  return { seq: message.seq, runId, events: parsed.events };
}
