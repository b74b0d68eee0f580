import { connect, type NatsConnection } from "nats";
import { afterEach, beforeEach, expect, test } from "vitest";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import type { Poison } from "../poison/ports.ts";
import { ensureStreams, POISON_MAX_MESSAGES } from "./jetstream.ts";
import { COPY_MAX_BYTES, PENDING_MAX, type PoisonStream } from "./poison-stream.ts";

let nats: TestNats;
let connection: NatsConnection;
let poison: PoisonStream;

beforeEach(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
  poison = await poisonOf(connection);
});
afterEach(async () => {
  await connection?.close();
  await nats?.stop();
});

const one = (change: Partial<Poison> = {}): Poison => ({
  source: "inbox",
  subject: "inbox.5",
  seq: 7,
  from: "",
  reason: "it is not JSON",
  data: Buffer.from("{"),
  ...change,
});

test("a message is kept with all that is known of it, once, whoever meets it and however often", async () => {
  const other = await poisonOf(connection);
  for (const sink of [poison, other, poison]) expect(await sink.put(one())).toBe(true);
  const [kept, ...rest] = await poison.list();
  expect(rest).toEqual([]);
  const { id } = kept!;
  expect(await other.get(id)).toEqual({
    ...one(),
    id,
    bytes: 1,
    keptAtMs: kept!.keptAtMs,
    data: expect.anything(),
  });
  expect(Buffer.from((await other.get(id)).data).toString()).toBe("{");
});

test("of what came over no stream, the same bytes of the same agent are one message", async () => {
  const from = (agent: string, text: string): Poison =>
    one({ source: "work", seq: null, from: agent, data: Buffer.from(text) });
  for (const message of [from("a/1", "x"), from("a/1", "x"), from("a/2", "x"), from("a/1", "y")]) {
    await poison.put(message);
  }
  expect((await poison.list()).map((kept) => kept.from)).toEqual(["a/1", "a/2", "a/1"]);
});

test("of a long message the beginning is kept, and a reason with line ends breaks no header", async () => {
  await poison.put(
    one({
      data: Buffer.alloc(COPY_MAX_BYTES + 1, 65),
      reason: `a\r\nNats-Msg-Id: b\u2028${"é".repeat(9_999)}`,
    }),
  );
  const [kept] = await poison.list();
  expect(kept).toMatchObject({
    bytes: COPY_MAX_BYTES + 1,
    reason: expect.stringMatching(/^a Nats-Msg-Id: b/),
  });
  expect((await poison.get(kept!.id)).data).toHaveLength(COPY_MAX_BYTES);
});

test("a copy that is dropped is gone, and so is what never was", async () => {
  await poison.put(one());
  const [{ id } = { id: 0 }] = await poison.list();
  await poison.drop(id);
  expect(await poison.list()).toEqual([]);
  await expect(poison.drop(id)).rejects.toMatchObject({ code: "not-found" });
  await expect(poison.get(99)).rejects.toMatchObject({ code: "not-found" });
});

test("of more than the stream may hold, the newest stay", async () => {
  for (let first = 0; first < POISON_MAX_MESSAGES + 20; first += 20) {
    await Promise.all(Array.from({ length: 20 }, (_, n) => poison.put(one({ seq: first + n + 1 }))));
  }
  const kept = await poison.list();
  expect(kept).toHaveLength(POISON_MAX_MESSAGES);
  expect(Math.max(...kept.map(({ seq }) => seq ?? 0))).toBe(POISON_MAX_MESSAGES + 20);
});

test("while the store is away no more than a few copies wait, and nobody waits for the rest", async () => {
  await nats.kill();
  const waiting = Array.from({ length: PENDING_MAX }, (_, n) => poison.put(one({ seq: n + 1 })));
  expect(await poison.put(one({ seq: 1_000 }))).toBe(false);
  await nats.restart();
  await Promise.all(waiting);
  await poison.close();
  expect((await poison.list()).some(({ seq }) => seq === 1_000)).toBe(false);
});
