/** The bucket `agents` as NATS keeps it, and as one replica reaches it. */
import { type AgentRecord, agentKey } from "../../control-plane/fleet/agent-record.ts";
import type { KvChange, KvEntry, KvStore } from "../../control-plane/store/kv.ts";
import { InsituError } from "../../shared/errors.ts";

type Entry = KvEntry<AgentRecord>;

export class AgentRecords {
  readonly tails = new Set<(entry: Entry) => void>();
  readonly #entries = new Map<string, Entry>();
  #revision = 0;

  /** What enrolment does. */
  enrol(record: AgentRecord): void {
    this.#store(agentKey(`${record.environment}/${record.name}`), record);
  }

  get(key: string): Entry | undefined {
    return this.#entries.get(key);
  }

  /** Ids of the keys that sign the agent's reports. */
  keysOf(agent: string): string[] {
    return (this.get(agentKey(agent))?.value.reportKeys ?? []).map(({ id }) => id);
  }

  list(): Entry[] {
    return [...this.#entries.values()];
  }

  /** The new revision; undefined when `revision` is not the latest one of the key (0: there is none). */
  write(key: string, value: AgentRecord, revision: number): number | undefined {
    if ((this.#entries.get(key)?.revision ?? 0) !== revision) return undefined;
    return this.#store(key, value);
  }

  #store(key: string, value: AgentRecord): number {
    const entry = { key, value, revision: ++this.#revision };
    this.#entries.set(key, entry);
    for (const tail of this.tails) tail(entry);
    return entry.revision;
  }
}

export interface RecordsLink {
  bucket: AgentRecords;
  /** A request, and its answer. */
  ask<T>(what: string, work: () => T): Promise<T>;
  /** In order, from the bucket to the replica, while that lives. */
  stream(deliver: () => void): void;
  isAlive(): boolean;
}

export function recordsOver({ bucket, ask, stream, isAlive }: RecordsLink): KvStore<AgentRecord> {
  const write = async (key: string, value: AgentRecord, revision: number): Promise<number> => {
    const written = await ask("write an agent's record", () => bucket.write(key, value, revision));
    if (written === undefined) throw new InsituError("conflict", "another was first", { retryable: true });
    return written;
  };
  return {
    get: (key) => ask("read an agent's record", () => bucket.get(key)),
    create: (key, value) => write(key, value, 0),
    update: write,
    delete: () => Promise.reject(new InsituError("internal", "no agent's record is deleted here")),
    list: () => ask("list the agents' records", () => bucket.list()),
    async *watch(signal): AsyncIterable<KvChange<AgentRecord>> {
      const queue: KvChange<AgentRecord>[] = [];
      let wake = (): void => undefined;
      const push = (change: KvChange<AgentRecord>): void =>
        stream(() => {
          queue.push(change);
          wake();
        });
      const tail = (entry: Entry): void => {
        if (isAlive()) push({ kind: "put", ...entry });
        else bucket.tails.delete(tail);
      };
      for (const entry of bucket.list()) push({ kind: "put", ...entry });
      push({ kind: "current" });
      bucket.tails.add(tail);
      while (!signal.aborted) {
        const change = queue.shift();
        if (change) yield change;
        else
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
      }
    },
  };
}
