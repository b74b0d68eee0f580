/**
 * The Merkle tree of the ledger as this replica has read it: derived from the stream `LEDGER`, kept in LMDB, rebuilt
 * when the folder is deleted or is of another ledger. Beside it, where the leaves of each attempt are.
 */
import { rmSync } from "node:fs";
import { type Database, open, type RootDatabase } from "lmdb";
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import { equalBytes } from "../../shared/provenance/encoding.ts";
import { type LedgerEntry, parseEntry } from "../../shared/provenance/ledger-entry.ts";
import { GrowingTree, leafHash, type NodeReader, rootHash } from "../../shared/provenance/merkle.ts";
import { readReceipt } from "../../shared/provenance/receipt.ts";
import type { Clock } from "../../shared/system.ts";
import { STREAMS } from "../../shared/wire/subjects.ts";
import type { LeafPlace, LedgerReader } from "../evidence/ports.ts";
import { flushed, readable } from "./stream-disk.ts";
import { lastSeqOf, readToEnd, type StreamMessage, StreamTail } from "./stream-reader.ts";
import { whenReady } from "./when-ready.ts";

/** Another number makes a folder written by another release be thrown away and rebuilt. */
const FORMAT = 1;
/** In one transaction. */
const BATCH_MAX = 2_000;
/** Between two transactions, each of which waits for the disk and holds everything up. */
const PAUSE_MS = 50;
const RETRY_MS = 1_000;
const WAITING_MAX = 10_000;

type PlaceKey = [runId: string, stepId: string, attempt: number, epoch: number, index: number];

export interface StoredLedgerTreeOptions {
  directory: string;
  connection: NatsConnection;
  clock: Clock;
  log: Logger;
  /** Leaves that wait to be written. */
  waitingMax?: number;
}

export class StoredLedgerTree implements LedgerReader {
  readonly #options: StoredLedgerTreeOptions;
  readonly #root: RootDatabase;
  readonly #nodes: Database<Buffer, [number, number]>;
  readonly #places: Database<string, PlaceKey>;
  readonly #meta: Database<number, string>;
  readonly #stop = new AbortController();
  #tree = new GrowingTree();
  #waiting: StreamMessage[] = [];
  #draining: Promise<void> | undefined;
  #waiters: { size: number; resolve(): void }[] = [];
  #tail: StreamTail | undefined;
  #size = 0;
  /** A leaf came that had no room to wait. */
  #missed = false;
  #failing = false;

  constructor(options: StoredLedgerTreeOptions) {
    this.#options = options;
    this.#root = openRoot(options.directory);
    this.#nodes = this.#root.openDB<Buffer, [number, number]>({ name: "nodes", encoding: "binary" });
    this.#places = this.#root.openDB<string, PlaceKey>({ name: "places" });
    this.#meta = this.#root.openDB<number, string>({ name: "meta" });
  }

  /** Goes on behind what is on disk. Does not wait until it has read the rest. */
  async start(): Promise<void> {
    const { connection, clock, log } = this.#options;
    const known = this.#meta.get("size") ?? 0;
    const isCurrent = (this.#meta.get("format") ?? FORMAT) === FORMAT;
    const isOurs = isCurrent && (await whenReady({ connection, clock }, () => this.#isOfStream(known)));
    if (!isOurs) {
      log.warn({ known }, "the tree of the ledger is not of this stream; building it anew");
      this.#root.transactionSync(() => {
        for (const database of [this.#nodes, this.#places, this.#meta]) database.clearSync();
      });
    }
    // Only where it is missing: a replica whose disk is full starts all the same.
    if (this.#meta.get("format") !== FORMAT) this.#meta.putSync("format", FORMAT);
    this.#size = isOurs ? known : 0;
    this.#tree = new GrowingTree(this.#size, this.read);
    this.#follow();
  }

  #follow(): void {
    const { connection, clock, log, waitingMax = WAITING_MAX } = this.#options;
    const onMessage = (message: StreamMessage): void => {
      if (this.#waiting.length < waitingMax) this.#waiting.push(message);
      else this.#missed = true;
      this.#draining ??= this.#drain().finally(() => {
        this.#draining = undefined;
      });
    };
    const fromSeq = this.#size + 1;
    this.#missed = false;
    this.#tail = new StreamTail({ connection, stream: STREAMS.ledger, fromSeq, clock, log, onMessage });
    this.#tail.start();
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    await this.#tail?.close();
    await this.#draining;
    await this.#root.close();
  }

  get size(): number {
    return this.#size;
  }

  root(size: number): Uint8Array {
    return rootHash(this.read, size);
  }

  readonly read: NodeReader = (level, index) => {
    const hash = this.#nodes.get([level, index]);
    if (!hash) throw new RangeError(`no complete subtree ${level}/${index} in ${this.#size} leaves`);
    return hash;
  };

  waitFor(size: number, signal?: AbortSignal): Promise<void> {
    if (this.#size >= size) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const abort = (): void => reject(signal?.reason as Error);
      signal?.addEventListener("abort", abort, { once: true });
      const done = (): void => {
        signal?.removeEventListener("abort", abort);
        resolve();
      };
      this.#waiters.push({ size, resolve: done });
    });
  }

  placesOf(runId: string, stepId?: string): LeafPlace[] {
    const [from, to] =
      stepId === undefined
        ? [[runId], [runId, "~"]]
        : [
            [runId, stepId],
            [runId, stepId, "~"],
          ];
    const found = [...this.#places.getRange({ start: from as PlaceKey, end: to as PlaceKey })];
    return found
      .map(({ key: [, step, attempt, epoch, index], value }) => ({
        index,
        stepId: step,
        attempt,
        epoch,
        kind: value,
      }))
      .sort((a, b) => a.index - b.index);
  }

  async entries(first: number, count: number): Promise<Uint8Array[]> {
    const { connection } = this.#options;
    const entries: Uint8Array[] = [];
    if (count <= 0) return entries;
    for await (const message of readToEnd({ connection, stream: STREAMS.ledger, fromSeq: first + 1 })) {
      entries.push(message.data);
      if (entries.length === count) return entries;
    }
    throw new InsituError(
      "store.unavailable",
      `the ledger does not show ${count} leaves from ${first} on now`,
      {
        retryable: true,
      },
    );
  }

  async #isOfStream(size: number): Promise<boolean> {
    if (size === 0) return true;
    await readable(this.#options.connection);
    if ((await lastSeqOf(this.#options.connection, STREAMS.ledger)) < size) return false;
    const [last] = await this.entries(size - 1, 1);
    const kept = this.#nodes.get([0, size - 1]);
    return last !== undefined && kept !== undefined && equalBytes(leafHash(last), kept);
  }

  async #drain(): Promise<void> {
    const { clock } = this.#options;
    const { signal } = this.#stop;
    while (this.#waiting.length > 0 && !signal.aborted) {
      const some = this.#waiting.splice(0, BATCH_MAX);
      const isStored = await this.#tryStore(some);
      if (!isStored) this.#waiting.unshift(...some);
      const pauseMs = isStored ? (some.length < BATCH_MAX ? PAUSE_MS : 0) : RETRY_MS;
      await clock.sleep(pauseMs, signal).catch(() => undefined); // closed: the loop sees it
      if (this.#waiting.length > 0 || !this.#missed || signal.aborted) continue;
      // More came than may wait: the stream is read again from there.
      await this.#tail?.close();
      if (!signal.aborted) this.#follow();
    }
  }

  /** False while it cannot be written, on a disk that is full for example: what waits is in the stream, too. */
  async #tryStore(messages: readonly StreamMessage[]): Promise<boolean> {
    const { connection, log } = this.#options;
    try {
      // What a power cut may take is not in the tree: other leaves could come in their place.
      await flushed(connection, STREAMS.ledger, messages.at(-1)!.seq);
      this.#store(messages);
      if (this.#failing) log.info({ size: this.#size }, "the tree of the ledger is written again");
      this.#failing = false;
      return true;
    } catch (err) {
      if (!this.#failing) log.error({ err, size: this.#size }, "the tree of the ledger cannot be written");
      this.#failing = true;
      this.#tree = new GrowingTree(this.#size, this.read);
      return false;
    }
  }

  #store(messages: readonly StreamMessage[]): void {
    this.#root.transactionSync(() => {
      for (const message of messages) this.#add(message);
      this.#meta.putSync("size", this.#tree.size);
    });
    this.#size = this.#tree.size;
    for (const waiter of this.#waiters) if (waiter.size <= this.#size) waiter.resolve();
    this.#waiters = this.#waiters.filter(({ size }) => size > this.#size);
  }

  /** Inside a transaction. */
  #add({ seq, data }: StreamMessage): void {
    const index = this.#tree.size;
    if (seq !== index + 1)
      throw new InsituError("internal", `leaf ${index} of the ledger is not in its stream`);
    for (const node of this.#tree.append(leafHash(data)))
      this.#nodes.putSync([node.level, node.index], Buffer.from(node.hash));
    const entry = parseEntry(data);
    const place = entry && placeOf(entry);
    if (place) this.#places.putSync([...place.about, index], place.kind);
  }
}

type About = [runId: string, stepId: string, attempt: number, epoch: number];

function placeOf(entry: LedgerEntry): { about: About; kind: string } | undefined {
  if (entry.kind === "opaque") return undefined;
  if (entry.kind === "receipt") {
    // By what it says of itself: whether that is so, verifying it tells.
    const read = readReceipt(Buffer.from(entry.receipt.envelope.payload, "base64"));
    return read.kind === "receipt" ? { about: aboutOf(read.receipt.attempt), kind: "receipt" } : undefined;
  }
  const { decision } = entry;
  if ("attempt" in decision) return { about: aboutOf(decision.attempt), kind: decision.kind };
  return "runId" in decision ? { about: [decision.runId, "", 0, 0], kind: decision.kind } : undefined;
}

function aboutOf(lease: { runId: string; stepId: string; attempt: number; epoch: number }): About {
  return [lease.runId, lease.stepId, lease.attempt, lease.epoch];
}

function openRoot(directory: string): RootDatabase {
  const reopen = (): RootDatabase => open({ path: directory, maxDbs: 8 });
  try {
    return reopen();
  } catch {
    // Nothing here cannot be derived again.
    rmSync(directory, { recursive: true, force: true });
    return reopen();
  }
}
