/** `LogEntries` of agent.proto to bytes and back, with the encodings that a chunk may have. */
import { gunzipSync, gzipSync } from "node:zlib";
import protobuf from "protobufjs";
import { DESCRIPTOR } from "./gen/descriptor.ts";
import { LOG_STREAMS, type LogEntry } from "./log-entries.ts";

const LogEntries = protobuf.Root.fromJSON(DESCRIPTOR as protobuf.INamespace).lookupType(
  "insitu.agent.v1.LogEntries",
);

export type LogEncoding = "identity" | "gzip";

/** Smaller ones grow by compression, or gain nothing worth the time. */
const GZIP_MIN_BYTES = 1024;
/** A chunk holds far less; more is an attack or a fault. */
const DECODED_MAX_BYTES = 16 * 1024 * 1024;

export function encodeLogEntries(entries: readonly LogEntry[]): { encoding: LogEncoding; bytes: Uint8Array } {
  const plain = LogEntries.encode({
    entries: entries.map((entry) => ({
      seq: entry.seq,
      atMs: entry.atMs,
      stream: LOG_STREAMS.indexOf(entry.stream) + 1,
      data: entry.data,
      droppedBytes: entry.droppedBytes,
      droppedLines: entry.droppedLines ?? 0,
    })),
  } as unknown as protobuf.Message).finish();
  if (plain.length < GZIP_MIN_BYTES) return { encoding: "identity", bytes: plain };
  return { encoding: "gzip", bytes: gzipSync(plain, { level: 1 }) };
}

/** @throws Error when the bytes are not what `encoding` says */
export function decodeLogEntries(encoding: LogEncoding, bytes: Uint8Array): LogEntry[] {
  const plain = encoding === "gzip" ? gunzipSync(bytes, { maxOutputLength: DECODED_MAX_BYTES }) : bytes;
  const decoded = LogEntries.toObject(LogEntries.decode(plain), { longs: Number, defaults: true }) as {
    entries?: {
      seq: number;
      atMs: number;
      stream: number;
      data: Uint8Array;
      droppedBytes: number;
      droppedLines: number;
    }[];
  };
  return (decoded.entries ?? []).map((entry) => ({
    seq: entry.seq,
    atMs: entry.atMs,
    stream: LOG_STREAMS[entry.stream - 1] ?? "agent",
    data: Buffer.from(entry.data ?? []),
    droppedBytes: entry.droppedBytes,
    ...(entry.droppedLines > 0 ? { droppedLines: entry.droppedLines } : {}),
  }));
}

/** Ends of lines. */
export function linesIn(data: Uint8Array): number {
  let lines = 0;
  for (let at = data.indexOf(10); at >= 0; at = data.indexOf(10, at + 1)) lines += 1;
  return lines;
}
