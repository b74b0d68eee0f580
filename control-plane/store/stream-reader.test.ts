import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { STREAMS } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { ensureStreams, onReconnect } from "./jetstream.ts";
import { lastSeqOf, readToEnd, StreamTail } from "./stream-reader.ts";

let nats: TestNats;
let connection: NatsConnection;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({
    servers: nats.url,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
  });
  await ensureStreams(await connection.jetstreamManager(), 1);
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

async function publish(count: number): Promise<number[]> {
  const seqs: number[] = [];
  for (let n = 0; n < count; n++) seqs.push((await connection.jetstream().publish("run.0.r", `${n}`)).seq);
  return seqs;
}

/** A tail that tells when it has seen a sequence. */
function tailFrom(fromSeq: number) {
  const seen: number[] = [];
  const waiters = new Map<number, () => void>();
  const tail = new StreamTail({
    connection,
    stream: STREAMS.runs,
    fromSeq,
    clock: systemClock,
    log: pino({ level: "silent" }),
    onMessage: ({ seq }) => {
      seen.push(seq);
      waiters.get(seq)?.();
    },
  });
  tail.start();
  const until = (seq: number): Promise<void> =>
    seen.includes(seq) ? Promise.resolve() : new Promise((resolve) => waiters.set(seq, resolve));
  return { tail, seen, until };
}

test("a read by somebody who pauses, while others publish, skips nothing and ends at its end", async () => {
  for (let round = 0; round < 5; round++) {
    const before = await lastSeqOf(connection, STREAMS.runs);
    const seqs = await publish(1_100);
    const read: number[] = [];
    for await (const { seq } of readToEnd({ connection, stream: STREAMS.runs, fromSeq: before + 1 })) {
      if (read.length % 400 === 0) await publish(1);
      read.push(seq);
    }
    expect(read).toEqual(seqs);
  }
});

test("a read gives everything up to the present end, also beyond one fetch", async () => {
  const before = await lastSeqOf(connection, STREAMS.runs);
  const seqs = await publish(1_100);
  const read: number[] = [];
  for await (const { seq } of readToEnd({ connection, stream: STREAMS.runs, fromSeq: before + 1 })) {
    read.push(seq);
  }
  expect(read).toEqual(seqs);
});

test("a tail gives each message once and in order, over a kill of the server", async () => {
  const from = (await lastSeqOf(connection, STREAMS.runs)) + 1;
  const { tail, seen, until } = tailFrom(from);
  const seqs = await publish(20);
  await until(seqs.at(-1)!);
  const back = new Promise<void>((resolve) => onReconnect(connection, resolve));
  await nats.kill();
  await nats.restart();
  await back;
  seqs.push(...(await publish(20)));
  await until(seqs.at(-1)!);
  await tail.close();
  expect(seen).toEqual(seqs);
}, 30_000);

test("a tail that is closed says no more", async () => {
  const { tail, seen, until } = tailFrom((await lastSeqOf(connection, STREAMS.runs)) + 1);
  const [first] = await publish(1);
  await until(first!);
  await tail.close();
  await publish(3);
  expect(seen).toEqual([first]);
});
