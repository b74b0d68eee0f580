/** Where a backup is not restored, and what to do there instead. */
import { readdir } from "node:fs/promises";
import { ErrorCode, type JetStreamManager, type NatsConnection, NatsError } from "nats";
import { compareVersions } from "../../scripts/find-nats-server.mjs";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { subjects } from "../../shared/wire/subjects.ts";
import { errorCode, STREAM_NOT_FOUND, storeError } from "../store/jetstream.ts";
import { ALL_STREAMS } from "./contents.ts";
import type { Manifest } from "./manifest.ts";

const REPLICA_ANSWER_MS = 2_000;

/** What tells grants of the lost time from later ones is the time of the restore. */
export function refuseEarlyClock(clock: Clock, { takenAtMs }: Manifest): void {
  const nowMs = clock.wallMs();
  if (nowMs >= takenAtMs) return;
  throw new InsituError(
    "conflict",
    `the clock of this host says ${new Date(nowMs).toISOString()}, and the backup was taken at ${new Date(takenAtMs).toISOString()}: set the clock right first`,
  );
}

export async function refuseFilled(data: string): Promise<void> {
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

/** One that lives has the lost time in its memory, and would go on with it on the restored streams. */
export async function refuseReplicas(connection: NatsConnection): Promise<void> {
  const question = JSON.stringify({ from: "backup restore", message: {} });
  try {
    await connection.request(subjects.allReplicas, question, { timeout: REPLICA_ANSWER_MS });
  } catch (err) {
    const { code } = err instanceof NatsError ? err : { code: "" };
    if (code === ErrorCode.NoResponders) return;
    // Somebody listens, and does not understand the question.
    if (code !== ErrorCode.Timeout) throw storeError(err, "search for servers");
  }
  throw new InsituError(
    "conflict",
    "a server still runs on this NATS: stop every server first, then restore",
  );
}

export async function refuseStreams(manager: JetStreamManager): Promise<void> {
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

/** Snapshots are in the form of the server that gave them; a newer server reads those of older ones. */
export function olderServer(
  err: unknown,
  { natsServer }: Manifest,
  { info }: NatsConnection,
): InsituError | undefined {
  if (compareVersions(info?.version ?? "", natsServer) >= 0) return undefined;
  return new InsituError(
    "request.invalid",
    `nats-server ${info?.version} does not read what nats-server ${natsServer} wrote: restore with ${natsServer} or newer (INSITU_NATS_SERVER names the binary of an embedded one)`,
    { cause: err },
  );
}
