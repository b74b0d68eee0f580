/** Gathers what one attempt writes into chunks for the spool, or into a file of the site when it may not leave. */
import { createWriteStream, mkdirSync, type WriteStream } from "node:fs";
import { dirname } from "node:path";
import type { Clock, Timer } from "../../shared/system.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import { encodeLogEntries } from "../../shared/wire/log-codec.ts";
import type { LogEntry, LogStreamName } from "../../shared/wire/log-entries.ts";
import { LOG_CHUNK_MAX_BYTES } from "../../shared/wire/protocol.ts";
import type { Journal } from "./journal.ts";

const FLUSH_MS = 100;
/** What an entry costs in a chunk beside its bytes: sequence, time, stream and lengths, at the most. */
const ENTRY_FRAME_BYTES = 32;
/** Taken from the step and not yet in the journal; the pipes are paused above it. */
const BUFFER_MAX_BYTES = 1024 * 1024;

export interface LogTotals {
  lastSeq: number;
  bytes: number;
  droppedBytes: number;
}

export class LogWriter {
  readonly #lease: LeaseKey;
  readonly #journal: Journal;
  readonly #clock: Clock;
  /** Set when the log may not leave the site. */
  readonly #file: WriteStream | undefined;
  #fileFailed = false;
  #entries: LogEntry[] = [];
  #entriesBytes = 0;
  #bufferedBytes = 0;
  #seq = 0;
  /** Last entry that is on record: a reader waits for it, so it may not be one that was lost. */
  #storedSeq = 0;
  #bytes = 0;
  #lostBytes = 0;
  #timer: Timer | undefined;
  #resumes: (() => void)[] = [];
  readonly #writes = new Set<Promise<void>>();

  constructor(options: { lease: LeaseKey; journal: Journal; clock: Clock; siteFile: string | null }) {
    this.#lease = options.lease;
    this.#journal = options.journal;
    this.#clock = options.clock;
    if (options.siteFile === null) return;
    mkdirSync(dirname(options.siteFile), { recursive: true, mode: 0o700 });
    this.#file = createWriteStream(options.siteFile, { mode: 0o600 });
    // A step does not fail, and above all does not stand still, because its log cannot be kept: the loss is counted.
    this.#file.on("error", () => {
      this.#fileFailed = true;
      this.#resume();
    });
  }

  /** False when the step should pause. */
  log(stream: LogStreamName, data: Buffer): boolean {
    this.#bytes += data.length;
    if (this.#fileFailed) return true;
    if (this.#file) {
      const open = this.#file.write(data);
      if (!open) this.#file.once("drain", () => this.#resume());
      return open;
    }
    for (let at = 0; at < data.length; at += LOG_CHUNK_MAX_BYTES) {
      this.#add(stream, data.subarray(at, at + LOG_CHUNK_MAX_BYTES));
    }
    return this.#bufferedBytes < BUFFER_MAX_BYTES;
  }

  /** The gateway refuses a chunk over its limit for good, so an entry that does not fit begins the next one. */
  #add(stream: LogStreamName, data: Buffer): void {
    const framed = this.#entriesBytes + (this.#entries.length + 1) * ENTRY_FRAME_BYTES;
    if (this.#entries.length > 0 && framed + data.length > LOG_CHUNK_MAX_BYTES) this.#flush();
    this.#entries.push({ seq: ++this.#seq, atMs: this.#clock.wallMs(), stream, data, droppedBytes: 0 });
    this.#entriesBytes += data.length;
    this.#bufferedBytes += data.length;
    if (this.#entriesBytes >= LOG_CHUNK_MAX_BYTES) this.#flush();
    else this.#timer ??= this.#clock.after(FLUSH_MS, () => this.#flush());
  }

  onDrain(resume: () => void): void {
    this.#resumes.push(resume);
  }

  /** Resolves when all that was written is durable here. */
  async close(): Promise<LogTotals> {
    this.#flush();
    await Promise.all(this.#writes);
    if (this.#file) {
      await new Promise<void>((resolve) => this.#file?.end(() => resolve()));
      this.#lostBytes = this.#bytes - this.#file.bytesWritten;
    }
    return { lastSeq: this.#storedSeq, bytes: this.#bytes, droppedBytes: this.#lostBytes };
  }

  #flush(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    if (this.#entries.length === 0) return;
    const entries = this.#entries;
    const contentBytes = this.#entriesBytes;
    this.#entries = [];
    this.#entriesBytes = 0;
    const { encoding, bytes } = encodeLogEntries(entries);
    const write = this.#journal
      .appendLog({
        lease: this.#lease,
        firstEntry: entries[0]!.seq,
        entryCount: entries.length,
        encoding,
        atMs: entries[0]!.atMs,
        entries: Buffer.from(bytes),
        contentBytes,
      })
      .then(() => {
        this.#storedSeq = Math.max(this.#storedSeq, entries.at(-1)!.seq);
      })
      // A full disk: logs give way, results do not. The loss is counted in the outcome.
      .catch(() => {
        this.#lostBytes += contentBytes;
      })
      .finally(() => {
        this.#writes.delete(write);
        this.#bufferedBytes -= contentBytes;
        if (this.#bufferedBytes < BUFFER_MAX_BYTES / 2) this.#resume();
      });
    this.#writes.add(write);
  }

  #resume(): void {
    for (const resume of this.#resumes.splice(0)) resume();
  }
}
