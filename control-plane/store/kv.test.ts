import { connect, Events, type NatsConnection } from "nats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { systemClock } from "../../shared/system.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { type KvChange, type KvStore, openKv } from "./kv.ts";

const Thing = z.strictObject({ n: z.int() });
type Thing = z.infer<typeof Thing>;

let nats: TestNats;
let connection: NatsConnection;
let serial = 0;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({
    servers: nats.url,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
  });
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

const bucketName = () => `things-${++serial}`;
const open = (bucket: string, prefix?: string): Promise<KvStore<Thing>> =>
  openKv(connection, {
    clock: systemClock,
    bucket,
    schema: Thing,
    ...(prefix === undefined ? {} : { prefix }),
  });

async function until(store: KvStore<Thing>, enough: (seen: KvChange<Thing>[]) => boolean | Promise<boolean>) {
  const stop = new AbortController();
  const seen: KvChange<Thing>[] = [];
  for await (const change of store.watch(stop.signal)) {
    seen.push(change);
    if (await enough(seen)) stop.abort();
  }
  return seen;
}

async function reconnected(): Promise<void> {
  for await (const status of connection.status()) if (status.type === Events.Reconnect) return;
}

describe("a bucket", () => {
  test("creates once, and updates only what was read", async () => {
    const store = await open(bucketName());
    const first = await store.create("a", { n: 1 });
    await expect(store.create("a", { n: 2 })).rejects.toMatchObject({ code: "conflict", retryable: true });
    const second = await store.update("a", { n: 3 }, first);
    await expect(store.update("a", { n: 4 }, first)).rejects.toMatchObject({ code: "conflict" });
    expect(await store.get("a")).toEqual({ key: "a", value: { n: 3 }, revision: second });
  });

  test("of many writers with one expectation exactly one wins", async () => {
    const store = await open(bucketName());
    const revision = await store.create("a", { n: 0 });
    const results = await Promise.allSettled(
      Array.from({ length: 16 }, (_, n) => store.update("a", { n }, revision)),
    );
    expect(results.filter((r) => r.status === "fulfilled")).toHaveLength(1);
  });

  test("a deleted key is gone, and can be created again", async () => {
    const store = await open(bucketName());
    const revision = await store.create("a", { n: 1 });
    await expect(store.delete("a", revision + 7)).rejects.toMatchObject({ code: "conflict" });
    await store.delete("a", revision);
    expect(await store.get("a")).toBeUndefined();
    expect(await store.list()).toEqual([]);
    await store.create("a", { n: 2 });
    expect((await store.get("a"))?.value).toEqual({ n: 2 });
  });

  test("an empty one lists nothing", async () => {
    expect(await (await open(bucketName())).list()).toEqual([]);
  });

  test("lists what is changed meanwhile", async () => {
    const store = await open(bucketName());
    let [revision, busy] = [await store.create("a", { n: 0 }), true];
    const writing = (async () => {
      for (let n = 1; busy; n++) revision = await store.update("a", { n }, revision);
    })();
    for (let round = 0; round < 100; round++) expect(await store.list()).toMatchObject([{ key: "a" }]);
    busy = false;
    await writing;
  });

  test("stores with different prefixes do not see each other", async () => {
    const bucket = bucketName();
    const [left, right] = [await open(bucket, "left."), await open(bucket, "right.")];
    await left.create("a", { n: 1 });
    await right.create("a", { n: 2 });
    expect(await left.list()).toMatchObject([{ key: "a", value: { n: 1 } }]);
    expect((await right.get("a"))?.value).toEqual({ n: 2 });
  });

  test("a value that the schema refuses is an error to read, and never hides the others", async () => {
    const bucket = bucketName();
    const store = await open(bucket);
    await store.create("good", { n: 1 });
    const raw = await connection.jetstream().views.kv(bucket);
    await raw.put("bad", "{");
    await raw.put("worse", '{"n":"x"}');
    await expect(store.get("bad")).rejects.toThrow(/bad of the bucket/);
    await expect(store.get("worse")).rejects.toThrow(/n: /);
    expect((await store.list()).map((e) => e.key)).toEqual(["good"]);
  });
});

describe("a watch", () => {
  test("gives what is stored, says when that is all, then what comes", async () => {
    const store = await open(bucketName());
    await store.create("a", { n: 1 });
    const gone = await store.create("b", { n: 2 });
    const seen = await until(store, async (changes) => {
      if (changes.at(-1)?.kind === "current") {
        await store.delete("b", gone);
        await store.create("c", { n: 3 });
      }
      return changes.some((c) => c.kind === "put" && c.key === "c");
    });
    expect(seen.map((c) => [c.kind, "key" in c ? c.key : ""])).toEqual([
      ["put", "a"],
      ["put", "b"],
      ["current", ""],
      ["delete", "b"],
      ["put", "c"],
    ]);
  });

  test("of an empty bucket is current at once", async () => {
    const seen = await until(await open(bucketName()), (changes) => changes.length === 1);
    expect(seen).toEqual([{ kind: "current" }]);
  });

  test("goes on after nats-server was killed and came back", async () => {
    const store = await open(bucketName());
    await store.create("a", { n: 1 });
    const seen = await until(store, async (changes) => {
      if (changes.at(-1)?.kind === "current") {
        const back = reconnected();
        await nats.kill();
        await nats.restart();
        await back;
        await store.create("b", { n: 2 });
      }
      return changes.some((c) => c.kind === "put" && c.key === "b");
    });
    expect(seen.at(-1)).toMatchObject({ kind: "put", key: "b" });
  }, 30_000);
});
