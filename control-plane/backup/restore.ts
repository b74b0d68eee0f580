/** Puts a backup where nothing is yet: a data directory, or a NATS without streams. */
import { constants } from "node:fs";
import { mkdir, open, rename, rm, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { JetStreamManager, NatsConnection } from "nats";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import { BUCKETS } from "../../shared/wire/subjects.ts";
import type { ServerConfig } from "../config.ts";
import { ClusterRecord, restored } from "../shards/shard-book.ts";
import { connectNats, errorCode, passes, STREAM_NOT_FOUND, storeError } from "../store/jetstream.ts";
import { openKv } from "../store/kv.ts";
import { kvClusterStore } from "../store/kv-cluster-store.ts";
import { NatsDisk } from "../store/nats-disk.ts";
import { startNatsServer } from "../store/nats-server.ts";
import { embeddedDirectory, externalTarget } from "../store/nats-target.ts";
import { clearRestoreMark, isRestoreMarked, setRestoreMark } from "../store/restore-mark.ts";
import { restoreSnapshot } from "../store/stream-snapshot.ts";
import { damaged, readArchive } from "./archive-reader.ts";
import { watched } from "./long-copy.ts";
import type { Manifest, StreamEntry } from "./manifest.ts";
import {
  olderServer,
  refuseEarlyClock,
  refuseFilled,
  refuseReplicas,
  refuseStreams,
} from "./restore-refusals.ts";
import { missingSecrets, writeSecrets } from "./sealed-secrets.ts";
import type { Verified } from "./verify.ts";

const SETTLED_WITHIN_MS = 30_000;
const SETTLED_POLL_MS = 100;

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
  refuseEarlyClock(order.clock, order.manifest);
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
    await using disk = new NatsDisk({ storeDirectory: where.directory, clock });
    await disk.flushAll();
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
    const manager = await connection.jetstreamManager({ checkAPI: false });
    await refuseReplicas(connection);
    // Under the mark nobody else makes or uses streams: what is there is of a restore that was interrupted.
    if (await isRestoreMarked(manager)) await removeStreams(manager, manifest);
    else await refuseStreams(manager);
    const replicas = config.streamReplicas ?? (connection.info?.cluster ? undefined : 1);
    await setRestoreMark(manager, replicas);
    try {
      await fill(order, connection, replicas);
    } catch (err) {
      // A connection that has gone leaves some of them, and the mark: the next try removes them.
      await removeStreams(manager, manifest)
        .then(() => clearRestoreMark(manager))
        .catch(() => undefined);
      throw err;
    }
    await clearRestoreMark(manager);
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
  const { clock, file, manifest, progress } = order;
  for (const stream of manifest.streams) {
    const { name, config, state, lastSeq } = stream;
    const placed = replicas === undefined ? config : { ...config, num_replicas: replicas };
    const now = await restoreSnapshot(
      { connection, clock },
      { ...placed, name },
      state,
      watched(contentOf(order, stream), { ...order, name }),
    ).catch((err: unknown) => {
      throw olderServer(err, manifest, connection) ?? err;
    });
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

async function* contentOf({ file }: RestoreOrder, { parts }: StreamEntry): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    for await (const member of readArchive(file)) {
      if (member.name !== part) continue;
      yield* member.content();
      break;
    }
  }
}

/** The replicas of the record have gone; and what is granted from now on is newer than what any of them granted. */
async function settleShards(
  { clock, signal, nothingRanSince }: RestoreOrder,
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
  const giveUpAtMs = clock.monotonicMs() + SETTLED_WITHIN_MS;
  for (;;) {
    try {
      const found = await store.read();
      if (!found)
        throw new InsituError("store.unavailable", "the record of shards is not there", { retryable: true });
      return await store.write(
        restored(found.record, nothingRanSince ? undefined : clock.wallMs()),
        found.revision,
      );
    } catch (err) {
      // In a cluster the copy that is asked may not have what was restored yet.
      if (!passes(err) || clock.monotonicMs() > giveUpAtMs) throw err;
      await clock.sleep(SETTLED_POLL_MS, signal);
    }
  }
}

async function removeStreams(manager: JetStreamManager, { streams }: Manifest): Promise<void> {
  for (const { name } of streams) {
    await manager.streams.delete(name).catch((err: unknown) => {
      if (errorCode(err) !== STREAM_NOT_FOUND) throw storeError(err, `stream ${name}`);
    });
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY);
  await directory.sync().finally(() => directory.close());
}
