/**
 * The files of the tail copy: `<n>.tail`, each a row of records, the newest with the highest number.
 *
 * Records that are appended at the same time share a write and a sync. A file that could not be written to is cut
 * back to what was synced, and the next one begins.
 */
import { type FileHandle, mkdir, open, readdir, readFile, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { InsituError } from "../../../shared/errors.ts";
import {
  decodeAt,
  decodeRecords,
  encodeRecord,
  type TailMessage,
  type TailRecord,
  type TailStream,
} from "./tail-record.ts";

/**
 * All files together. At 700 bytes an append that is 13,000 a second over the quarter of an hour that a copy stays; with
 * more nothing is acknowledged until the oldest file may go.
 */
export const TAIL_COPY_MAX_BYTES = 8 * 1024 ** 3;

/** Where a record lies. */
export interface Place {
  file: number;
  offset: number;
  bytes: number;
}

interface Current {
  index: number;
  handle: FileHandle;
  /** Written and synced. */
  bytes: number;
}

interface Batch {
  records: TailRecord[];
  done: Promise<number>;
}

export class TailFiles {
  readonly #directory: string;
  /** What a new file begins with. */
  readonly #opening: () => TailStream[];
  readonly #maxBytes: number;
  /** Files that are not written to any more, with their bytes. */
  readonly #closed = new Map<number, number>();
  #nextIndex = 1;
  #current: Current | undefined;
  /** The last write that was asked for. */
  #last: Promise<unknown> = Promise.resolve();
  /** It has not begun: what is appended now goes with it. */
  #next: Batch | undefined;

  constructor(directory: string, opening: () => TailStream[], maxBytes = TAIL_COPY_MAX_BYTES) {
    this.#directory = directory;
    this.#opening = opening;
    this.#maxBytes = maxBytes;
  }

  /**
   * Finds what is there, and cuts off what a crash has torn. Once, before anything else.
   *
   * @throws internal when a file is damaged before its end
   */
  async open(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    await syncDirectory(dirname(this.#directory));
    for (const name of await readdir(this.#directory)) {
      const digits = /^(\d+)\.tail$/.exec(name)?.[1];
      if (digits === undefined) continue;
      const file = Number(digits);
      const bytes = await readFile(this.#path(file));
      const { wholeBytes } = decodeRecords(bytes);
      if (wholeBytes < bytes.length) await this.#cutTorn(file, bytes, wholeBytes);
      this.#closed.set(file, wholeBytes);
      this.#nextIndex = Math.max(this.#nextIndex, file + 1);
    }
  }

  /** Every record of the files that are not written to any more, oldest first. */
  async scan(visit: (record: TailRecord, place: Place) => void): Promise<void> {
    for (const file of [...this.#closed.keys()].sort((a, b) => a - b)) {
      const { records } = decodeRecords(await readFile(this.#path(file)));
      for (const { record, offset, bytes } of records) visit(record, { file, offset, bytes });
    }
  }

  /** A crash leaves what was not synced in any state. What can be read of a later write says that it was no crash. */
  async #cutTorn(file: number, bytes: Buffer, wholeBytes: number): Promise<void> {
    for (let offset = wholeBytes + 1; offset < bytes.length; offset++) {
      const record = decodeAt(bytes, offset)?.record;
      if (record?.kind !== "batch" || record.begins !== offset) continue;
      throw new InsituError(
        "internal",
        `${this.#path(file)} is damaged at byte ${wholeBytes}, and goes on behind it: what was acknowledged cannot all be read there. See to the disk; to go on without this copy, move ${this.#directory} away`,
      );
    }
    const handle = await open(this.#path(file), "r+");
    try {
      await handle.truncate(wholeBytes);
      await handle.datasync();
    } finally {
      await handle.close();
    }
  }

  /** @throws internal when it is not there any more as it was */
  async read({ file, offset, bytes }: Place): Promise<TailMessage> {
    const handle = await open(this.#path(file), "r");
    try {
      const buffer = Buffer.alloc(bytes);
      await handle.read(buffer, 0, bytes, offset);
      const record = decodeAt(buffer, 0)?.record;
      if (record?.kind === "message") return record;
    } finally {
      await handle.close();
    }
    throw new InsituError("internal", `${this.#path(file)} does not hold at byte ${offset} what it held`);
  }

  /**
   * Resolves when they are on the disk, with the file that they are in.
   *
   * @throws store.unavailable (retryable) when they cannot be brought there
   */
  append(records: readonly TailRecord[]): Promise<number> {
    if (!this.#next) {
      const batch: TailRecord[] = [];
      const done = this.#after(async () => {
        this.#next = undefined;
        return await this.#write(batch);
      });
      this.#next = { records: batch, done };
    }
    for (const record of records) this.#next.records.push(record);
    return this.#next.done;
  }

  /** The file that is written to, with what is in it: undefined when none was begun. */
  get newest(): { index: number; bytes: number } | undefined {
    return this.#current && { index: this.#current.index, bytes: this.#current.bytes };
  }

  /** The next record begins a new file. Gives the files that are not written to any more. */
  async turn(): Promise<readonly number[]> {
    await this.#after(async () => {
      if (!this.#current) return;
      const { handle, index, bytes } = this.#current;
      this.#current = undefined;
      this.#closed.set(index, bytes);
      await handle.close();
    });
    return [...this.#closed.keys()];
  }

  async remove(file: number): Promise<void> {
    await unlink(this.#path(file));
    this.#closed.delete(file);
  }

  async close(): Promise<void> {
    await this.turn();
  }

  /** One after the other. */
  #after<T>(act: () => Promise<T>): Promise<T> {
    const turn = this.#last.catch(() => {}).then(act); // whoever waited for that one has the error
    this.#last = turn;
    return turn;
  }

  async #write(records: readonly TailRecord[]): Promise<number> {
    const closedBytes = [...this.#closed.values()].reduce((sum, bytes) => sum + bytes, 0);
    if (closedBytes + (this.#current?.bytes ?? 0) >= this.#maxBytes) {
      throw new InsituError(
        "store.unavailable",
        `what was stored is not acknowledged: the copy of it in ${this.#directory} has reached its limit of ${this.#maxBytes} bytes, and goes on when the oldest of it, after a quarter of an hour, is not needed any more. If NATS syncs by itself (sync_interval: always), --nats-copy off ends the copy`,
        { retryable: true },
      );
    }
    try {
      this.#current ??= await this.#begin();
      await writeSynced(this.#current, records);
      return this.#current.index;
    } catch (err) {
      await this.#abandon();
      throw new InsituError(
        "store.unavailable",
        `what was stored cannot be copied to ${this.#directory}, so it is not acknowledged: ${String(err)}. Make room there, or see to the disk`,
        { retryable: true, cause: err },
      );
    }
  }

  async #begin(): Promise<Current> {
    const index = this.#nextIndex;
    this.#nextIndex += 1;
    const handle = await open(this.#path(index), "wx", 0o600);
    const begun = { index, handle, bytes: 0 };
    try {
      await writeSynced(begun, this.#opening());
      await syncDirectory(this.#directory);
    } catch (err) {
      await handle.close();
      await unlink(this.#path(index)).catch(() => {}); // it holds nothing that anybody waits for
      throw err;
    }
    return begun;
  }

  /** After a failed sync nothing can be said of the file's end: what was acknowledged lies before it. */
  async #abandon(): Promise<void> {
    if (!this.#current) return;
    const { handle, index, bytes } = this.#current;
    this.#current = undefined;
    this.#closed.set(index, bytes);
    await handle.truncate(bytes).catch(() => {}); // a torn end is cut off by the next start
    await handle.close().catch(() => {}); // nothing is written through it any more
  }

  #path(file: number): string {
    return join(this.#directory, `${file}.tail`);
  }
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, "r");
  await handle.sync().finally(() => handle.close());
}

async function writeSynced(
  file: { handle: FileHandle; bytes: number },
  records: readonly TailRecord[],
): Promise<void> {
  const batch: TailRecord = { kind: "batch", begins: file.bytes };
  const bytes = Buffer.concat([batch, ...records].map(encodeRecord));
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.handle.write(bytes, done, bytes.length - done, file.bytes + done);
    done += bytesWritten;
  }
  await file.handle.datasync();
  file.bytes += bytes.length;
}
