/** Gathers what one attempt writes into chunks for the spool, or into a file of the site when it may not leave. */
import { createWriteStream, mkdirSync, statSync, truncateSync, type WriteStream } from "node:fs";
import { dirname } from "node:path";
import type { Clock, Timer } from "../../shared/system.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import { encodeLogEntries, linesIn } from "../../shared/wire/log-codec.ts";
import type { LogEntry, LogStreamName } from "../../shared/wire/log-entries.ts";
import { LOG_CHUNK_MAX_BYTES } from "../../shared/wire/protocol.ts";
import type { Journal, LogMark } from "./journal.ts";
import { joined, type LogChunkRecord, type Loss, lossOf, noteOf } from "./log-chunk.ts";

const FLUSH_MS = 100;
/** What an entry costs in a chunk beside its bytes: sequence, time, stream and lengths, at the most. */
const ENTRY_FRAME_BYTES = 32;
/** Taken from the step and not yet in the journal; the pipes are paused above it. */
const BUFFER_MAX_BYTES = 1024 * 1024;
/** Of the log of one attempt that stays at the site. */
export const SITE_LOG_MAX_BYTES = 256 * 1024 * 1024;
const SITE_MARK_MS = 500;

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
  #entriesLines = 0;
  #bufferedBytes = 0;
  #seq: number;
  /** In the supervisor's spool, behind the last entry. */
  #endOffset: number;
  /** Last entry that is on record: a reader waits for it, so it may not be one that was lost. */
  #storedSeq: number;
  #bytes: number;
  #lostBytes: number;
  /** Chunks that could not be kept, until a note of them is on record. */
  #losses: Loss[] = [];
  /** Of the last chunk that is on record, or was lost. */
  #furthest: LogMark;
  /** Given up by the supervisor. An agent that is started again is told of it again. */
  #dropped = { bytes: 0, lines: 0 };
  /** Of the site's file: given to it, and written by it. */
  #siteBytes = 0;
  #storedSiteBytes = 0;
  /** In the supervisor's spool: what lies before it is in the journal, or in the site's file. */
  storedOffset = 0;
  #timer: Timer | undefined;
  #resumes: (() => void)[] = [];
  readonly #writes = new Set<Promise<void>>();

  /** `from`: how far an earlier process of the agent came. */
  constructor(options: {
    lease: LeaseKey;
    journal: Journal;
    clock: Clock;
    siteFile: string | null;
    from: LogMark;
  }) {
    this.#lease = options.lease;
    this.#journal = options.journal;
    this.#clock = options.clock;
    this.#furthest = options.from;
    const { lastSeq, endOffset, bytes, lostBytes } = options.from;
    [this.#seq, this.#storedSeq, this.#endOffset] = [lastSeq, lastSeq, endOffset];
    [this.#bytes, this.#lostBytes] = [bytes, lostBytes];
    if (options.siteFile === null) return;
    mkdirSync(dirname(options.siteFile), { recursive: true, mode: 0o700 });
    this.#siteBytes = bytes - lostBytes;
    const there = cutTo(options.siteFile, this.#siteBytes);
    // After a power cut the file may be shorter than its mark.
    this.#lostBytes += this.#siteBytes - there;
    this.#siteBytes = there;
    this.#storedSiteBytes = there;
    this.#file = createWriteStream(options.siteFile, { flags: "a", mode: 0o600 });
    // A step does not fail, and above all does not stand still, because its log cannot be kept: the loss is counted.
    this.#file.on("error", () => {
      this.#fileFailed = true;
      this.#resume();
    });
  }

  /** False when the step should pause. */
  log(stream: LogStreamName, data: Buffer, at: { atMs: number; endOffset: number }): boolean {
    if (this.#file) {
      this.#bytes += data.length;
      return this.#keep(this.#file, data, at.endOffset);
    }
    this.#add(stream, data, at);
    return this.#bufferedBytes < BUFFER_MAX_BYTES;
  }

  /** Into the site's own file, up to its limit: beyond it the loss is counted. */
  #keep(file: WriteStream, data: Buffer, endOffset: number): boolean {
    if (this.#fileFailed || this.#siteBytes + data.length > SITE_LOG_MAX_BYTES) {
      this.#lostBytes += data.length;
      this.#storedAt(endOffset);
      return true;
    }
    this.#siteBytes += data.length;
    const siteBytes = this.#siteBytes;
    const open = file.write(data, (err) => {
      if (err) this.#lostBytes += data.length;
      this.#storedAt(endOffset, siteBytes);
    });
    if (!open) file.once("drain", () => this.#resume());
    return open;
  }

  /** An agent that is started again goes on behind the mark, and the supervisor may forget what lies before it. */
  #storedAt(endOffset: number, siteBytes = this.#siteBytes): void {
    this.#endOffset = Math.max(this.#endOffset, endOffset);
    this.#storedSiteBytes = Math.max(this.#storedSiteBytes, siteBytes);
    this.#timer ??= this.#clock.after(SITE_MARK_MS, () => {
      this.#timer = undefined;
      void this.#mark();
    });
  }

  async #mark(): Promise<void> {
    const mark: LogMark = {
      lastSeq: this.#storedSeq,
      endOffset: this.#endOffset,
      bytes: this.#storedSiteBytes + this.#lostBytes,
      lostBytes: this.#lostBytes,
    };
    const write = this.#journal
      .markLog(this.#lease, mark)
      .then(() => {
        this.storedOffset = Math.max(this.storedOffset, mark.endOffset);
      })
      .catch(() => undefined) // a full disk: the next mark says more
      .finally(() => this.#writes.delete(write));
    this.#writes.add(write);
    await write;
  }

  /** The gateway refuses a chunk over its limit for good, so an entry that does not fit begins the next one. */
  #add(stream: LogStreamName, data: Buffer, { atMs, endOffset }: { atMs: number; endOffset: number }): void {
    const framed = this.#entriesBytes + (this.#entries.length + 1) * ENTRY_FRAME_BYTES;
    if (this.#entries.length > 0 && framed + data.length > LOG_CHUNK_MAX_BYTES) this.#flush();
    // Behind the flush: the mark of a chunk counts what is in it, and no more.
    this.#bytes += data.length;
    this.#entries.push({ seq: ++this.#seq, atMs, stream, data, droppedBytes: 0 });
    this.#endOffset = endOffset;
    this.#entriesBytes += data.length;
    this.#entriesLines += linesIn(data);
    this.#bufferedBytes += data.length;
    if (this.#entriesBytes >= LOG_CHUNK_MAX_BYTES) this.#flush();
    else this.#timer ??= this.#clock.after(FLUSH_MS, () => this.#flush());
  }

  /** Given up before it came here. */
  dropped(bytes: number, lines: number): void {
    this.#dropped.bytes += bytes;
    this.#dropped.lines += lines;
  }

  onDrain(resume: () => void): void {
    this.#resumes.push(resume);
  }

  /** Resolves when all that was written is durable here. */
  async close(): Promise<LogTotals> {
    this.#flush();
    await Promise.all(this.#writes);
    const { bytes, lines } = this.#dropped;
    if (this.#file) await new Promise<void>((resolve) => this.#file?.end(() => resolve()));
    else {
      this.#noteLosses();
      await Promise.all(this.#writes);
      if (bytes > 0) await this.#noteDropped(bytes, lines);
    }
    return {
      lastSeq: this.#storedSeq,
      bytes: this.#bytes + bytes,
      droppedBytes: this.#lostBytes + bytes,
    };
  }

  /** Under the same number also when an agent that is started again says it again: the mark stays before it. */
  async #noteDropped(bytes: number, lines: number): Promise<void> {
    const atMs = this.#clock.wallMs();
    const note = noteOf({ lease: this.#lease, firstEntry: this.#seq + 1, entryCount: 1, atMs, bytes, lines });
    const noted = this.#journal.appendLog(note, this.#furthest).then(() => {
      this.#storedSeq = this.#seq + 1;
    });
    await noted.catch(() => undefined); // a full disk: the outcome has the bytes
  }

  /** In the place of chunks that a full disk has cost, so that nobody waits for what never comes. */
  #noteLosses(): void {
    for (const loss of this.#losses.splice(0)) {
      const lastSeq = loss.firstEntry + loss.entryCount - 1;
      const write = this.#journal
        .appendLog(noteOf(loss), { ...this.#furthest, lostBytes: this.#lostBytes })
        .then(() => {
          this.#storedSeq = Math.max(this.#storedSeq, lastSeq);
        })
        .catch(() => this.#lose(loss))
        .finally(() => this.#writes.delete(write));
      this.#writes.add(write);
    }
  }

  #lose(loss: Loss): void {
    const last = this.#losses.at(-1);
    const both = last && joined(last, loss);
    if (both) this.#losses.splice(-1, 1, both);
    else this.#losses.push(loss);
  }

  #flush(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    if (this.#entries.length === 0) return;
    this.#noteLosses();
    const entries = this.#entries;
    const contentBytes = this.#entriesBytes;
    const contentLines = this.#entriesLines;
    this.#entries = [];
    this.#entriesBytes = 0;
    this.#entriesLines = 0;
    const { encoding, bytes } = encodeLogEntries(entries);
    const mark: LogMark = {
      lastSeq: entries.at(-1)!.seq,
      endOffset: this.#endOffset,
      bytes: this.#bytes,
      lostBytes: this.#lostBytes,
    };
    const chunk: Omit<LogChunkRecord, "seq"> = {
      lease: this.#lease,
      firstEntry: entries[0]!.seq,
      entryCount: entries.length,
      encoding,
      atMs: entries[0]!.atMs,
      entries: Buffer.from(bytes),
      contentBytes,
      contentLines,
    };
    const write = this.#journal
      .appendLog(chunk, mark)
      .then(() => {
        this.#storedSeq = Math.max(this.#storedSeq, mark.lastSeq);
        this.storedOffset = Math.max(this.storedOffset, mark.endOffset);
      })
      // A full disk: logs give way, results do not. The loss is counted in the outcome.
      .catch(() => {
        this.#lostBytes += contentBytes;
        this.#lose(lossOf(chunk));
      })
      .finally(() => {
        if (mark.lastSeq > this.#furthest.lastSeq) this.#furthest = mark;
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

/** Bytes of the file behind the mark are written again. Gives its size then. */
function cutTo(path: string, bytes: number): number {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat?.isFile()) return 0;
  if (stat.size > bytes) truncateSync(path, bytes);
  return Math.min(stat.size, bytes);
}
