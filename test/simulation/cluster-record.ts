/** The KV entry that says who the replicas are and what they own: compare-and-set on its revision. */
import type { ClusterRecord } from "../../control-plane/shards/shard-book.ts";

export class ClusterRecordStore {
  #record: ClusterRecord | undefined;
  #revision = 0;

  read(): { record: ClusterRecord; revision: number } | undefined {
    return this.#record && { record: this.#record, revision: this.#revision };
  }

  /** False when another was first. */
  write(record: ClusterRecord, revision: number | undefined): boolean {
    if ((revision ?? 0) !== this.#revision) return false;
    this.#record = record;
    this.#revision += 1;
    return true;
  }
}
