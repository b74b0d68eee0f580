/** The record of replicas and shards, in the bucket `cluster`. */
import type { ClusterStore } from "../shards/ports.ts";
import type { ClusterRecord } from "../shards/shard-book.ts";
import type { KvStore } from "./kv.ts";

const KEY = "shards";

export function kvClusterStore(kv: KvStore<ClusterRecord>): ClusterStore {
  return {
    async read() {
      const entry = await kv.get(KEY);
      return entry && { record: entry.value, revision: entry.revision };
    },
    async write(record, revision) {
      if (revision === undefined) await kv.create(KEY, record);
      else await kv.update(KEY, record, revision);
    },
  };
}
