/** What the ledger needs of the world. */
import type { RunEvent } from "../../shared/engine/events.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import type { Checkpoint } from "../../shared/provenance/checkpoint.ts";
import type { LedgerEntry } from "../../shared/provenance/ledger-entry.ts";
import type { NodeReader } from "../../shared/provenance/merkle.ts";
import type { ResourceChange } from "../resources/resource-journal.ts";

/** The streams that leaves are made from, by their names. */
export const LEDGER_SOURCES = ["RUNS", "RESOURCES"] as const;
export type LedgerSource = (typeof LEDGER_SOURCES)[number];

/** A message of a source. `read` gives undefined for what cannot be made sense of. */
export type SourceMessage = { seq: number /** `sha256:` of its bytes. */; digest(): string } & (
  | { source: "RUNS"; runId: string; read(): readonly RunEvent[] | undefined }
  | { source: "RESOURCES"; read(): Apply | undefined }
);

export interface Apply {
  atMs: number;
  by: string;
  changes: readonly ResourceChange[];
}

/** What a run is told by beside its events. */
export interface RunFacts {
  pipeline: PipelineSpec;
  version: string;
}

export interface StoredLeaf {
  index: number;
  bytes: Uint8Array;
  /** Undefined for what is no leaf of this release. */
  entry: LedgerEntry | undefined;
}

/** The stream of leaves: leaf `i` of the tree is the message `i + 1`. */
export interface LedgerStore {
  /** Leaves so far. */
  size(): Promise<number>;
  /** The newest leaf that was made from the source; undefined when there is none. */
  lastOf(source: LedgerSource): Promise<LedgerEntry | undefined>;
  /**
   * Appends the leaves if the stream has exactly `size` of them. A repeat of the same leaves at the same places is
   * answered like the first. Some of them may be there after a failure or a conflict.
   *
   * @throws store.unavailable (retryable) when the answer stays away
   */
  append(entries: readonly LedgerEntry[], size: number): Promise<"appended" | "conflict">;
  /** Leaves that were made from the source, after an index (-1: all), to the present end. */
  leavesOf(source: LedgerSource, afterIndex: number): AsyncIterable<StoredLeaf>;
  /** Resolves when so many leaves are on the disk. */
  durable(size: number): Promise<void>;
}

export interface LedgerSources {
  /** Messages after a sequence, then those to come, in bunches that are on the disk, until the signal aborts. */
  follow(
    source: LedgerSource,
    afterSeq: number,
    signal: AbortSignal,
  ): AsyncIterable<readonly SourceMessage[]>;
  /** All messages there are at the call. */
  read(source: LedgerSource, signal: AbortSignal): AsyncIterable<SourceMessage>;
  /** The last sequence of the stream. */
  lastSeq(source: LedgerSource): Promise<number>;
  /** Pipeline and version of a run; undefined when nothing that can be read says them. @throws store.unavailable */
  factsOf(runId: string): Promise<RunFacts | undefined>;
}

/** The Merkle tree, as far as this replica has read the ledger. */
export interface LedgerTree {
  readonly size: number;
  root(size: number): Uint8Array;
  readonly read: NodeReader;
  waitFor(size: number, signal?: AbortSignal): Promise<void>;
}

/** Where a leaf speaks of an attempt; `stepId` is empty, and the numbers 0, where it speaks of a whole run. */
export interface LeafPlace {
  index: number;
  stepId: string;
  attempt: number;
  epoch: number;
  /** `receipt`, or the kind of the decision. */
  kind: string;
}

/** The leaves themselves, and where they are. */
export interface LedgerReader extends LedgerTree {
  /** Leaves of the run, or of one of its steps, in their order. */
  placesOf(runId: string, stepId?: string): LeafPlace[];
  /** Leaves from an index on, as they are stored. @throws store.unavailable */
  entries(first: number, count: number): Promise<Uint8Array[]>;
}

/** The one record of the newest checkpoint, with compare-and-set. */
export interface CheckpointStore {
  read(): Promise<{ note: string; revision: number } | undefined>;
  /** @throws conflict when another replica was first */
  write(note: string, revision: number | undefined): Promise<void>;
}

/** The key of the ledger. */
export interface LogKey {
  /** `origin`: the first line of each checkpoint, and the name of the key. */
  readonly origin: string;
  /** As verifiers are configured with. */
  readonly verifierKey: string;
  /** The whole signed note. */
  sign(checkpoint: Omit<Checkpoint, "origin">): string;
}
