/** Takes a backup of the durable state of a control plane that goes on working. */
import type { NatsConnection } from "nats";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { SOFTWARE_VERSION } from "../../shared/wire/protocol.ts";
import { takeSnapshot } from "../store/stream-snapshot.ts";
import { ArchiveWriter, type WrittenMember } from "./archive-writer.ts";
import { KEPT_STREAMS } from "./contents.ts";
import { watched } from "./long-copy.ts";
import {
  digestLine,
  FORMAT,
  MANIFEST,
  MANIFEST_DIGEST,
  Manifest,
  partName,
  SECRETS,
  type StreamEntry,
} from "./manifest.ts";
import { readSecrets, seal } from "./sealed-secrets.ts";
import { MEMBER_MAX_BYTES } from "./tar.ts";

export interface BackupOrder {
  /** Does not reconnect by itself. */
  connection: NatsConnection;
  file: string;
  clock: Clock;
  signal: AbortSignal;
  /** Undefined: the secrets are kept elsewhere. */
  secrets: { directory: string; passphrase: string } | undefined;
  /** A line for people each time that something is done. */
  progress(line: string): Promise<void>;
}

/**
 * Everything that was acknowledged before the call is in it. Gives what it wrote.
 *
 * @throws not-found when NATS holds no runs: it is another one
 * @throws conflict when the file exists
 */
export async function createBackup(order: BackupOrder): Promise<{ manifest: Manifest; bytes: number }> {
  const { connection, clock, file, progress } = order;
  const takenAtMs = clock.wallMs();
  const secrets = order.secrets && (await readSecrets(order.secrets.directory));
  await using writer = await ArchiveWriter.create(file, takenAtMs);
  const members: WrittenMember[] = [];
  if (secrets) {
    members.push(await writer.add(SECRETS, await seal(secrets, order.secrets!.passphrase)));
    await progress(`secrets: ${Object.keys(secrets).length} files, sealed`);
  }
  const streams: StreamEntry[] = [];
  for (const name of KEPT_STREAMS) {
    const stream = await copyStream(order, writer, members, name);
    if (!stream) continue;
    streams.push(stream);
    await progress(`${name}: ${stream.messages} messages, ${stream.bytes} bytes`);
  }
  if (!streams.some(({ name }) => name === "RUNS")) {
    throw new InsituError(
      "not-found",
      "this NATS holds no runs of Insitu: name the one of the server with --data or --nats-url, as for insitu server",
    );
  }
  const manifest = Manifest.parse({
    format: FORMAT,
    software: `insitu ${SOFTWARE_VERSION}`,
    natsServer: connection.info?.version ?? "",
    takenAtMs,
    streams,
    secrets: secrets !== undefined,
    members,
  });
  const { sha256 } = await writer.add(MANIFEST, Buffer.from(`${JSON.stringify(manifest, null, 1)}\n`));
  await writer.add(MANIFEST_DIGEST, Buffer.from(digestLine(sha256)));
  return { manifest, bytes: await writer.finish() };
}

async function copyStream(
  { connection, clock, signal, progress }: BackupOrder,
  writer: ArchiveWriter,
  members: WrittenMember[],
  name: string,
): Promise<StreamEntry | undefined> {
  const readAtMs = clock.wallMs();
  const snapshot = await takeSnapshot({ connection, clock }, name);
  if (!snapshot) return undefined;
  const parts = [partName(name, 1)];
  writer.begin(parts[0]!);
  for await (const piece of watched(snapshot.pieces(), { name, clock, signal, progress })) {
    if (writer.memberBytes + piece.length > MEMBER_MAX_BYTES) {
      members.push(await writer.end());
      parts.push(partName(name, parts.length + 1));
      writer.begin(parts.at(-1)!);
    }
    await writer.write(piece);
  }
  members.push(await writer.end());
  const { config, state } = snapshot;
  const { messages, first_seq: firstSeq, last_seq: lastSeq, bytes } = state;
  return { name, readAtMs, messages, firstSeq, lastSeq, bytes, config, state, parts };
}
