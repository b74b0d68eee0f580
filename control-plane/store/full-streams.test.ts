/** Streams at their limits, with a real nats-server: who publishes is told to come again, and nothing that is in goes. */
import { type NatsConnection, nanos } from "nats";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { outcome, stepSpec } from "../../test/support/specs.ts";
import { connectNats, ensureStreams, limitQueues } from "./jetstream.ts";
import { JetStreamInbox } from "./jetstream-inbox.ts";
import { JetStreamOfferQueue } from "./jetstream-offer-queue.ts";

const MIB = 1024 ** 2;
let nats: TestNats;
let connection: NatsConnection;
beforeAll(async () => {
  nats = await startTestNats();
  connection = await connectNats({
    servers: [nats.url],
    user: nats.user,
    password: nats.password,
    name: "test",
  });
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});
beforeEach(async () => {
  const { streams } = await connection.jetstreamManager();
  for (const name of Object.values(STREAMS)) await streams.delete(name).catch(() => undefined);
  await ensureStreams(await connection.jetstreamManager(), 1);
});

/** As `nats stream edit` does it. */
async function limit(name: string, maxBytes: number): Promise<void> {
  const { streams } = await connection.jetstreamManager();
  await streams.update(name, { max_bytes: maxBytes });
}

async function stateOf(name: string) {
  const { state, config } = await (await connection.jetstreamManager()).streams.info(name);
  return { messages: state.messages, bytes: state.bytes, maxBytes: config.max_bytes };
}

function offer(epoch: number): Offer {
  return {
    v: 1,
    lease: { runId: "r1", stepId: "a", attempt: 1, epoch },
    environment: "site",
    pipeline: "p",
    version: `sha256:${"0".repeat(64)}`,
    step: stepSpec("a"),
    params: {},
    inputs: {},
    files: {},
    datasets: [],
    policyVersion: "p",
    issuedAtMs: 0,
    expiresAtMs: 1,
    traceparent: "",
  };
}

function inbox(): JetStreamInbox {
  return new JetStreamInbox({
    connection,
    manager: undefined as never, // only `put` is used here
    // Time for one try: how long is waited for room is told by a clock that has gone on meanwhile.
    clock: { ...systemClock, monotonicMs: hurrying() },
    log: { debug() {}, info() {}, warn() {}, error() {} } as never,
    accept: async () => true,
    poison: { put: async () => true },
  });
}

function hurrying(): () => number {
  let nowMs = 0;
  return () => {
    nowMs += 60_000;
    return nowMs;
  };
}

const report = (epoch: number) => ({
  agent: "site/a",
  report: {
    kind: "finished" as const,
    lease: { runId: "r1", stepId: "a", attempt: 1, epoch },
    outcome: outcome(),
  },
});

const FULL = {
  code: "store.unavailable",
  retryable: true,
  message: expect.stringContaining("the stream is full"),
};

test("an offer that does not fit is refused so that it is tried again; it goes when another was taken", async () => {
  await limit(STREAMS.work, 3_000);
  const queue = new JetStreamOfferQueue(connection, () => "signature");
  const fits: number[] = [];
  let refused: unknown;
  for (let epoch = 1; refused === undefined && epoch < 20; epoch++) {
    await queue.publish(offer(epoch)).then(
      () => fits.push(epoch),
      (err: unknown) => {
        refused = err;
      },
    );
  }
  expect(refused).toMatchObject(FULL);
  expect(fits.length).toBeGreaterThan(0);
  expect((await stateOf(STREAMS.work)).messages).toBe(fits.length);

  const { streams } = await connection.jetstreamManager();
  await streams.deleteMessage(STREAMS.work, 1, false);
  await queue.publish(offer(fits.length + 1));
  expect((await stateOf(STREAMS.work)).messages).toBe(fits.length);
});

test("a report that does not fit into the inbox is not acknowledged, and none that was is given up for it", async () => {
  await limit(STREAMS.inbox, 1_500);
  let kept = 0;
  let refused: unknown;
  for (let epoch = 1; refused === undefined && epoch < 20; epoch++) {
    await inbox()
      .put(1, report(epoch))
      .then(
        () => {
          kept += 1;
        },
        (err: unknown) => {
          refused = err;
        },
      );
  }
  expect(refused).toMatchObject(FULL);
  expect(kept).toBeGreaterThan(0);
  expect(await stateOf(STREAMS.inbox)).toMatchObject({ messages: kept });
});

test("queues of a release without limits get them at the next start, and what an operator has set stays", async () => {
  const manager = await connection.jetstreamManager();
  await manager.streams.update(STREAMS.work, { max_bytes: -1 });
  await manager.streams.update(STREAMS.inbox, { max_bytes: 7 * MIB });
  const said: string[] = [];
  const log = { info: (_: unknown, text: string) => said.push(text), warn() {} } as never;
  await limitQueues(manager, log);
  expect(await stateOf(STREAMS.work)).toMatchObject({ maxBytes: 512 * MIB });
  expect(await stateOf(STREAMS.inbox)).toMatchObject({ maxBytes: 7 * MIB });
  expect(said).toEqual(["the stream has a limit of bytes now"]);
  await limitQueues(manager, log);
  expect(said).toHaveLength(1);
});

test("a queue that holds too much for a limit gets none, and nothing of it goes", {
  timeout: 30_000,
}, async () => {
  const manager = await connection.jetstreamManager();
  // Memory, so that the test does not write 300 MB: how a limit is set does not depend on it.
  await manager.streams.delete(STREAMS.inbox);
  await manager.streams.add({
    name: STREAMS.inbox,
    subjects: [subjects.allInbox],
    storage: "memory" as never,
    discard: "new" as never,
    max_age: nanos(3_600_000),
  });
  const payload = Buffer.alloc(4 * MIB);
  for (let i = 0; i < 65; i++) await connection.jetstream().publish(subjects.inbox(1), payload);
  const warned: unknown[] = [];
  await limitQueues(manager, { info() {}, warn: (fields: unknown) => warned.push(fields) } as never);
  expect(warned).toEqual([expect.objectContaining({ stream: STREAMS.inbox })]);
  expect(await stateOf(STREAMS.inbox)).toMatchObject({ messages: 65, maxBytes: -1 });
});
