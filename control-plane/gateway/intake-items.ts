/** What is in the batches of reports and logs, and where it goes. */
import { InsituError } from "../../shared/errors.ts";
import type { ReportPayload } from "../../shared/wire/attempt.ts";
import { BATCH_MAX_ITEMS } from "../../shared/wire/batch-signature.ts";
import type { LogBatch__Output } from "../../shared/wire/gen/insitu/agent/v1/LogBatch.ts";
import type { ReportBatch__Output } from "../../shared/wire/gen/insitu/agent/v1/ReportBatch.ts";
import { type ReportSignature, reportBytes } from "../../shared/wire/report-signature.ts";
import { type PoisonSink, reasonOf } from "../poison/ports.ts";
import type { IntakeItem } from "./intake.ts";
import { checkLogBatch } from "./log-signatures.ts";
import { parseLogChunk, parseReport, parseSeq } from "./messages.ts";
import type { Peer } from "./peer-identity.ts";
import type { LogSink, ReportSink } from "./ports.ts";
import type { Kept, ReportKeys } from "./report-keys.ts";

/** A malformed report is set aside by itself; the others of its batch are kept. */
export function reportItems(
  peer: Peer,
  { sink, keys, poison }: { sink: ReportSink; keys: ReportKeys; poison: PoisonSink },
): (batch: ReportBatch__Output) => IntakeItem[] {
  return (batch) => {
    const check = checkOf(peer, keys, batch);
    return bounded(batch.reports).map((report, index) => ({
      seq: parseSeq(report.seq),
      bytes: report.payload.length,
      async store() {
        const read = async () => {
          const parsed = parseReport(report.payload);
          const signature = await check(index);
          return { parsed, signed: signature && withPayload(signature, parsed, report.payload) };
        };
        const what = { peer, subject: "report", data: report.payload, poison };
        const { parsed, signed } = await readOrKeep(read, what);
        const verdict = await sink.accept(peer.id, parsed, signed);
        return verdict.accepted ? undefined : { code: verdict.code, message: verdict.message };
      },
    }));
  };
}

/** Of the report at that index: by the signature of its batch, or by its own. */
function checkOf(
  peer: Peer,
  keys: ReportKeys,
  batch: ReportBatch__Output,
): (index: number) => Promise<Kept | undefined> {
  const { reports } = batch;
  if (batch.signature.length === 0) return (index) => keys.check(peer.id, reports[index]!);
  const payloads = reports.map(({ payload }) => payload);
  return keys.checkBatch(peer.id, payloads, batch);
}

export function logItems(
  peer: Peer,
  { sink, keys, poison }: { sink: LogSink; keys: ReportKeys; poison: PoisonSink },
): (batch: LogBatch__Output) => IntakeItem[] {
  return (batch) => {
    const check = checkLogBatch(keys, peer.id, batch.chunks, batch);
    return bounded(batch.chunks).map((chunk, index) => ({
      seq: parseSeq(chunk.seq),
      bytes: chunk.entries.length,
      async store() {
        const read = async () => ({ ...parseLogChunk(chunk), signed: await check(index) });
        const parsed = await readOrKeep(read, { peer, subject: "log chunk", data: chunk.entries, poison });
        await sink.append(peer.id, parsed);
        return undefined;
      },
    }));
  };
}

/** The payload itself, where it cannot be written again from what it said. */
function withPayload(signature: Kept, report: ReportPayload, payload: Uint8Array): ReportSignature {
  if (Buffer.compare(reportBytes(report), payload) === 0) return signature;
  return { ...signature, payload: Buffer.from(payload).toString("utf8") };
}

function bounded<T>(items: T[]): T[] {
  if (items.length <= BATCH_MAX_ITEMS) return items;
  throw new InsituError(
    "request.too-large",
    `a batch has at most ${BATCH_MAX_ITEMS} items, this one has ${items.length}`,
  );
}

/** What is malformed is refused for good, and the agent forgets it: a copy is kept before it is told. */
async function readOrKeep<T>(
  read: () => T | Promise<T>,
  { peer, subject, data, poison }: { peer: Peer; subject: string; data: Uint8Array; poison: PoisonSink },
): Promise<T> {
  try {
    return await read();
  } catch (err) {
    if (!(err instanceof InsituError) || err.retryable) throw err; // it comes again
    await poison.put({ source: "gateway", subject, seq: null, from: peer.id, reason: reasonOf(err), data });
    throw err;
  }
}
