/** Run events on the stream `RUNS`: one subject a run, one message a batch, compare-and-set on the subject. */
import type { NatsConnection } from "nats";
import type { RunEvent, RunEventBatch } from "../../shared/engine/events.ts";
import { InsituError } from "../../shared/errors.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { AppendResult, RunStore, StoredBatch } from "../runs/ports.ts";
import { publishOnce } from "./publish.ts";
import { flushed, readable } from "./stream-disk.ts";
import { readToEnd, type StreamMessage } from "./stream-reader.ts";

export class JetStreamRunStore implements RunStore {
  readonly #connection: NatsConnection;

  constructor(connection: NatsConnection) {
    this.#connection = connection;
  }

  async append(
    runId: string,
    events: RunEvent[],
    expectedSeq: number,
    messageId: string,
  ): Promise<AppendResult> {
    const batch: RunEventBatch = { v: 1, events };
    const published = await publishOnce(this.#connection, {
      what: `append to run ${runId}`,
      stream: STREAMS.runs,
      subject: subjects.run(runId),
      payload: JSON.stringify(batch),
      messageId,
      expected: { ofSubject: expectedSeq },
    });
    return published.kind === "stored" ? { kind: "appended", seq: published.seq } : published;
  }

  async read(runId: string, afterSeq: number): Promise<StoredBatch[]> {
    const batches: StoredBatch[] = [];
    const filter = subjects.run(runId);
    await readable(this.#connection);
    const from = { connection: this.#connection, stream: STREAMS.runs, filter, fromSeq: afterSeq + 1 };
    for await (const message of readToEnd(from)) batches.push(toBatch(message));
    // An append whose answer was lost is found here, and what follows from it is acknowledged.
    await flushed(this.#connection, STREAMS.runs, batches.at(-1)?.seq ?? 0);
    return batches;
  }
}

/**
 * What is no JSON object was written by no release of ours: it counts as a batch without events, so that it is stepped
 * over, and `foreign` says so. To refuse the run for it would let one stray message hold up all reports of an agent.
 *
 * @throws internal when the batch has a shape of another release: the caller sets the run aside
 */
export function toBatch(
  message: Pick<StreamMessage, "seq" | "subject" | "data">,
): StoredBatch & { foreign?: string } {
  const { seq, subject } = message;
  const runId = subject.slice(subject.lastIndexOf(".") + 1);
  const parsed = parseObject(message.data);
  if (parsed === undefined) {
    return { seq, runId, events: [], foreign: `message ${seq} of ${STREAMS.runs} is no JSON object` };
  }
  if (parsed.v !== 1 || !Array.isArray(parsed.events)) {
    throw new InsituError("internal", `message ${seq} of ${STREAMS.runs} is not a batch of run events`);
  }
  return { seq, runId, events: parsed.events };
}

function parseObject(data: Uint8Array): Partial<RunEventBatch> | undefined {
  try {
    const json: unknown = JSON.parse(Buffer.from(data).toString("utf8"));
    return typeof json === "object" && json !== null ? json : undefined;
  } catch {
    return undefined; // what it is instead, whoever looks at the copy sees
  }
}
