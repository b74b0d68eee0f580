/**
 * What a step wrote, on disk: frames of stream, time and bytes, in segments that are named by the offset of their
 * first byte. Written by the supervisor, read by the agent from wherever its journal says.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { linesIn } from "../../shared/wire/log-codec.ts";
import { LOG_CHUNK_MAX_BYTES } from "../../shared/wire/protocol.ts";

/** stream (1), wall time in milliseconds (8), length of the bytes (4). */
const HEAD_BYTES = 13;
const SEGMENT_BYTES = 8 * 1024 * 1024;
/** At once: what a flood makes of one turn of the reader's event loop. Holds the largest frame. */
const READ_BYTES = 2 * LOG_CHUNK_MAX_BYTES;

export interface Frame {
  stream: "stdout" | "stderr";
  atMs: number;
  data: Buffer;
  /** Of the byte behind the frame: where a reader goes on. */
  endOffset: number;
}

export class SpoolWriter {
  readonly #directory: string;
  #fd: number | undefined;
  #segmentStart = 0;
  /** Of the byte behind the last frame. */
  end = 0;
  /** Given up because the disk was full. */
  droppedBytes = 0;
  droppedLines = 0;

  constructor(directory: string) {
    this.#directory = directory;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  append(stream: Frame["stream"], atMs: number, data: Buffer): void {
    // A frame becomes one log entry, so that a reader never goes on in the middle of one.
    for (let at = 0; at < data.length; at += LOG_CHUNK_MAX_BYTES) {
      this.#frame(stream, atMs, data.subarray(at, at + LOG_CHUNK_MAX_BYTES));
    }
  }

  drop(data: Buffer): void {
    this.droppedBytes += data.length;
    this.droppedLines += linesIn(data);
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  #frame(stream: Frame["stream"], atMs: number, data: Buffer): void {
    const head = Buffer.alloc(HEAD_BYTES);
    head.writeUInt8(stream === "stdout" ? 1 : 2, 0);
    head.writeDoubleBE(atMs, 1);
    head.writeUInt32BE(data.length, 9);
    const frame = Buffer.concat([head, data]);
    try {
      const fd = this.#segment();
      const written = writeSync(fd, frame);
      if (written < frame.length) writeSync(fd, frame.subarray(written));
      this.end += frame.length;
    } catch {
      // A full disk: the step goes on, and what is lost is counted.
      this.drop(data);
      this.#cut();
    }
  }

  #segment(): number {
    if (this.#fd !== undefined && this.end - this.#segmentStart < SEGMENT_BYTES) return this.#fd;
    this.close();
    this.#segmentStart = this.end;
    this.#fd = openSync(join(this.#directory, segmentName(this.end)), "a", 0o600);
    return this.#fd;
  }

  /** Half a frame would end the reader's way through the segment. */
  #cut(): void {
    try {
      if (this.#fd !== undefined) ftruncateSync(this.#fd, this.end - this.#segmentStart);
    } catch {
      this.close();
    }
  }
}

export class SpoolReader {
  readonly #directory: string;
  offset: number;

  constructor(directory: string, offset: number) {
    this.#directory = directory;
    this.offset = offset;
  }

  /** The next frames, none when there is no more before `end`. */
  read(end: number): Frame[] {
    if (this.offset >= end) return [];
    const start = this.#segmentOf(this.offset);
    if (start === undefined) return [];
    const fd = openSync(join(this.#directory, segmentName(start)), "r");
    try {
      const size = Math.min(fstatSync(fd).size, end - start) - (this.offset - start);
      const buffer = Buffer.alloc(Math.min(size, READ_BYTES));
      readSync(fd, buffer, 0, buffer.length, this.offset - start);
      return this.#frames(buffer);
    } finally {
      closeSync(fd);
    }
  }

  /** Of the byte behind what is on disk, from what is read at present on; the last frame may be half written. */
  size(): number {
    const start = this.#starts().at(-1);
    if (start === undefined) return this.offset;
    return start + statSync(join(this.#directory, segmentName(start))).size;
  }

  /** Deletes the segments that lie wholly before the offset. */
  forget(offset: number): void {
    const starts = this.#starts();
    for (const [index, start] of starts.entries()) {
      const next = starts[index + 1];
      if (next === undefined || next > offset) return;
      rmSync(join(this.#directory, segmentName(start)), { force: true });
    }
  }

  #frames(buffer: Buffer): Frame[] {
    const frames: Frame[] = [];
    for (let at = 0; at + HEAD_BYTES <= buffer.length; ) {
      const length = buffer.readUInt32BE(at + 9);
      const next = at + HEAD_BYTES + length;
      if (next > buffer.length) break;
      this.offset += HEAD_BYTES + length;
      frames.push({
        stream: buffer.readUInt8(at) === 1 ? "stdout" : "stderr",
        atMs: buffer.readDoubleBE(at + 1),
        data: buffer.subarray(at + HEAD_BYTES, next),
        endOffset: this.offset,
      });
      at = next;
    }
    return frames;
  }

  #segmentOf(offset: number): number | undefined {
    return this.#starts().findLast((start) => start <= offset);
  }

  #starts(): number[] {
    if (!existsSync(this.#directory)) return [];
    return readdirSync(this.#directory)
      .map((name) => Number.parseInt(name, 10))
      .filter((start) => Number.isInteger(start))
      .sort((a, b) => a - b);
  }
}

function segmentName(start: number): string {
  return `${String(start).padStart(16, "0")}.frames`;
}
