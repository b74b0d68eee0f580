/**
 * On how many servers of a NATS cluster each stream is kept: one value for all streams and buckets.
 *
 * The number is only ever raised. To lower it takes copies of acknowledged data away, which is left to a person.
 */
import type { JetStreamManager, NatsConnection, StreamInfo } from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { BUCKETS, STREAMS } from "../../shared/wire/subjects.ts";
import { errorCode, refusedReplicas, STREAM_NOT_FOUND } from "./jetstream.ts";
import { whenReady } from "./when-ready.ts";

/** In the order in which they are raised. */
const NAMES = [...Object.values(STREAMS), ...Object.values(BUCKETS).map((bucket) => `KV_${bucket}`)];

export interface ReplicaWorld {
  connection: NatsConnection;
  clock: Clock;
  log: Logger;
}

/**
 * Waits for JetStream, raises the streams and buckets that exist to `wanted`, and gives the number for those that
 * are yet to be created. Without `wanted` it is the number that the streams have, else 1.
 *
 * @throws request.invalid when the cluster has fewer servers than that
 * @throws store.unavailable when JetStream does not answer in time
 */
export async function settleReplicas(world: ReplicaWorld, wanted: number | undefined): Promise<number> {
  const { connection, log } = world;
  const servers = serversOf(connection);
  // Not left to the server: one that is alone may take a higher number, and goes on with one copy.
  if (servers === undefined && wanted !== undefined && wanted > 1) {
    throw new InsituError(
      "request.invalid",
      `streams cannot be kept on ${wanted} servers: NATS at ${connection.getServer()} is a single one. Give --nats-url the servers of a cluster, or start with --stream-replicas 1`,
    );
  }
  const manager = await connection.jetstreamManager({ checkAPI: false });
  const present = await whenReady(world, async () => {
    await manager.getAccountInfo();
    return await existing(manager);
  });
  const kept = present.map(({ config }) => config.num_replicas);
  if (wanted === undefined) {
    const replicas = Math.max(1, ...kept);
    if (replicas === 1 && servers !== undefined)
      log.warn(
        { servers },
        "NATS is a cluster, and each stream is kept on one of its servers: when that one is lost, everything stops. Start with --stream-replicas 3",
      );
    return replicas;
  }
  for (const { config } of present) {
    const { name, num_replicas: replicas } = config;
    if (replicas < wanted) await raise(world, manager, { name, from: replicas, to: wanted });
    else if (replicas > wanted)
      log.warn(
        { stream: name, replicas, wanted },
        "the stream is kept on more servers than --stream-replicas says, and stays so; lower it with the nats command line",
      );
  }
  return wanted;
}

async function existing(manager: JetStreamManager): Promise<StreamInfo[]> {
  const found: StreamInfo[] = [];
  for (const name of NAMES) {
    try {
      found.push(await manager.streams.info(name));
    } catch (err) {
      if (errorCode(err) !== STREAM_NOT_FOUND) throw err;
    }
  }
  return found;
}

async function raise(
  world: ReplicaWorld,
  manager: JetStreamManager,
  change: { name: string; from: number; to: number },
): Promise<void> {
  const { name, from, to } = change;
  await whenReady(world, async () => {
    try {
      await manager.streams.update(name, { num_replicas: to });
    } catch (err) {
      throw refusedReplicas(err, name, to) ?? err;
    }
  });
  // A stream that gets company elects a leader, and takes nothing meanwhile.
  await whenReady(world, async () => {
    const { cluster } = await manager.streams.info(name);
    if (!cluster?.leader || (cluster.replicas ?? []).length < to - 1)
      throw new InsituError("store.unavailable", `${name} has no leader yet`, { retryable: true });
  });
  world.log.info({ stream: name, from, to }, "stream kept on more servers from now on");
}

/** Addresses of the cluster, as far as the server tells its clients; undefined for one that is alone. */
function serversOf({ info }: NatsConnection): string[] | undefined {
  return info?.cluster === undefined ? undefined : (info.connect_urls ?? []);
}
