/**
 * Syncs the files of a nats-server that runs on this host and does not do so itself, which is every one before 2.10.
 *
 * Such a server has written a message to its block file when it acknowledges, and leaves it to the kernel to bring
 * that to the disk. A sync through any descriptor of a file covers what others have written to it, so we do it from
 * outside. See docs/adr/0020-we-sync-the-files-of-nats-server.md for what of its files is needed after a power cut.
 *
 * Files of a stream are `<store>/jetstream/<account>/streams/<stream>/{meta.inf,meta.sum,msgs/<n>.blk}`, where n grows
 * with each block. Indexes beside them are derived.
 */
import { type BigIntStats, statSync } from "node:fs";
import { type FileHandle, open, readdir } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { StreamDisk } from "./stream-disk.ts";

/**
 * Within this time after a change of a file, a second one may have the same time stamp: the kernel takes it from a
 * clock that ticks each 1 to 10 ms.
 */
const TICK_MAX_MS = 20;
/** Looks in a row at a directory of which files vanish. */
const LOOKS_MAX = 10;

/** Brings a file's data or a directory's entries to the disk. A port, so that a test knows what is there. */
export interface Syncing {
  file(handle: FileHandle, path: string): Promise<void>;
  directory(handle: FileHandle, path: string): Promise<void>;
}

const kernel: Syncing = {
  // Without times of access and change, which nobody needs: half the writes.
  file: (handle) => handle.datasync(),
  directory: (handle) => handle.sync(),
};

export interface NatsDiskOptions {
  /** As nats-server was told: `store_dir`. */
  storeDirectory: string;
  /** Whose streams these are. Without it: of the only account that has them. */
  account?: string;
  clock: Clock;
  syncing?: Syncing;
}

type Settings = NatsDiskOptions & { syncing: Syncing };

export class NatsDisk implements StreamDisk, AsyncDisposable {
  readonly #options: Settings;
  readonly #streams = new Map<string, StreamFiles>();

  constructor(options: NatsDiskOptions) {
    this.#options = { syncing: kernel, ...options };
  }

  flush(stream: string, upToSeq: number): Promise<void> {
    return this.#filesOf(stream).flush(upToSeq);
  }

  #filesOf(stream: string): StreamFiles {
    let files = this.#streams.get(stream);
    if (!files) {
      files = new StreamFiles(stream, this.#options);
      this.#streams.set(stream, files);
    }
    return files;
  }

  /** Every stream that there is: after a start, what an earlier process left to the kernel. */
  async flushAll(): Promise<void> {
    const found = new Set<string>();
    for (const account of await accountsOf(this.#options))
      for (const stream of await entriesOf(join(account, "streams")))
        if (statOf(join(account, "streams", stream, "msgs"))) found.add(stream);
    for (const stream of found) await this.#filesOf(stream).sync();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#streams.values()].map((files) => files.close()));
  }
}

/** The block that the server appends to. */
interface Newest {
  index: number;
  path: string;
  handle: FileHandle;
  ino: bigint;
}

class StreamFiles {
  readonly #stream: string;
  readonly #options: Settings;
  #running: Promise<void> = Promise.resolve();
  /** The sync after that, which has not begun, and the highest sequence that somebody wants of it. */
  #next: Promise<void> | undefined;
  #wantedSeq = 0;
  /** What the last sync has covered, while no file has changed place. */
  #coveredSeq = 0;
  #failure: InsituError | undefined;
  /** Its `msgs`; undefined before the first look. */
  #directory: string | undefined;
  #newest: Newest | undefined;
  /** What each path was like when it was last synced, as far as that says something. */
  readonly #synced = new Map<string, string>();

  constructor(stream: string, options: Settings) {
    this.#stream = stream;
    this.#options = options;
  }

  /**
   * Writers and readers of the same message share a sync, and the readers do not come first: what one of them wanted
   * covers the other.
   */
  async flush(upToSeq: number): Promise<void> {
    if (this.#covers(upToSeq)) return;
    if (!this.#next) {
      await this.#running.catch(() => {}); // whoever waited for that one has the error
      if (this.#covers(upToSeq)) return;
    }
    this.#wantedSeq = Math.max(this.#wantedSeq, upToSeq);
    await this.sync();
  }

  /** Of what there is at the call: a sync that is under way does not cover it, and the next one is shared. */
  sync(): Promise<void> {
    this.#next ??= this.#running
      .catch(() => {}) // likewise
      .then(async () => {
        this.#running = this.#next!;
        this.#next = undefined;
        const seq = this.#wantedSeq;
        this.#wantedSeq = 0;
        await this.#sync();
        this.#coveredSeq = Math.max(this.#coveredSeq, seq);
      });
    return this.#next;
  }

  #covers(seq: number): boolean {
    return seq <= this.#coveredSeq && this.#isCurrent();
  }

  async close(): Promise<void> {
    await (this.#next ?? this.#running).catch(() => {}); // likewise
    await this.#newest?.handle.close();
    this.#newest = undefined;
  }

  async #sync(): Promise<void> {
    for (let look = 1; ; look++) {
      if (this.#failure) throw this.#failure;
      try {
        if (!this.#isCurrent()) await this.#look();
        return await this.#syncNewest();
      } catch (err) {
        if (err instanceof InsituError) throw err;
        // A block was removed between two looks, because all of its messages were.
        const vanished = (err as NodeJS.ErrnoException).code === "ENOENT" && look < LOOKS_MAX;
        if (!vanished) throw this.#unavailable(err, "Try again");
      }
    }
  }

  /** Whether the block that we hold is still the one that is written to, and no other file has changed. */
  #isCurrent(): boolean {
    if (!this.#newest || !this.#directory) return false;
    const { path, ino, index } = this.#newest;
    return (
      statOf(path)?.ino === ino &&
      statOf(join(this.#directory, blockName(index + 1))) === undefined &&
      // Blocks that lost most of their messages are written anew, under their old name.
      this.#isUnchanged(this.#directory)
    );
  }

  /** All blocks that are not as they were, and the directories that name them. */
  async #look(): Promise<void> {
    await this.#forget();
    this.#coveredSeq = 0; // a stream that was made anew begins its sequences anew
    const directory = await this.#find();
    const blocks = (await readdir(directory)).map(blockIndex).filter((index) => index !== undefined);
    blocks.sort((a, b) => a - b);
    const newest = blocks.pop();
    for (const index of blocks) await this.#syncPath("file", join(directory, blockName(index)));
    if (newest !== undefined) {
      const path = join(directory, blockName(newest));
      const handle = await open(path, "r+");
      const { ino } = await handle.stat({ bigint: true });
      this.#newest = { index: newest, path, handle, ino };
    }
    const stream = dirname(directory);
    for (const name of ["meta.inf", "meta.sum"]) await this.#syncPath("file", join(stream, name));
    // From the blocks up to the data directory: each entry has to be there for the next to be found.
    for (let path = directory; ; path = dirname(path)) {
      await this.#syncPath("directory", path);
      if (relative(this.#options.storeDirectory, path).startsWith("..")) return;
    }
  }

  async #syncNewest(): Promise<void> {
    if (this.#newest) await this.#bring("file", this.#newest.path, this.#newest.handle);
  }

  async #syncPath(kind: keyof Syncing, path: string): Promise<void> {
    if (this.#isUnchanged(path)) return;
    const handle = await open(path, kind === "file" ? "r+" : "r");
    await this.#bring(kind, path, handle).finally(() => handle.close());
  }

  async #bring(kind: keyof Syncing, path: string, handle: FileHandle): Promise<void> {
    const before = await handle.stat({ bigint: true });
    if (this.#synced.get(path) === fingerprint(before)) return;
    try {
      await this.#options.syncing[kind](handle, path);
    } catch (err) {
      // For good: the kernel drops what it could not write, and the next sync of the same file would succeed.
      this.#failure = this.#unavailable(
        err,
        "Nothing of it is acknowledged any more: see to the disk, then start the server again",
      );
      throw this.#failure;
    }
    // As it was before the sync: what came during it may not be covered. And only when a later change must show.
    const ageMs = this.#options.clock.wallMs() - Number(before.mtimeMs);
    if (ageMs > TICK_MAX_MS) this.#synced.set(path, fingerprint(before));
    else this.#synced.delete(path);
  }

  #unavailable(err: unknown, advice: string): InsituError {
    return new InsituError(
      "store.unavailable",
      `what nats-server stored of ${this.#stream} under ${this.#options.storeDirectory} cannot be brought to the disk: ${String(err)}. ${advice}`,
      { retryable: true, cause: err },
    );
  }

  /** Or not there, as a stream's description is that a power cut came before. */
  #isUnchanged(path: string): boolean {
    const now = statOf(path);
    return now === undefined || this.#synced.get(path) === fingerprint(now);
  }

  async #forget(): Promise<void> {
    const { handle } = this.#newest ?? {};
    this.#newest = undefined;
    await handle?.close();
  }

  /** @throws store.unavailable when the server keeps the stream elsewhere: nothing could be promised */
  async #find(): Promise<string> {
    if (this.#directory !== undefined && statOf(this.#directory)) return this.#directory;
    const accounts = await accountsOf(this.#options);
    const found = accounts
      .map((account) => join(account, "streams", this.#stream, "msgs"))
      .filter((directory) => statOf(directory) !== undefined);
    const [directory] = found;
    if (directory !== undefined && found.length === 1) {
      this.#directory = directory;
      return directory;
    }
    throw new InsituError(
      "store.unavailable",
      `nats-server has ${found.length === 0 ? "no files" : "files of several accounts"} of the stream ${this.#stream} under ${this.#options.storeDirectory}, so that nothing of it can be brought to the disk: start with --nats-sync interval to go without, or use nats-server 2.10 or newer`,
      { retryable: true },
    );
  }
}

/** Their directories. */
async function accountsOf({ storeDirectory, account }: Settings): Promise<string[]> {
  const root = join(storeDirectory, "jetstream");
  return (account === undefined ? await entriesOf(root) : [account]).map((name) => join(root, name));
}

function blockName(index: number): string {
  return `${index}.blk`;
}

function blockIndex(name: string): number | undefined {
  const digits = /^(\d+)\.blk$/.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

function fingerprint({ ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${ino}/${size}/${mtimeNs}/${ctimeNs}`;
}

/** Synchronous: it takes microseconds of what the kernel has in memory, and a thread's turn takes a hundred. */
function statOf(path: string): BigIntStats | undefined {
  return statSync(path, { bigint: true, throwIfNoEntry: false });
}

/** Names in a directory; none when it is not there. */
async function entriesOf(path: string): Promise<string[]> {
  try {
    return await readdir(path);
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw err;
  }
}
