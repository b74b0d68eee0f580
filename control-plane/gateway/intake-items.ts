/** What is in the batches of reports and logs, and where it goes. */
import { InsituError } from "../../shared/errors.ts";
import type { LogBatch__Output } from "../../shared/wire/gen/insitu/agent/v1/LogBatch.ts";
import type { ReportBatch__Output } from "../../shared/wire/gen/insitu/agent/v1/ReportBatch.ts";
import type { IntakeItem } from "./intake.ts";
import { parseLogChunk, parseReport, parseSeq } from "./messages.ts";
import type { Peer } from "./peer-identity.ts";
import type { LogSink, ReportSink } from "./ports.ts";

const BATCH_MAX_ITEMS = 10_000;

/** A malformed report is set aside by itself; the others of its batch are kept. */
export function reportItems(peer: Peer, sink: ReportSink): (batch: ReportBatch__Output) => IntakeItem[] {
  return (batch) =>
    bounded(batch.reports).map((report) => ({
      seq: parseSeq(report.seq),
      bytes: report.payload.length,
      async store() {
        const verdict = await sink.accept(peer.id, parseReport(report.payload));
        return verdict.accepted ? undefined : { code: verdict.code, message: verdict.message };
      },
    }));
}

export function logItems(peer: Peer, sink: LogSink): (batch: LogBatch__Output) => IntakeItem[] {
  return (batch) =>
    bounded(batch.chunks).map((chunk) => ({
      seq: parseSeq(chunk.seq),
      bytes: chunk.entries.length,
      async store() {
        await sink.append(peer.id, parseLogChunk(chunk));
        return undefined;
      },
    }));
}

function bounded<T>(items: T[]): T[] {
  if (items.length <= BATCH_MAX_ITEMS) return items;
  throw new InsituError(
    "request.too-large",
    `a batch has at most ${BATCH_MAX_ITEMS} items, this one has ${items.length}`,
  );
}
