/**
 * A typed key-value bucket: the port, and its adapter over NATS JetStream.
 *
 * Values are JSON and pass a schema on the way in and out. Every change is compare-and-set on the revision, so
 * that two replicas cannot overwrite one another unseen.
 */
import { type KV, type NatsConnection, type KvEntry as NatsEntry, NatsError } from "nats";
import type { z } from "zod";
import { InsituError } from "../../shared/errors.ts";

export interface KvEntry<T> {
  key: string;
  value: T;
  /** Grows with each change of the bucket; what `update` and `delete` compare with. */
  revision: number;
}

export type KvChange<T> =
  | { kind: "put"; key: string; value: T; revision: number }
  | { kind: "delete"; key: string; revision: number }
  /** Stored bytes that the schema refuses: shown so that somebody can log them, otherwise passed over. */
  | { kind: "malformed"; key: string; revision: number; reason: string }
  /** Everything that was stored when the watch began has been delivered. Once. */
  | { kind: "current" };

/**
 * Keys are letters, digits, `-`, `_`, `=`, `/`, and `.` between parts.
 *
 * All methods throw `store.unavailable` (retryable) when the store does not answer; the change may then have
 * been made or not, so read before trying again.
 */
export interface KvStore<T> {
  get(key: string): Promise<KvEntry<T> | undefined>;
  /** Gives the revision. @throws InsituError `conflict` when the key exists. */
  create(key: string, value: T): Promise<number>;
  /** Gives the revision. @throws InsituError `conflict` when `revision` is not the latest. */
  update(key: string, value: T, revision: number): Promise<number>;
  /** @throws InsituError `conflict` when a revision is given and is not the latest. */
  delete(key: string, revision?: number): Promise<void>;
  /** Entries that the schema refuses are left out. */
  list(): Promise<KvEntry<T>[]>;
  /** What is stored, then `current`, then changes as they come, until the signal aborts. Throws when the watch is lost. */
  watch(signal: AbortSignal): AsyncIterable<KvChange<T>>;
}

export interface KvOptions<T> {
  bucket: string;
  schema: z.ZodType<T>;
  /** Part of the key that this store keeps to itself, like "seen.": several kinds of value can share a bucket. */
  prefix?: string;
  replicas?: number;
  /** Values kept of each key. */
  history?: number;
  /** Entries vanish this long after their last change. */
  ttlMs?: number;
}

/** JetStream's "wrong last sequence". */
const WRONG_LAST_SEQUENCE = 10071;

/** Opens the bucket and creates it when it does not exist. The connection stays the caller's. */
export async function openKv<T>(connection: NatsConnection, options: KvOptions<T>): Promise<KvStore<T>> {
  const { bucket, schema, prefix = "" } = options;
  const kv = await attempt(bucket, "open", () =>
    connection.jetstream().views.kv(bucket, {
      history: options.history ?? 1,
      replicas: options.replicas ?? 1,
      ...(options.ttlMs === undefined ? {} : { ttl: options.ttlMs }),
    }),
  );
  return new NatsKv(kv, bucket, prefix, schema);
}

/** Rounds of read, decide and write before we say that the key is too busy. Each lost round means that another writer won. */
const CHANGE_ROUNDS = 32;

/**
 * Reads, decides, and writes what was decided with compare-and-set; begins again when another writer was first.
 * `decide` gives the next value, or undefined to leave the entry as it is; it may be called several times, and
 * what it throws goes to the caller.
 */
export async function changeKv<T>(
  store: KvStore<T>,
  key: string,
  decide: (current: T | undefined) => T | undefined,
): Promise<{ value: T | undefined; revision: number }> {
  for (let round = 1; ; round++) {
    const current = await store.get(key);
    const value = decide(current?.value);
    if (value === undefined) return { value: current?.value, revision: current?.revision ?? 0 };
    try {
      const revision =
        current === undefined
          ? await store.create(key, value)
          : await store.update(key, value, current.revision);
      return { value, revision };
    } catch (err) {
      if (!(err instanceof InsituError) || err.code !== "conflict" || round >= CHANGE_ROUNDS) throw err;
    }
  }
}

class NatsKv<T> implements KvStore<T> {
  readonly #kv: KV;
  readonly #bucket: string;
  readonly #prefix: string;
  readonly #schema: z.ZodType<T>;

  constructor(kv: KV, bucket: string, prefix: string, schema: z.ZodType<T>) {
    this.#kv = kv;
    this.#bucket = bucket;
    this.#prefix = prefix;
    this.#schema = schema;
  }

  async get(key: string): Promise<KvEntry<T> | undefined> {
    const entry = await attempt(this.#bucket, key, () => this.#kv.get(this.#prefix + key));
    if (entry === null || entry.operation !== "PUT") return undefined;
    const parsed = this.#decode(entry);
    if (parsed.kind === "malformed") {
      throw new InsituError(
        "internal",
        `the entry ${key} of the bucket ${this.#bucket} is not what was expected (${parsed.reason}); repair or delete it with the nats command line`,
      );
    }
    return { key, value: parsed.value, revision: entry.revision };
  }

  async create(key: string, value: T): Promise<number> {
    return await attempt(this.#bucket, key, () => this.#kv.create(this.#prefix + key, this.#encode(value)));
  }

  async update(key: string, value: T, revision: number): Promise<number> {
    return await attempt(this.#bucket, key, () =>
      this.#kv.update(this.#prefix + key, this.#encode(value), revision),
    );
  }

  async delete(key: string, revision?: number): Promise<void> {
    await attempt(this.#bucket, key, () =>
      this.#kv.delete(this.#prefix + key, revision === undefined ? {} : { previousSeq: revision }),
    );
  }

  async list(): Promise<KvEntry<T>[]> {
    const found = new Map<string, KvEntry<T>>();
    const enough = new AbortController();
    for await (const change of this.watch(enough.signal)) {
      if (change.kind === "current") break;
      if (change.kind === "put") {
        found.set(change.key, { key: change.key, value: change.value, revision: change.revision });
      } else found.delete(change.key);
    }
    return [...found.values()];
  }

  async *watch(signal: AbortSignal): AsyncGenerator<KvChange<T>> {
    // The client runs `initializedFn` in order with the entries, between two of them or while we wait for one.
    // It cannot yield, so the changes go through a queue of our own.
    const queue: KvChange<T>[] = [];
    let wake = () => {};
    let ended = false;
    let failure: unknown;
    const push = (change: KvChange<T>) => {
      queue.push(change);
      wake();
    };
    const watcher = await attempt(this.#bucket, "watch", () =>
      this.#kv.watch({ key: `${this.#prefix}>`, initializedFn: () => push({ kind: "current" }) }),
    );
    const stop = () => {
      watcher.stop();
      ended = true;
      wake();
    };
    signal.addEventListener("abort", stop, { once: true });
    const pump = (async () => {
      try {
        for await (const entry of watcher) push(this.#change(entry));
      } catch (err) {
        failure = err;
      } finally {
        ended = true;
        wake();
      }
    })();
    try {
      while (!signal.aborted) {
        const change = queue.shift();
        if (change !== undefined) yield change;
        else if (ended) break;
        else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
      if (signal.aborted) return;
      throw unavailable(this.#bucket, "watch", failure ?? new Error("the subscription ended"));
    } finally {
      signal.removeEventListener("abort", stop);
      stop();
      await pump;
    }
  }

  #change(entry: NatsEntry): KvChange<T> {
    const key = entry.key.slice(this.#prefix.length);
    if (entry.operation !== "PUT") return { kind: "delete", key, revision: entry.revision };
    const parsed = this.#decode(entry);
    return parsed.kind === "malformed"
      ? { kind: "malformed", key, revision: entry.revision, reason: parsed.reason }
      : { kind: "put", key, value: parsed.value, revision: entry.revision };
  }

  #decode(entry: NatsEntry): { kind: "ok"; value: T } | { kind: "malformed"; reason: string } {
    let json: unknown;
    try {
      json = entry.json();
    } catch (err) {
      return { kind: "malformed", reason: err instanceof Error ? err.message : String(err) };
    }
    const parsed = this.#schema.safeParse(json);
    return parsed.success
      ? { kind: "ok", value: parsed.data }
      : {
          kind: "malformed",
          reason: parsed.error.issues.map((i) => `${i.path.join(".")}: ${i.message}`).join("; "),
        };
  }

  #encode(value: T): string {
    return JSON.stringify(value);
  }
}

async function attempt<R>(bucket: string, what: string, call: () => Promise<R>): Promise<R> {
  try {
    return await call();
  } catch (err) {
    if (err instanceof NatsError && err.api_error?.err_code === WRONG_LAST_SEQUENCE) {
      throw new InsituError(
        "conflict",
        `somebody else changed ${what} in the bucket ${bucket} first: read it again`,
        {
          retryable: true,
          cause: err,
        },
      );
    }
    if (err instanceof NatsError) throw unavailable(bucket, what, err);
    throw err;
  }
}

function unavailable(bucket: string, what: string, cause: unknown): InsituError {
  const message = cause instanceof Error ? cause.message : String(cause);
  return new InsituError(
    "store.unavailable",
    `NATS did not answer for ${what} in the bucket ${bucket} (${message}); check that nats-server runs and JetStream is enabled`,
    { retryable: true, cause },
  );
}
