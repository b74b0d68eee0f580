import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import fc from "fast-check";
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { BUCKETS, subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { startTestNatsCluster, type TestNatsCluster } from "../../test/support/nats-cluster.ts";
import { loadConfig, type ServerConfig } from "../config.ts";
import { ClusterRecord, emptyRecord } from "../shards/shard-book.ts";
import { ensureStreams } from "../store/jetstream.ts";
import { openKv } from "../store/kv.ts";
import { NatsPeers } from "../store/nats-peers.ts";
import { refuseHalfRestored, setRestoreMark } from "../store/restore-mark.ts";
import { ALL_STREAMS, KEPT_STREAMS } from "./contents.ts";
import { createBackup } from "./create.ts";
import { restoreBackup } from "./restore.ts";
import { verifyBackup } from "./verify.ts";

const PASSPHRASE = "correct horse battery staple";
const { signal } = new AbortController();
const progress = async (): Promise<void> => undefined;

let nats: TestNats;
let connection: NatsConnection;
let directory: string;
let secrets: string;
let whole: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-backup-"));
  secrets = join(directory, "secrets");
  await mkdir(secrets, { mode: 0o700 });
  for (const name of ["ca.key.pem", "offer-key.pem"])
    await writeFile(join(secrets, name), `the ${name}\n`, { mode: 0o600 });
  nats = await startTestNats();
  connection = await login(nats);
  await fill(connection);
  whole = await backup("whole.tar");
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
  if (directory) await rm(directory, { recursive: true, force: true });
});

function login({ url, user, password }: TestNats): Promise<NatsConnection> {
  return connect({ servers: url, user, pass: password, reconnect: false });
}

/** What a server makes, with a few messages in it. */
async function fill(to: NatsConnection, replicas = 1): Promise<void> {
  await ensureStreams(await to.jetstreamManager(), replicas);
  const kv = await openKv(to, {
    clock: systemClock,
    bucket: BUCKETS.cluster,
    schema: ClusterRecord,
    replicas,
  });
  const record = emptyRecord("f");
  const shards = record.shards.map((shard) => ({ ...shard, owner: "old", instance: "i", epoch: 7 }));
  await kv.create("shards", { ...record, shards });
  for (let at = 0; at < 20; at++) await to.jetstream().publish(subjects.run(`run-${at}`), `event ${at}`);
  await to.jetstream().publish(subjects.work("site"), "an offer");
}

async function backup(name: string, from = connection, passphrase = PASSPHRASE): Promise<string> {
  const file = join(directory, name);
  const sealed = { directory: secrets, passphrase };
  await createBackup({ connection: from, file, clock: systemClock, signal, secrets: sealed, progress });
  return file;
}

async function restore(file: string, config: ServerConfig, passphrase = PASSPHRASE): Promise<void> {
  const verified = await verifyBackup(file, { passphrase });
  const how = { clock: systemClock, env: process.env, signal, progress, nothingRanSince: false };
  await restoreBackup({ ...verified, file, config, ...how });
}

function configOf(flags: Record<string, string>): ServerConfig {
  return loadConfig(
    Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value]),
    {},
  ) as ServerConfig;
}

function into({ url, user, password }: TestNats, data: string): ServerConfig {
  return configOf({ "nats-url": url.replace("//", `//${user}:${password}@`), data: join(directory, data) });
}

async function failure(work: Promise<unknown>): Promise<{ code: string; message: string }> {
  const err = (await work.catch((thrown: unknown) => thrown)) as { code: string; message: string };
  return { code: err?.code, message: err?.message };
}

describe("a backup", () => {
  test("is a tar file that other programs read, and names every stream but those that are made again", async () => {
    const { stdout } = await promisify(execFile)("tar", ["-tf", whole]);
    expect(stdout.trim().split("\n").slice(-2)).toEqual(["manifest.json", "manifest.json.sha256"]);
    const { manifest } = await verifyBackup(whole, {});
    expect(manifest.streams.map(({ name }) => name)).toEqual(
      KEPT_STREAMS.filter((name) => manifest.streams.some((stream) => stream.name === name)),
    );
    expect(manifest.streams.find(({ name }) => name === "RUNS")).toMatchObject({ messages: 20, lastSeq: 20 });
    const left = ALL_STREAMS.filter((name) => !KEPT_STREAMS.includes(name));
    expect(left.sort()).toEqual(["KV_ledger-checkpoint", "KV_sessions", "WORK"]);
    expect(await readFile(whole, "latin1")).not.toContain("the ca.key.pem");
  });

  test("replaces no file, and leaves none behind when it fails", async () => {
    expect(await failure(backup("whole.tar"))).toMatchObject({ code: "conflict" });
    await using empty = await startTestNats();
    const other = await login(empty);
    expect(await failure(backup("of-nothing.tar", other))).toMatchObject({
      code: "not-found",
      message: expect.stringContaining("--nats-url"),
    });
    await other.close();
    expect((await readdir(directory)).sort()).toEqual(["secrets", "whole.tar"]);
  });

  test("refuses a passphrase that protects nothing", async () => {
    expect(await failure(backup("weak.tar", connection, "secret"))).toMatchObject({
      code: "request.invalid",
    });
  });

  test("of which any byte has changed is refused", async () => {
    const bytes = await readFile(whole);
    const file = join(directory, "changed.tar");
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), async (at, by) => {
        const changed = Buffer.from(bytes);
        changed[at] = changed[at]! ^ by;
        await writeFile(file, changed);
        expect(await failure(verifyBackup(file, {}))).toMatchObject({ code: "backup.damaged" });
      }),
      { numRuns: 150 },
    );
  });

  test("that is cut off anywhere is refused", async () => {
    const bytes = await readFile(whole);
    const file = join(directory, "cut.tar");
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), async (length) => {
        await writeFile(file, bytes);
        await truncate(file, length);
        expect(await failure(verifyBackup(file, {}))).toMatchObject({ code: "backup.damaged" });
      }),
      { numRuns: 60 },
    );
  });

  test("says which member is damaged", async () => {
    const bytes = await readFile(whole);
    const file = join(directory, "named.tar");
    const at = bytes.indexOf("streams/RUNS.0001") + 512 + 40;
    bytes[at] = bytes[at]! ^ 1;
    await writeFile(file, bytes);
    expect((await failure(verifyBackup(file, {}))).message).toContain("streams/RUNS.0001");
    const config = configOf({ data: join(directory, "never") });
    expect((await failure(restore(file, config))).message).toContain("streams/RUNS.0001");
    expect(await readdir(directory)).not.toContain("never");
  });

  test("is opened by its passphrase alone", async () => {
    expect((await verifyBackup(whole, { passphrase: PASSPHRASE })).secrets).toEqual({
      "ca.key.pem": "the ca.key.pem\n",
      "offer-key.pem": "the offer-key.pem\n",
    });
    const config = configOf({ data: join(directory, "locked") });
    expect(await failure(restore(whole, config, "another long passphrase"))).toMatchObject({
      code: "auth.denied",
    });
  });
});

describe("a restore", () => {
  test("into another NATS gives the same messages, frees the shards, and raises the floor of epochs", async () => {
    await using target = await startTestNats();
    await restore(whole, into(target, "external"));
    const other = await login(target);
    const manager = await other.jetstreamManager();
    expect((await manager.streams.info("RUNS")).state).toMatchObject({ messages: 20, last_seq: 20 });
    const message = await manager.streams.getMessage("RUNS", { seq: 3 });
    expect([message.subject, message.string()]).toEqual([subjects.run("run-2"), "event 2"]);
    await expect(manager.streams.info("WORK")).rejects.toThrow(/not found/);
    const kv = await openKv(other, { clock: systemClock, bucket: BUCKETS.cluster, schema: ClusterRecord });
    const { value } = (await kv.get("shards"))!;
    expect(value).toMatchObject({ members: [], shards: value.shards.map(() => ({ owner: null, epoch: 7 })) });
    expect(value.epochFloor).toBeGreaterThan(1_700_000_000);
    expect(await readFile(join(directory, "external/secrets/ca.key.pem"), "utf8")).toBe("the ca.key.pem\n");
    await other.close();

    expect(await failure(restore(whole, into(target, "external")))).toMatchObject({
      code: "conflict",
      message: expect.stringMatching(/RUNS.*nats stream rm/),
    });
  });

  test("into a NATS that was interrupted begins anew, and no server starts before it has ended", async () => {
    await using target = await startTestNats();
    const other = await login(target);
    const manager = await other.jetstreamManager();
    await setRestoreMark(manager, 1);
    await fill(other);
    await expect(refuseHalfRestored(manager)).rejects.toMatchObject({ code: "conflict" });
    await restore(whole, into(target, "again"));
    await refuseHalfRestored(manager);
    expect((await manager.streams.info("RUNS")).state.messages).toBe(20);
    await other.close();
  });

  test("into a NATS that a server still uses is refused", async () => {
    await using target = await startTestNats();
    const other = await login(target);
    const peers = new NatsPeers(other, "living", pino({ level: "silent" }));
    peers.start({ onMessage: () => undefined, onRequest: () => Promise.reject(new Error("not understood")) });
    await other.flush();
    expect(await failure(restore(whole, into(target, "used")))).toMatchObject({
      code: "conflict",
      message: expect.stringContaining("stop every server"),
    });
    await other.close();
  });

  test("of a cluster into a cluster keeps as many copies, of a cluster into a single server one", async () => {
    await using source = await startTestNatsCluster();
    await using target = await startTestNatsCluster();
    const options = ({ natsUrl, user, password }: TestNatsCluster) => ({
      servers: natsUrl.split(",").map((url) => url.replace(/.*@/, "")),
      user,
      pass: password,
      reconnect: false,
    });
    const from = await connect(options(source));
    await fill(from, 3);
    await source.whole();
    const file = await backup("cluster.tar", from);
    await restore(file, configOf({ "nats-url": target.natsUrl, data: join(directory, "clustered") }));
    const to = await connect(options(target));
    const { config, state } = await (await to.jetstreamManager()).streams.info("RUNS");
    expect([config.num_replicas, state.messages]).toEqual([3, 20]);
    await Promise.all([from.close(), to.close()]);

    await using single = await startTestNats();
    await restore(file, into(single, "of-cluster"));
    const alone = await login(single);
    expect((await (await alone.jetstreamManager()).streams.info("RUNS")).config.num_replicas).toBe(1);
    await alone.close();
  }, 60_000);

  test("that follows the backup at once raises no floor; one with a clock of before is refused", async () => {
    const verified = await verifyBackup(whole, { passphrase: PASSPHRASE });
    const how = { ...verified, file: whole, env: process.env, signal, progress, nothingRanSince: true };
    await using target = await startTestNats();
    const config = into(target, "moved");
    const early = { ...systemClock, wallMs: () => verified.manifest.takenAtMs - 1 };
    expect((await failure(restoreBackup({ ...how, config, clock: early }))).message).toContain(
      "set the clock right",
    );
    await restoreBackup({ ...how, config, clock: systemClock });
    const other = await login(target);
    const kv = await openKv(other, { clock: systemClock, bucket: BUCKETS.cluster, schema: ClusterRecord });
    expect((await kv.get("shards"))!.value.epochFloor).toBeUndefined();
    await other.close();
  });

  test("touches no directory that holds anything, and no other secrets", async () => {
    const filled = join(directory, "filled");
    await mkdir(filled);
    await writeFile(join(filled, "mine"), "");
    const refusal = await failure(restore(whole, configOf({ data: filled })));
    expect(refusal).toMatchObject({ code: "conflict", message: expect.stringContaining(`mv ${filled}`) });

    const others = join(directory, "others");
    await mkdir(others);
    await writeFile(join(others, "ca.key.pem"), "of somebody else");
    const config = configOf({ data: join(directory, "fresh"), secrets: others });
    expect(await failure(restore(whole, config))).toMatchObject({ code: "conflict" });
    expect(await readdir(others)).toEqual(["ca.key.pem"]);
    expect((await readdir(directory)).filter((name) => name.startsWith("fresh"))).toEqual([]);
  });

  test("that fails half-way leaves nothing behind", async () => {
    const { manifest, secrets: opened } = await verifyBackup(whole, { passphrase: PASSPHRASE });
    const stop = new AbortController();
    const half = async (line: string): Promise<void> => {
      if (line.startsWith("RUNS")) stop.abort(new Error("pulled the plug"));
    };
    const config = configOf({ data: join(directory, "half") });
    const how = {
      clock: systemClock,
      env: process.env,
      signal: stop.signal,
      progress: half,
      nothingRanSince: false,
    };
    await expect(restoreBackup({ manifest, secrets: opened, file: whole, config, ...how })).rejects.toThrow(
      /plug/,
    );
    expect((await readdir(directory)).filter((name) => name.startsWith("half"))).toEqual([]);
  });
});

test("what is written while a backup is taken: nothing that was acknowledged before is missing", {
  timeout: 60_000,
}, async () => {
  await using busy = await startTestNats();
  const writer = await login(busy);
  await fill(writer);
  let acknowledged = 0;
  const stop = new AbortController();
  const writing = (async () => {
    while (!stop.signal.aborted) {
      const batch = Array.from({ length: 50 }, () =>
        writer.jetstream().publish(subjects.run("busy"), Buffer.alloc(200, "x")),
      );
      acknowledged = (await Promise.all(batch)).at(-1)!.seq;
    }
  })();
  const reader = await login(busy);
  for (let round = 0; round < 3; round++) {
    const before = acknowledged;
    const file = await backup(`busy-${round}.tar`, reader);
    await using target = await startTestNats();
    await restore(file, into(target, `busy-${round}`));
    const other = await login(target);
    const { state } = await (await other.jetstreamManager()).streams.info("RUNS");
    expect(state.last_seq).toBeGreaterThanOrEqual(before);
    expect(state.messages).toBe(state.last_seq);
    await other.close();
  }
  stop.abort();
  await writing;
  await Promise.all([reader.close(), writer.close()]);
});
