import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { ManualClock } from "../api/manual-clock.fixture.ts";
import { openKv } from "./kv.ts";
import { IdempotencyEntry, KvIdempotencyStore } from "./kv-idempotency-store.ts";

const ANSWER = { status: 201, contentType: "application/json", body: "{}" };
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

async function replica(clock = new ManualClock()): Promise<KvIdempotencyStore> {
  const kv = await openKv(connection, {
    clock: systemClock,
    bucket: "idempotency",
    schema: IdempotencyEntry,
  });
  return new KvIdempotencyStore(kv, clock);
}

test("a key that one replica has answered is answered by another one", async () => {
  const [one, other] = [await replica(), await replica()];
  expect(await one.claim("a", "f")).toMatchObject({ state: "new" });
  expect(await other.claim("a", "f")).toEqual({ state: "running", fingerprint: "f" });
  await one.finish("a", "f", ANSWER);
  expect(await other.claim("a", "g")).toEqual({ state: "done", fingerprint: "f", answer: ANSWER });
});

test("of many that claim a key at once, one has it", async () => {
  const stores = await Promise.all(Array.from({ length: 8 }, () => replica()));
  const claims = await Promise.all(stores.map((store) => store.claim("b", "f")));
  expect(claims.filter(({ state }) => state === "new")).toHaveLength(1);
});

test("a claim is free again once it is released, or when the replica that made it has gone for half a minute", async () => {
  const clock = new ManualClock();
  const store = await replica(clock);
  const firstMs = clock.wallMs();
  await store.claim("c", "f");
  await store.release("c");
  clock.advance(1_000);
  // What a repeat makes takes its id from the first claim: it is the same also when that one had its effect.
  expect(await store.claim("c", "f")).toEqual({ state: "new", firstMs });
  clock.advance(29_000);
  expect((await store.claim("c", "f")).state).toBe("running");
  clock.advance(1_000);
  expect(await store.claim("c", "f")).toEqual({ state: "new", firstMs });
});
