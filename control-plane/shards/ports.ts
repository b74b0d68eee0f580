/** What sharing the work between replicas needs of the world. */
import type { ReportPayload } from "../../shared/wire/attempt.ts";
import type { ReportSignature } from "../../shared/wire/report-signature.ts";
import type { ClusterRecord } from "./shard-book.ts";

/** The one record, with compare-and-set. Throws `conflict` when another replica was first. */
export interface ClusterStore {
  read(): Promise<{ record: ClusterRecord; revision: number } | undefined>;
  write(record: ClusterRecord, revision: number | undefined): Promise<void>;
}

/** Who decides for a shard, as far as this replica knows. */
export interface ShardView {
  readonly replicaId: string;
  ownerOf(shard: number): string | undefined;
  /** Living replicas, this one included. */
  readonly size: number;
}

/** Messages between replicas. Not stored: a lost one is a delay, never a loss. */
export interface PeerBus {
  /** To every other replica. */
  broadcast(message: unknown): void;
  send(replica: string, message: unknown): void;
  /** Throws `unavailable` (retryable) without an answer. */
  request(replica: string, message: unknown, timeoutMs: number): Promise<unknown>;
}

export interface InboxItem {
  agent: string;
  report: ReportPayload;
  /** By the agent. Verified when it was put there, and to be verified again: the store may have changed it. */
  signed?: ReportSignature | undefined;
}

/** Reports that came to a replica which does not own the run's shard: durable before the agent is told. */
export interface Inbox {
  put(shard: number, item: InboxItem): Promise<void>;
}
