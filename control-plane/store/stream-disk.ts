/**
 * What stands between "nats-server has it" and "it is on the disk", for the servers that acknowledge before they
 * sync: nobody is told that something is stored before it has passed here.
 */
import type { NatsConnection } from "nats";
import type { Publication, Published } from "./publish.ts";

export interface StreamDisk {
  /**
   * Resolves when what the server has stored of the stream is on the disk, up to a sequence that it was seen to have.
   * Calls at the same time share a sync.
   *
   * @throws store.unavailable when it cannot be brought there: what was stored is then nothing to rely on
   */
  flush(stream: string, upToSeq: number): Promise<void>;
  /** The stream was made just now, or has been there: it is made again should a power cut take it. */
  made?(stream: string): Promise<void>;
  /**
   * Before a read that is acted on. After a restart of the server resolves when what it has lost is back: what is
   * read before that may be out of date, and the `flush` after the read refuses it.
   */
  ready?(): Promise<void>;
  /**
   * Where publishing is its own affair: makes the try over a connection that it chooses, and resolves when what was
   * stored is on the disk. @throws as `flush`, also before the try
   */
  store?(message: Publication, attempt: Attempt): Promise<Published>;
}

export type Attempt = (over: NatsConnection) => Promise<Published>;

const disks = new WeakMap<NatsConnection, StreamDisk>();

/** From now on what is published or read over the connection is on the disk before the caller hears of it. */
export function flushBeforeAnswer(connection: NatsConnection, disk: StreamDisk): void {
  disks.set(connection, disk);
}

/** Does nothing for a connection to a server that syncs by itself, or whose disk is out of reach. */
export async function flushed(connection: NatsConnection, stream: string, upToSeq: number): Promise<void> {
  await disks.get(connection)?.flush(stream, upToSeq);
}

/** After streams were made or found. @throws store.unavailable when that cannot be noted */
export async function noteMade(connection: NatsConnection, streams: readonly string[]): Promise<void> {
  for (const stream of streams) await disks.get(connection)?.made?.(stream);
}

/** Before a read; `flushed` comes after it. @throws store.unavailable when what the server has lost is not back in time */
export async function readable(connection: NatsConnection): Promise<void> {
  await disks.get(connection)?.ready?.();
}

/** One try to publish, and then as `flushed`. */
export async function stored(
  connection: NatsConnection,
  message: Publication,
  attempt: Attempt,
): Promise<Published> {
  const disk = message.mayBeLost ? undefined : disks.get(connection);
  if (disk?.store) return await disk.store(message, attempt);
  const published = await attempt(connection);
  if (published.kind === "stored") await disk?.flush(message.stream, published.seq);
  return published;
}
