import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { expect, test } from "vitest";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { systemClock } from "../../shared/system.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { startDeafProxy } from "../../test/support/deaf-proxy.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import { outcome } from "../../test/support/specs.ts";
import { ensureStreams } from "./jetstream.ts";
import { JetStreamInbox } from "./jetstream-inbox.ts";
import { JetStreamOfferQueue } from "./jetstream-offer-queue.ts";
import { JetStreamRunStore } from "./jetstream-run-store.ts";
import { openKv } from "./kv.ts";
import { LogStore } from "./log-store.ts";
import { publish } from "./publish.ts";

const log = pino({ level: "silent" });
const clock = systemClock;
const lease = { runId: "r", stepId: "s", attempt: 1, epoch: 1 };

function login(nats: TestNats, port = nats.port): Promise<NatsConnection> {
  return connect({
    servers: `nats://127.0.0.1:${port}`,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
  });
}

/** As callers do that try again by themselves. */
async function untilAnswered<T>(connection: NatsConnection, call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (err) {
      if (!InsituError.from(err).retryable || connection.isClosed()) throw err;
    }
  }
}

/** Everything that the control plane writes, over one connection. */
async function writers(connection: NatsConnection) {
  const kv = await openKv(connection, { bucket: "things", schema: z.number(), clock });
  const [changed, deleted] = [await kv.create("changed", 1), await kv.create("deleted", 1)];
  const runs = new JetStreamRunStore(connection);
  const offers = new JetStreamOfferQueue(connection, () => "signature");
  const manager = await connection.jetstreamManager();
  const poison = await poisonOf(connection);
  const inbox = new JetStreamInbox({ connection, manager, clock, log, poison, accept: async () => true });
  const queries = { get: () => undefined, follow: async function* () {} };
  const logs = new LogStore({
    connection,
    clock,
    log,
    poison,
    queries,
    doubts: { of: () => () => Promise.resolve(undefined) },
    wasGranted: async () => true,
  });
  const report = { kind: "finished" as const, lease, outcome: outcome() };
  const entries = Buffer.from("");
  const chunk = { ...lease, seq: 1, firstEntry: 1, entryCount: 1, encoding: "identity" as const, entries };
  return {
    append: () =>
      untilAnswered(connection, () =>
        runs.append("r", [{ kind: "run.cancel-requested", atMs: 1, by: "a", reason: "" }], 0, "m"),
      ),
    offer: () => untilAnswered(connection, () => offers.publish({ lease, environment: "site" } as Offer)),
    report: () => inbox.put(0, { agent: "site/a", report }),
    log: () => logs.append("site/a", chunk),
    apply: () =>
      publish(
        { connection, clock, patienceMs: 10_000 },
        {
          what: "apply",
          stream: STREAMS.resources,
          subject: subjects.resources,
          payload: "{}",
          messageId: "apply",
          expected: { ofStream: 0 },
        },
      ),
    create: () => kv.create("created", 2),
    update: () => kv.update("changed", 2, changed),
    delete: () => kv.delete("deleted", deleted),
    setAside: () =>
      poison.put({
        source: "work",
        subject: "work.site",
        seq: null,
        from: "",
        reason: "junk",
        data: entries,
      }),
  };
}

test("of everything that is written, the answer may be lost: it is asked for again, and stored once", async () => {
  await using nats = await startTestNats();
  await using proxy = await startDeafProxy(nats.port);
  const [direct, behind] = [await login(nats), await login(nats, proxy.port)];
  try {
    const manager = await direct.jetstreamManager();
    await ensureStreams(manager, 1);
    const write = await writers(behind);
    const lastSeqs = async () => {
      const names = [...Object.values(STREAMS).filter((name) => name !== STREAMS.ledger), "KV_things"];
      return await Promise.all(names.map(async (name) => (await manager.streams.info(name)).state.last_seq));
    };
    proxy.deafen();
    const writing = Promise.all(Object.values(write).map((call) => call()));
    // RUNS, WORK, LOGS, RESOURCES, INBOX, POISON; three changes in the bucket after its first two.
    await expect.poll(lastSeqs).toEqual([1, 1, 1, 1, 1, 1, 5]);
    proxy.cut();
    const [append, , , , apply, created, changed, , kept] = await writing;
    expect(await lastSeqs()).toEqual([1, 1, 1, 1, 1, 1, 5]);
    expect(append).toEqual({ kind: "appended", seq: 1 });
    expect(apply).toEqual({ kind: "stored", seq: 1 });
    expect(kept).toBe(true);
    const last = async (key: string) =>
      (await manager.streams.getMessage("KV_things", { last_by_subj: `$KV.things.${key}` })).seq;
    expect([created, changed]).toEqual([await last("created"), await last("changed")]);
  } finally {
    await Promise.all([direct.close(), behind.close()]);
  }
});

test("a change that another writer made in the time of a lost answer is a conflict", async () => {
  await using nats = await startTestNats();
  await using proxy = await startDeafProxy(nats.port);
  const [direct, behind] = [await login(nats), await login(nats, proxy.port)];
  try {
    const [ours, theirs] = await Promise.all(
      [behind, direct].map((to) => openKv(to, { bucket: "things", schema: z.number(), clock })),
    );
    const revision = await ours!.create("a", 1);
    proxy.deafen();
    proxy.cut(); // what is asked now waits for the next connection
    await theirs!.update("a", 2, revision);
    await expect(ours!.update("a", 2, revision)).rejects.toMatchObject({ code: "conflict", retryable: true });
    expect(await ours!.get("a")).toMatchObject({ value: 2 });
  } finally {
    await Promise.all([direct.close(), behind.close()]);
  }
});
