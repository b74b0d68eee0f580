/**
 * What is written to streams and buckets, twice, in another order and very late. The messages are those that the stores
 * send, as they are seen on the wire; very late is after the time in which NATS knows a message id.
 */
import { connect, headers, type Msg, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll } from "vitest";
import { z } from "zod";
import { systemClock } from "../../shared/system.ts";
import { encodeLogEntries } from "../../shared/wire/log-codec.ts";
import { BUCKETS, STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { harmless } from "../../test/support/harmless.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import { ensureStreams } from "./jetstream.ts";
import { JetStreamLedger } from "./jetstream-ledger.ts";
import { JetStreamRunStore } from "./jetstream-run-store.ts";
import { openKv } from "./kv.ts";
import { LogStore } from "./log-store.ts";
import { ResourceLog } from "./resource-log.ts";

const clock = systemClock;
const log = pino({ level: "silent" });
const MESSAGE_ID = "Nats-Msg-Id";
let nats: TestNats;
let connection: NatsConnection;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

const openBucket = (bucket: string) => openKv(connection, { clock, bucket, schema: z.number() });

/** NATS as on the first day. */
async function fresh(): Promise<AsyncDisposable> {
  const manager = await connection.jetstreamManager();
  for await (const { config } of manager.streams.list()) await manager.streams.delete(config.name);
  await ensureStreams(manager, 1);
  for (const bucket of Object.values(BUCKETS)) await openBucket(bucket);
  return { async [Symbol.asyncDispose]() {} };
}

/** Sends it as it was sent before. Refused or not: only what is stored counts. */
async function send({ subject, data, headers: sent }: Msg, { forgotten = false } = {}): Promise<void> {
  const head = headers();
  for (const [name, values] of sent ?? []) for (const value of values) head.append(name, value);
  if (forgotten) head.set(MESSAGE_ID, `${head.get(MESSAGE_ID)} is not known any more`);
  await connection.request(subject, data, { headers: head, timeout: 5_000 });
}

/** `write` sends at least two messages that belong together, the second after the first. */
function written(
  kind: string,
  { subject, write, state }: { subject: string; write(): Promise<unknown>; state(): Promise<unknown> },
): void {
  let sent: Msg[] = [];
  const sound = async (): Promise<void> => {
    const tap = connection.subscribe(subject);
    await connection.flush();
    await write();
    await connection.flush();
    tap.unsubscribe();
    sent = [];
    for await (const message of tap) sent.push(message);
    if (sent.length < 2) throw new Error(`${kind} sent ${sent.length} messages`);
  };
  harmless(kind, {
    world: fresh,
    state,
    sound,
    async twice() {
      for (const message of sent) for (const _ of [1, 2]) await send(message);
    },
    /** What is refused is sent again by who sent it, and then comes in its turn. */
    async order() {
      for (const message of sent.toReversed()) await send(message);
      for (const message of sent) await send(message);
    },
    async late() {
      await sound();
      for (const message of sent) await send(message, { forgotten: true });
      for (const message of sent.toReversed()) await send(message, { forgotten: true });
    },
  });
}

written("stream RUNS", {
  subject: subjects.allRuns,
  async write() {
    const store = new JetStreamRunStore(connection);
    let seq = 0;
    for (const reason of ["first", "second", "third"]) {
      const event = { kind: "run.cancel-requested", atMs: 1, by: "ana", reason } as const;
      const result = await store.append("r", [event], seq, reason);
      if (result.kind === "appended") seq = result.seq;
    }
  },
  state: async () => (await new JetStreamRunStore(connection).read("r", 0)).map(({ events }) => events),
});

const at = { runId: "r", stepId: "load", attempt: 1, epoch: 1 };
async function logs(): Promise<LogStore> {
  const queries = {
    get: () => ({
      eventSeq: 1,
      steps: [{ id: "load", attempts: [{ attempt: 1, epoch: 1, logLastSeq: 5 }] }],
    }),
    async *follow() {},
  } as unknown as ConstructorParameters<typeof LogStore>[0]["queries"];
  const poison = await poisonOf(connection);
  const doubts = { of: () => async () => undefined };
  return new LogStore({ connection, clock, log, poison, queries, wasGranted: async () => true, doubts });
}

written("stream LOGS", {
  subject: subjects.allLogs,
  async write() {
    const store = await logs();
    for (const first of [1, 3, 4]) {
      const lines = [first, first + 1].map((seq) => ({
        seq,
        atMs: seq,
        stream: "stdout" as const,
        data: Buffer.from(`line ${seq}`),
        droppedBytes: 0,
      }));
      const { encoding, bytes } = encodeLogEntries(lines);
      const chunk = { ...at, seq: 1, firstEntry: first, entryCount: 2, encoding, entries: bytes };
      await store.append("site/a", chunk);
    }
  },
  async state() {
    const lines: unknown[] = [];
    const { signal } = new AbortController();
    for await (const { seq, data } of (await logs()).read({ runId: "r", follow: false, signal }))
      lines.push([seq, data]);
    return lines;
  },
});

written("stream RESOURCES", {
  subject: subjects.resources,
  async write() {
    await using resources = await openResources();
    for (const capacity of [1, 2]) {
      const spec = { name: "db", capacity };
      const about = { by: "ana", atMs: 5, expectedSeq: resources.log.seq, id: `apply-${capacity}` };
      await resources.log.append([{ action: "set", kind: "pool", name: "db", spec }], about);
    }
  },
  async state() {
    await using resources = await openResources();
    return resources.log.list("pool").map(({ name, spec, revision }) => ({ name, spec, revision }));
  },
});

async function openResources() {
  const opened = await ResourceLog.open({
    connection,
    clock,
    log,
    replicas: 1,
    poison: await poisonOf(connection),
  });
  return { log: opened, [Symbol.asyncDispose]: () => opened.close() };
}

written("stream LEDGER", {
  subject: subjects.allLedger,
  async write() {
    const ledger = new JetStreamLedger(connection);
    for (const seq of [1, 2, 3]) {
      const source = { stream: STREAMS.runs, seq, part: 0 };
      const digest = `sha256:${String(seq).repeat(64)}`;
      await ledger.append([{ v: 1, kind: "opaque", source, reason: "unreadable", digest }], seq - 1);
    }
  },
  async state() {
    const leaves: unknown[] = [];
    for await (const { index, entry } of new JetStreamLedger(connection).leavesOf("RUNS", -1))
      leaves.push([index, entry]);
    return leaves;
  },
});

written("stream POISON", {
  subject: subjects.allPoison,
  async write() {
    const poison = await poisonOf(connection);
    for (const text of ["x", "y"])
      await poison.put({
        source: "work",
        subject: "work.site",
        seq: null,
        from: "a/1",
        reason: "junk",
        data: Buffer.from(text),
      });
  },
  state: async () =>
    (await (await poisonOf(connection)).list()).map(({ from, reason, id }) => [from, reason, id]),
});

for (const bucket of Object.values(BUCKETS)) {
  written(`bucket ${bucket}`, {
    subject: `$KV.${bucket}.>`,
    async write() {
      const store = await openBucket(bucket);
      const created = await store.create("a", 1);
      await store.update("a", 3, await store.update("a", 2, created));
    },
    state: async () => (await (await openBucket(bucket)).list()).map(({ key, value }) => [key, value]),
  });
}
