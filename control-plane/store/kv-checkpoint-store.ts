/** The newest checkpoint of the ledger, in its bucket. */
import type { CheckpointStore } from "../evidence/ports.ts";
import type { KvStore } from "./kv.ts";

const KEY = "newest";

export function kvCheckpointStore(kv: KvStore<{ note: string }>): CheckpointStore {
  return {
    async read() {
      const entry = await kv.get(KEY);
      return entry && { note: entry.value.note, revision: entry.revision };
    },
    async write(note, revision) {
      if (revision === undefined) await kv.create(KEY, { note });
      else await kv.update(KEY, { note }, revision);
    },
  };
}
