/** What the runs service needs of the world. */
import type { RunEvent } from "../../shared/engine/events.ts";
import type { Plan } from "../../shared/engine/plan.ts";
import type { DisconnectSpec, StepSpec } from "../../shared/model/spec.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import type { LeaseKey, Offer } from "../../shared/wire/attempt.ts";
import type { OfferOwners } from "../../shared/wire/offer-owners.ts";
import type { EnvironmentVerdict } from "../placement/placement.ts";

export interface StoredBatch {
  seq: number;
  runId: string;
  events: RunEvent[];
}

export type AppendResult = { kind: "appended"; seq: number } | { kind: "conflict" };

/** The stream of run events. */
export interface RunStore {
  /**
   * Appends one batch if the last sequence of the run's subject is `expectedSeq` (0: none yet). A repeat with
   * the same `messageId` is answered like the first. Throws `store.unavailable` (retryable) when the answer
   * stays away: the batch may or may not be there, so ask again with the same id.
   */
  append(runId: string, events: RunEvent[], expectedSeq: number, messageId: string): Promise<AppendResult>;
  /** Batches of one run after `afterSeq`, in order. */
  read(runId: string, afterSeq: number): Promise<StoredBatch[]>;
}

export interface OfferQueue {
  /** Signs and publishes; resolves when the queue holds it. The same grant published twice is stored once. */
  publish(offer: Offer, owners?: OfferOwners): Promise<void>;
}

/** Plans of pipeline versions; they never change, so they are cached. */
export interface PlanSource {
  load(version: string): Promise<Plan>;
}

/** The present facts for placing a step. Synchronous: kept up to date from the resource stream. */
export interface PlacementDesk {
  readonly policyVersion: string;
  explain(pipeline: string, step: StepSpec): EnvironmentVerdict[];
  /** Picks one of the allowed environments; null when there is none. */
  choose(verdicts: readonly EnvironmentVerdict[]): string | null;
  /** The environment's default for attempts whose agent is cut off. */
  disconnectOf?(environment: string): DisconnectSpec | undefined;
  /** Who has signed a version of a pipeline. Missing or empty: nobody. */
  signaturesOf?(version: string): readonly Envelope[];
  poolCapacity(pool: string): number | undefined;
  classificationOf(dataset: string): Offer["datasets"][number]["classification"];
  /** Who answers for it; undefined when it has been deleted meanwhile. */
  ownerOf?(dataset: string): string | undefined;
}

export interface AgentLine {
  /** False when the agent is not connected here. */
  cancel(agent: string, lease: LeaseKey, reason: string): boolean;
}

/** Of a request that may be repeated: what it makes takes its id from here, the same each time and on every replica. */
export interface RepeatSeed {
  /** 64 hexadecimal digits. */
  key: string;
  /** When it came for the first time: milliseconds since the Unix epoch. */
  firstMs: number;
}
