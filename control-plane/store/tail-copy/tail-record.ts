/**
 * What the tail copy writes: frames of length, CRC-32 and body, one after the other.
 *
 * A body is the length of its head, the head as JSON, and the message's bytes as they are. All numbers are unsigned,
 * 32 bits, little-endian. What a crash leaves half written is at the end, and was never acknowledged.
 */
import { crc32 } from "node:zlib";
import { z } from "zod";

/** A message as it was published, and the sequence that it got. */
export interface TailMessage {
  kind: "message";
  stream: string;
  seq: number;
  subject: string;
  headers: [name: string, value: string][];
  data: Uint8Array;
}

/** What is known of a stream when a file of the copy begins, or when the stream is first written to. */
export interface TailStream {
  kind: "stream";
  stream: string;
  /** As the server has it: it is made with that again when a power cut took even its description. */
  config: Record<string, unknown>;
  /** What has a sequence up to this is no longer, or was never, in the copy. */
  floor: number;
}

/** Before what is written in one go: when it can be read, all that lies before it had been synced. */
export interface TailBatch {
  kind: "batch";
  /** Where it is in its file. */
  begins: number;
}

export type TailRecord = TailMessage | TailStream | TailBatch;

/** A record and where its frame begins. */
export interface PlacedRecord {
  record: TailRecord;
  offset: number;
  bytes: number;
}

const FRAME_HEAD_BYTES = 8;
/** Beyond what nats-server takes as a message: such a length is damage. */
const BODY_MAX_BYTES = 128 * 1024 * 1024;

const Head = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("message"),
    stream: z.string().min(1),
    seq: z.int().min(1),
    subject: z.string().min(1),
    headers: z.array(z.tuple([z.string(), z.string()])),
  }),
  z.object({
    kind: z.literal("stream"),
    stream: z.string().min(1),
    config: z.record(z.string(), z.unknown()),
    floor: z.int().min(0),
  }),
  z.object({ kind: z.literal("batch"), begins: z.int().min(0) }),
]);

export function encodeRecord(record: TailRecord): Buffer {
  const { data, ...head } = { data: new Uint8Array(), ...record };
  const json = Buffer.from(JSON.stringify(head));
  const frame = Buffer.allocUnsafe(FRAME_HEAD_BYTES + 4 + json.length + data.length);
  frame.writeUInt32LE(frame.length - FRAME_HEAD_BYTES, 0);
  frame.writeUInt32LE(json.length, FRAME_HEAD_BYTES);
  json.copy(frame, FRAME_HEAD_BYTES + 4);
  frame.set(data, FRAME_HEAD_BYTES + 4 + json.length);
  frame.writeUInt32LE(crc32(frame.subarray(FRAME_HEAD_BYTES)), 4);
  return frame;
}

/** All whole records from the beginning, and how many bytes they are: behind that is what a crash has torn. */
export function decodeRecords(bytes: Buffer): { records: PlacedRecord[]; wholeBytes: number } {
  const records: PlacedRecord[] = [];
  let offset = 0;
  for (;;) {
    const record = decodeAt(bytes, offset);
    if (!record) return { records, wholeBytes: offset };
    records.push(record);
    offset += record.bytes;
  }
}

/** Undefined when no whole record begins there. */
export function decodeAt(bytes: Buffer, offset: number): PlacedRecord | undefined {
  if (bytes.length - offset < FRAME_HEAD_BYTES + 4) return undefined;
  const length = bytes.readUInt32LE(offset);
  const end = offset + FRAME_HEAD_BYTES + length;
  if (length < 4 || length > BODY_MAX_BYTES || end > bytes.length) return undefined;
  const body = bytes.subarray(offset + FRAME_HEAD_BYTES, end);
  if (crc32(body) !== bytes.readUInt32LE(offset + 4)) return undefined;
  const headEnd = 4 + body.readUInt32LE(0);
  if (headEnd > body.length) return undefined;
  const head = parseHead(body.subarray(4, headEnd));
  if (!head) return undefined;
  const record = head.kind === "message" ? { ...head, data: body.subarray(headEnd) } : head;
  return { record, offset, bytes: end - offset };
}

function parseHead(json: Buffer): z.infer<typeof Head> | undefined {
  try {
    return Head.parse(JSON.parse(json.toString("utf8")));
  } catch {
    return undefined; // its checksum is right by chance, or a later release wrote it: not readable either way
  }
}
