/**
 * A typed key-value bucket: the port, and its adapter over NATS JetStream.
 *
 * Values are JSON and pass a schema on the way in and out. Every change is compare-and-set on the revision, so
 * that two replicas cannot overwrite one another unseen. A change whose answer stays away is asked for again under
 * the same message id, and reads go to the stream's leader: other servers of a cluster may lag behind.
 */
import { type NatsConnection, NatsError } from "nats";
import type { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import type { PoisonSink } from "../poison/ports.ts";
import { lastMessageOf, passes } from "./jetstream.ts";
import { publish } from "./publish.ts";
import { flushed, noteMade, readable } from "./stream-disk.ts";
import { readToEnd, type StreamMessage, StreamTail, type TailLog } from "./stream-reader.ts";
import { whenReady } from "./when-ready.ts";

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
  /** Entries that the schema refuses are left out; one that is changed meanwhile is not. */
  list(): Promise<KvEntry<T>[]>;
  /** What is stored, then `current`, then changes as they come, until the signal aborts. */
  watch(signal: AbortSignal): AsyncIterable<KvChange<T>>;
}

export interface KvOptions<T> {
  bucket: string;
  clock: Clock;
  /** Told when a watch has to begin anew. */
  log?: TailLog;
  schema: z.ZodType<T>;
  /** Part of the key that this store keeps to itself, like "seen.": several kinds of value can share a bucket. */
  prefix?: string;
  replicas?: number;
  /** Gets a copy of values that the schema refuses. */
  poison?: PoisonSink;
  /** Values kept of each key. */
  history?: number;
  /** Entries vanish this long after their last change. */
  ttlMs?: number;
}

/** How long a change is tried while the store does not answer: a cluster elects a leader within that time. */
const PATIENCE_MS = 10_000;
const KEY = /^[-/=\w]+(\.[-/=\w]+)*$/;
/** As the `nats` command line and other clients write it. */
const OPERATION = "KV-Operation";

/** Opens the bucket and creates it when it does not exist. The connection stays the caller's. */
export async function openKv<T>(connection: NatsConnection, options: KvOptions<T>): Promise<KvStore<T>> {
  const { bucket, prefix = "", clock } = options;
  await attempt(bucket, "open", () =>
    whenReady({ connection, clock }, () =>
      connection.jetstream().views.kv(bucket, {
        history: options.history ?? 1,
        replicas: options.replicas ?? 1,
        ...(options.ttlMs === undefined ? {} : { ttl: options.ttlMs }),
      }),
    ),
  );
  await noteMade(connection, [`KV_${bucket}`]);
  return new NatsKv({ ...options, prefix, connection, patienceMs: PATIENCE_MS });
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

interface NatsKvOptions<T> extends KvOptions<T> {
  prefix: string;
  connection: NatsConnection;
  patienceMs: number;
}

class NatsKv<T> implements KvStore<T> {
  readonly #options: NatsKvOptions<T>;
  readonly #bucket: string;
  readonly #prefix: string;
  readonly #schema: z.ZodType<T>;

  constructor(options: NatsKvOptions<T>) {
    this.#options = options;
    this.#bucket = options.bucket;
    this.#prefix = options.prefix;
    this.#schema = options.schema;
  }

  async get(key: string): Promise<KvEntry<T> | undefined> {
    // Asked for by whoever may ask: what nothing can be stored under is not there.
    if (!KEY.test(this.#prefix + key)) return undefined;
    const stored = await this.#stored(key);
    if (stored === undefined || stored.deleted) return undefined;
    const parsed = this.#decode(() => JSON.parse(stored.text));
    if (parsed.kind === "malformed") {
      throw new InsituError(
        "internal",
        `the entry ${key} of the bucket ${this.#bucket} is not what was expected (${parsed.reason}); repair or delete it with the nats command line`,
      );
    }
    return { key, value: parsed.value, revision: stored.revision };
  }

  async create(key: string, value: T): Promise<number> {
    try {
      return await this.update(key, value, 0);
    } catch (err) {
      if (!(err instanceof InsituError) || err.code !== "conflict") throw err;
      // A deleted key leaves a mark, and may be created again on top of it.
      const stored = await this.#stored(key);
      if (!stored?.deleted) throw err;
      return await this.update(key, value, stored.revision);
    }
  }

  async update(key: string, value: T, revision: number): Promise<number> {
    return await this.#write(key, { payload: JSON.stringify(value), expected: { ofSubject: revision } });
  }

  async delete(key: string, revision?: number): Promise<void> {
    const expected = revision === undefined ? {} : { expected: { ofSubject: revision } };
    await this.#write(key, { payload: "", headers: { [OPERATION]: "DEL" }, ...expected });
  }

  /** The last change of the key. */
  async #stored(key: string): Promise<{ revision: number; deleted: boolean; text: string } | undefined> {
    const subject = this.#subject(key);
    const { connection } = this.#options;
    const stream = `KV_${this.#bucket}`;
    const found = await attempt(this.#bucket, key, async () => {
      await readable(connection);
      const last = await lastMessageOf(connection, stream, subject);
      await flushed(connection, stream, last?.seq ?? 0); // another request may still wait for it, and this one acts on it
      return last;
    });
    return found && { revision: found.seq, deleted: found.header.has(OPERATION), text: found.string() };
  }

  async #write(
    key: string,
    change: { payload: string; headers?: Record<string, string>; expected?: { ofSubject: number } },
  ): Promise<number> {
    const subject = this.#subject(key);
    const written = await attempt(this.#bucket, key, () =>
      publish(this.#options, {
        what: key,
        stream: `KV_${this.#bucket}`,
        subject,
        messageId: newSecret(12),
        ...change,
      }),
    );
    if (written.kind === "stored") return written.seq;
    throw new InsituError(
      "conflict",
      `somebody else changed ${key} in the bucket ${this.#bucket} first: read it again`,
      { retryable: true },
    );
  }

  #subject(key: string): string {
    const whole = this.#prefix + key;
    if (!KEY.test(whole))
      throw new InsituError(
        "request.invalid",
        `${JSON.stringify(key)} cannot be a key of the bucket ${this.#bucket}`,
      );
    return `$KV.${this.#bucket}.${whole}`;
  }

  async list(): Promise<KvEntry<T>[]> {
    const found = new Map<string, KvChange<T> & { key: string }>();
    const { connection } = this.#options;
    const [stream, filter] = [`KV_${this.#bucket}`, this.#all()];
    let readSeq = 0;
    await readable(connection);
    for await (const message of readToEnd({ connection, stream, filter, fromSeq: 1 })) {
      readSeq = message.seq;
      const change = this.#change(message);
      if (change.kind !== "current") found.set(change.key, change);
    }
    const last = await attempt(this.#bucket, "list", () => lastMessageOf(connection, stream, filter));
    // A key that was changed meanwhile has moved behind the end, and was at neither place when we were there.
    if ((last?.seq ?? 0) > readSeq) {
      for (const key of (await this.#keys()).filter((key) => !found.has(key))) {
        const stored = await this.#stored(key);
        const parsed = stored && !stored.deleted ? this.#decode(() => JSON.parse(stored.text)) : undefined;
        if (parsed?.kind === "ok")
          found.set(key, { kind: "put", key, value: parsed.value, revision: stored!.revision });
      }
    }
    await flushed(connection, stream, Math.max(readSeq, last?.seq ?? 0));
    return [...found.values()].flatMap((change) =>
      change.kind === "put" ? [{ key: change.key, value: change.value, revision: change.revision }] : [],
    );
  }

  /** Of what the leader has, deleted ones too. */
  async #keys(): Promise<string[]> {
    const { connection } = this.#options;
    const filter = this.#all();
    const info = await attempt(this.#bucket, "keys", async () => {
      const manager = await connection.jetstreamManager({ checkAPI: false });
      return await manager.streams.info(`KV_${this.#bucket}`, { subjects_filter: filter });
    });
    return Object.keys(info.state.subjects ?? {}).map((subject) => subject.slice(filter.length - 1));
  }

  async *watch(signal: AbortSignal): AsyncGenerator<KvChange<T>> {
    const { connection, clock, log = { warn() {} } } = this.#options;
    const [stream, filter] = [`KV_${this.#bucket}`, this.#all()];
    const queue: KvChange<T>[] = [];
    let wake = () => {};
    const push = (change: KvChange<T>) => {
      queue.push(change);
      wake();
    };
    const endSeq = (await lastMessageOf(connection, stream, filter))?.seq ?? 0;
    let current = endSeq === 0;
    if (current) push({ kind: "current" });
    const tail = new StreamTail({
      connection,
      stream,
      filter,
      fromSeq: 1,
      clock,
      log,
      onMessage: (message) => {
        // What was the end may have been replaced by a newer one before it was delivered.
        if (!current && message.seq > endSeq) push({ kind: "current" });
        current ||= message.seq > endSeq;
        push(this.#change(message));
        if (!current && message.seq === endSeq) push({ kind: "current" });
        current ||= message.seq === endSeq;
      },
    });
    const stop = () => wake();
    signal.addEventListener("abort", stop, { once: true });
    tail.start();
    try {
      while (!signal.aborted) {
        const change = queue.shift();
        if (change !== undefined) yield change;
        else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      signal.removeEventListener("abort", stop);
      await tail.close();
    }
  }

  #all(): string {
    return `$KV.${this.#bucket}.${this.#prefix}>`;
  }

  #change(message: StreamMessage): KvChange<T> {
    const key = message.subject.slice(this.#all().length - 1);
    const revision = message.seq;
    if (message.header(OPERATION) !== "") return { kind: "delete", key, revision };
    const parsed = this.#decode(() => JSON.parse(Buffer.from(message.data).toString("utf8")));
    if (parsed.kind === "ok") return { kind: "put", key, value: parsed.value, revision };
    const { subject, seq, data } = message;
    const { reason } = parsed;
    // Belongs to the sink, which awaits it when it closes, and never rejects.
    void this.#options.poison?.put({ source: "bucket", subject, seq, from: "", reason, data });
    return { kind: "malformed", key, revision, reason };
  }

  #decode(read: () => unknown): { kind: "ok"; value: T } | { kind: "malformed"; reason: string } {
    let json: unknown;
    try {
      json = read();
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
}

async function attempt<R>(bucket: string, what: string, call: () => Promise<R>): Promise<R> {
  try {
    return await call();
  } catch (err) {
    const cause = err instanceof InsituError && err.cause !== undefined ? err.cause : err;
    if (cause instanceof NatsError || passes(err)) throw unavailable(bucket, what, cause);
    throw err;
  }
}

function unavailable(bucket: string, what: string, cause: unknown): InsituError {
  const message = cause instanceof Error ? cause.message : String(cause);
  return new InsituError(
    "store.unavailable",
    `NATS did not answer for ${what} in the bucket ${bucket} (${message}); check that nats-server runs with JetStream enabled, in a cluster more than half of its servers`,
    { retryable: true, cause },
  );
}
