import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { z } from "zod";
import { systemClock } from "../../shared/system.ts";
import { BUCKETS, STREAMS } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { startTestNatsCluster, type TestNatsCluster } from "../../test/support/nats-cluster.ts";
import { ensureStreams, ensureWorkConsumer } from "./jetstream.ts";
import { openKv } from "./kv.ts";
import { settleReplicas } from "./stream-replicas.ts";

let lines: { level: number; msg: string; stream?: string }[];
const world = (connection: NatsConnection) => ({
  connection,
  clock: systemClock,
  log: pino({}, { write: (line: string) => void lines.push(JSON.parse(line)) }),
});
beforeEach(() => {
  lines = [];
});

/** As a replica does when it starts. */
async function open(connection: NatsConnection, wanted?: number): Promise<number> {
  const replicas = await settleReplicas(world(connection), wanted);
  const manager = await connection.jetstreamManager();
  await ensureStreams(manager, replicas);
  await ensureWorkConsumer(manager, "site", "env-site");
  await openKv(connection, { clock: systemClock, bucket: BUCKETS.cluster, schema: z.unknown(), replicas });
  return replicas;
}

async function kept(connection: NatsConnection): Promise<Record<string, number>> {
  const found: Record<string, number> = {};
  const manager = await connection.jetstreamManager();
  for (const name of NAMES) found[name] = (await manager.streams.info(name)).config.num_replicas;
  return found;
}

const NAMES = [...Object.values(STREAMS), `KV_${BUCKETS.cluster}`];
const all = (replicas: number) => Object.fromEntries(NAMES.map((name) => [name, replicas]));

describe("on a cluster of three servers", () => {
  let nats: TestNatsCluster;
  let connection: NatsConnection;
  beforeAll(async () => {
    nats = await startTestNatsCluster();
    const servers = nats.nodes.map(({ url }) => url);
    connection = await connect({ servers, user: nats.user, pass: nats.password });
  });
  afterAll(async () => {
    await connection?.close();
    await nats?.stop();
  });

  test("streams and buckets are kept once unless asked, with a warning; raised on demand; never lowered", {
    timeout: 60_000,
  }, async () => {
    expect(await open(connection)).toBe(1);
    expect(await kept(connection)).toEqual(all(1));
    expect(lines).toEqual([expect.objectContaining({ level: 40, msg: expect.stringMatching(/replicas 3/) })]);

    lines = [];
    expect(await open(connection, 3)).toBe(3);
    expect(await kept(connection)).toEqual(all(3));
    expect(lines.map(({ stream }) => stream).sort()).toEqual([...NAMES].sort());
    const manager = await connection.jetstreamManager();
    for (const name of Object.values(STREAMS)) {
      expect((await manager.streams.info(name)).cluster?.replicas).toHaveLength(2);
    }
    const consumer = async () => (await manager.consumers.info(STREAMS.work, "env-site")).cluster?.replicas;
    await expect.poll(consumer, { timeout: 10_000 }).toHaveLength(2);

    lines = [];
    expect(await open(connection)).toBe(3);
    expect(lines).toEqual([]);
    await open(connection, 1);
    expect(await kept(connection)).toEqual(all(3));
    expect(lines).toHaveLength(Object.keys(STREAMS).length + 1);
    expect(lines[0]).toMatchObject({ level: 40, msg: expect.stringMatching(/stays so/) });
  });

  test("more copies than servers are refused, with what to do", async () => {
    await expect(open(connection, 5)).rejects.toMatchObject({
      code: "request.invalid",
      message: expect.stringMatching(/RUNS cannot be kept on 5 servers.*lower --stream-replicas/),
    });
    expect(await kept(connection)).toEqual(all(3));
  });
});

describe("on a single server", () => {
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

  test("more than one copy is refused, for new streams and for those that exist", async () => {
    const refused = expect.stringMatching(/cannot be kept on 3 servers.*a single one.*--stream-replicas 1/);
    await expect(open(connection, 3)).rejects.toMatchObject({ code: "request.invalid", message: refused });
    expect(await open(connection)).toBe(1);
    await expect(open(connection, 3)).rejects.toMatchObject({ code: "request.invalid", message: refused });
    expect(lines).toEqual([]);
  });
});
