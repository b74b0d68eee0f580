/** Puts a backup where nothing is yet: a data directory, or a NATS without streams. */
import { constants } from "node:fs";
import { mkdir, open, readdir, rename, rm, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { NatsConnection } from "nats";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import { BUCKETS } from "../../shared/wire/subjects.ts";
import type { ServerConfig } from "../config.ts";
import { ClusterRecord, restored } from "../shards/shard-book.ts";
import { connectNats, errorCode, STREAM_NOT_FOUND, storeError } from "../store/jetstream.ts";
import { openKv } from "../store/kv.ts";
import { kvClusterStore } from "../store/kv-cluster-store.ts";
import { startNatsServer } from "../store/nats-server.ts";
import { embeddedDirectory, externalTarget } from "../store/nats-target.ts";
import { restoreSnapshot } from "../store/stream-snapshot.ts";
import { damaged, readArchive } from "./archive-reader.ts";
import { ALL_STREAMS } from "./contents.ts";
import type { Manifest, StreamEntry } from "./manifest.ts";
import { missingSecrets, writeSecrets } from "./sealed-secrets.ts";
import type { Verified } from "./verify.ts";

export interface RestoreOrder extends Verified {
  file: string;
  /** Where it goes; also which NATS. */
  config: ServerConfig;
  /** Nothing went on after the backup: grants go on where it ends. */
  nothingRanSince: boolean;
  clock: Clock;
  env: NodeJS.ProcessEnv;
  signal: AbortSignal;
  progress(line: string): Promise<void>;
}

/**
 * All or nothing: what was begun is taken away again when it fails.
 *
 * @throws conflict when something is there already
 * @throws store.unavailable when NATS refuses
 */
export async function restoreBackup(order: RestoreOrder): Promise<void> {
  refuseEarlyClock(order);
  if (order.config.natsUrl === undefined) await restoreDirectory(order);
  else await restoreExternal(order);
}

/** Beside its place, and moved there when it is complete: a server never starts on half of it. */
async function restoreDirectory(order: RestoreOrder): Promise<void> {
  const { config, secrets, clock, signal, env } = order;
  const { data } = config;
  await refuseFilled(data);
  const missing =
    secrets && config.secrets !== undefined ? await missingSecrets(config.secrets, secrets) : secrets;
  const draft = `${data}.restoring-${newSecret(6)}`;
  await mkdir(draft, { recursive: true, mode: 0o700 });
  try {
    const { path: binary } = await findNatsServer({ env, install: false });
    const [user, password] = ["restore", newSecret(32)];
    const quiet = { debug() {}, info() {}, warn() {} };
    const where = { directory: embeddedDirectory({ data: draft }), host: "127.0.0.1", port: 0 };
    const server = await startNatsServer({
      binary,
      ...where,
      users: [{ user, password }],
      log: quiet,
      clock,
      signal,
    });
    try {
      const target = { servers: [`nats://127.0.0.1:${server.port}`], user, password };
      await withConnection(target, (connection) => fill(order, connection, 1));
    } finally {
      await server.stop();
    }
    if (missing) await writeSecrets(config.secrets ?? join(draft, "secrets"), missing);
    await rmdir(data).catch(() => undefined); // it is empty or not there, else the next line says so
    await rename(draft, data);
    await syncDirectory(dirname(data));
  } catch (err) {
    await rm(draft, { recursive: true, force: true });
    throw err;
  }
}

async function restoreExternal(order: RestoreOrder): Promise<void> {
  const { config, manifest, secrets } = order;
  const directory = config.secrets ?? join(config.data, "secrets");
  const missing = secrets && (await missingSecrets(directory, secrets));
  await withConnection(await externalTarget(config), async (connection) => {
    await refuseStreams(connection);
    try {
      await fill(order, connection, config.streamReplicas ?? (connection.info?.cluster ? undefined : 1));
    } catch (err) {
      const manager = await connection.jetstreamManager({ checkAPI: false });
      // None of them was there before. A connection that has gone leaves them; the next try says so.
      for (const { name } of manifest.streams) await manager.streams.delete(name).catch(() => false);
      throw err;
    }
  });
  if (missing) await writeSecrets(directory, missing);
}

async function withConnection(
  target: Awaited<ReturnType<typeof externalTarget>>,
  use: (connection: NatsConnection) => Promise<void>,
): Promise<void> {
  const connection = await connectNats({ ...target, name: "insitu-backup", reconnect: false });
  try {
    await use(connection);
  } finally {
    await connection.close();
  }
}

/** @param replicas of each stream; undefined: as many as it had */
async function fill(
  order: RestoreOrder,
  connection: NatsConnection,
  replicas: number | undefined,
): Promise<void> {
  const { file, manifest, progress } = order;
  for (const stream of manifest.streams) {
    const { name, config, state, lastSeq } = stream;
    const placed = replicas === undefined ? config : { ...config, num_replicas: replicas };
    const now = await restoreSnapshot(connection, { ...placed, name }, state, contentOf(order, stream));
    if (now.last_seq < lastSeq)
      throw damaged(
        file,
        stream.parts[0]!,
        `NATS made a stream of it that ends at ${now.last_seq} instead of ${lastSeq}`,
      );
    await progress(`${name}: ${now.messages} messages`);
  }
  await settleShards(order, connection, manifest);
}

async function* contentOf(
  { file, signal }: RestoreOrder,
  { parts }: StreamEntry,
): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    for await (const member of readArchive(file)) {
      signal.throwIfAborted();
      if (member.name !== part) continue;
      yield* member.content();
      break;
    }
  }
}

/** The replicas of the record have gone; and what is granted from now on is newer than what any of them granted. */
async function settleShards(
  { clock, nothingRanSince }: RestoreOrder,
  connection: NatsConnection,
  manifest: Manifest,
): Promise<void> {
  const replicas = manifest.streams.find(({ name }) => name === `KV_${BUCKETS.cluster}`)?.config.num_replicas;
  const kv = await openKv(connection, {
    clock,
    bucket: BUCKETS.cluster,
    schema: ClusterRecord,
    ...(typeof replicas === "number" ? { replicas } : {}),
  });
  const store = kvClusterStore(kv);
  const found = await store.read();
  if (!found) throw new InsituError("internal", "the backup holds no record of replicas and shards");
  await store.write(restored(found.record, nothingRanSince ? undefined : clock.wallMs()), found.revision);
}

/** What tells grants of the lost time from later ones is the time of the restore. */
function refuseEarlyClock({ clock, manifest: { takenAtMs } }: RestoreOrder): void {
  const nowMs = clock.wallMs();
  if (nowMs >= takenAtMs) return;
  throw new InsituError(
    "conflict",
    `the clock of this host says ${new Date(nowMs).toISOString()}, and the backup was taken at ${new Date(takenAtMs).toISOString()}: set the clock right first`,
  );
}

async function refuseFilled(data: string): Promise<void> {
  const there = await readdir(data).catch((err: NodeJS.ErrnoException) => {
    if (err.code === "ENOENT") return [];
    throw new InsituError("request.invalid", `${data} cannot be read (${err.code})`, { cause: err });
  });
  if (there.length === 0) return;
  throw new InsituError(
    "conflict",
    `${data} is not empty: a backup is restored where nothing is. Stop the server that uses it and move it away (mv ${data} ${data}.old), or name another directory with --data`,
  );
}

async function refuseStreams(connection: NatsConnection): Promise<void> {
  const manager = await connection.jetstreamManager({ checkAPI: false });
  const there: string[] = [];
  for (const name of ALL_STREAMS) {
    try {
      await manager.streams.info(name);
      there.push(name);
    } catch (err) {
      if (errorCode(err) !== STREAM_NOT_FOUND) throw storeError(err, `stream ${name}`);
    }
  }
  if (there.length === 0) return;
  throw new InsituError(
    "conflict",
    `this NATS holds streams of Insitu already (${there.join(", ")}): a backup is restored where nothing is. Name another NATS with --nats-url; or, when these may go, stop every server and remove them with the nats command line (nats stream rm NAME)`,
  );
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY);
  await directory.sync().finally(() => directory.close());
}
