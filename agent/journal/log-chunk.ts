import type { LeaseKey } from "../../shared/wire/attempt.ts";
import { encodeLogEntries, type LogEncoding } from "../../shared/wire/log-codec.ts";

/** Some entries of one attempt's log, as they are spooled and sent. */
export interface LogChunkRecord {
  seq: number;
  lease: LeaseKey;
  firstEntry: number;
  entryCount: number;
  encoding: LogEncoding;
  entries: Buffer;
  /** Wall time of the first entry. */
  atMs: number;
  /** Bytes that the step wrote, before encoding, and ends of lines among them. */
  contentBytes: number;
  contentLines?: number;
  /** Set when the content gave way to the quota: in its place is a note of how much that was. */
  dropped?: boolean;
}

/** A stretch of an attempt's log that was given up. */
export interface Loss {
  lease: LeaseKey;
  firstEntry: number;
  entryCount: number;
  atMs: number;
  bytes: number;
  lines: number;
}

/** What a reader finds in the place of what is missing. */
export function noteOf({
  lease,
  firstEntry,
  entryCount,
  atMs,
  bytes,
  lines,
}: Loss): Omit<LogChunkRecord, "seq"> {
  const note = {
    // The last of those that it stands for: a reader who has some of them already does not pass over it.
    seq: firstEntry + entryCount - 1,
    atMs,
    stream: "agent" as const,
    data: new Uint8Array(),
    droppedBytes: bytes,
    droppedLines: lines,
  };
  const { encoding, bytes: entries } = encodeLogEntries([note]);
  const content = { contentBytes: bytes, contentLines: lines, dropped: true };
  return { lease, firstEntry, entryCount, encoding, entries: Buffer.from(entries), atMs, ...content };
}

export function lossOf({
  lease,
  firstEntry,
  entryCount,
  atMs,
  contentBytes,
  contentLines,
}: Omit<LogChunkRecord, "seq">): Loss {
  return { lease, firstEntry, entryCount, atMs, bytes: contentBytes, lines: contentLines ?? 0 };
}

/** Undefined when they do not lie side by side. */
export function joined(earlier: Loss, later: Loss): Loss | undefined {
  if (earlier.firstEntry + earlier.entryCount !== later.firstEntry) return undefined;
  return {
    ...earlier,
    entryCount: earlier.entryCount + later.entryCount,
    bytes: earlier.bytes + later.bytes,
    lines: earlier.lines + later.lines,
  };
}
