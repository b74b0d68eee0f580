/** `insitu backup create|verify|restore`: on the host of a server, beside it. */
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { InsituError } from "../../../shared/errors.ts";
import type { Manifest } from "../../backup/manifest.ts";
import { loadConfig, type ServerConfig } from "../../config.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { bytes as sizeText } from "../text.ts";

interface Place {
  data?: string;
  natsUrl?: string;
  streamReplicas?: string;
  /** False with --without-secrets. */
  secrets?: string;
  withoutSecrets?: boolean;
  passphraseFile?: string;
}

export async function create(
  invocation: Invocation,
  _args: string[],
  options: Place & { out?: string },
): Promise<number> {
  const { clock, signal, output, world } = invocation;
  const config = configOf(invocation, options);
  const file = resolve(world.settings.cwd, options.out ?? defaultName(clock.wallMs()));
  const secrets = options.withoutSecrets
    ? undefined
    : {
        directory: config.secrets ?? join(config.data, "secrets"),
        passphrase: await neededPassphrase(invocation, options),
      };
  const { createBackup } = await import("../../backup/create.ts");
  const connection = await connectToRunning(config);
  try {
    const progress = (line: string): Promise<void> => output.note(line);
    const { manifest, bytes } = await createBackup({ connection, file, clock, signal, secrets, progress });
    if (output.people) await output.line(`${file}: ${sizeText(bytes)}, of ${timeOf(manifest)}`);
    else await output.data({ file, bytes, ...summaryOf(manifest) });
  } finally {
    await connection.close();
  }
  return EXIT.ok;
}

export async function verify(invocation: Invocation, args: string[], options: Place): Promise<number> {
  const { output, world } = invocation;
  const file = resolve(world.settings.cwd, args[0]!);
  const { verifyBackup } = await import("../../backup/verify.ts");
  const passphrase = await givenPassphrase(invocation, options);
  const { manifest, secrets } = await verifyBackup(file, { passphrase });
  const opened = manifest.secrets ? (secrets ? "opened" : "not tried") : "none";
  if (!output.people) {
    await output.data({ file, ...summaryOf(manifest), secrets: opened });
    return EXIT.ok;
  }
  await output.table(manifest.streams, [
    { title: "STREAM", value: (stream) => stream.name },
    { title: "MESSAGES", value: (stream) => String(stream.messages), right: true },
    { title: "FIRST", value: (stream) => String(stream.firstSeq), right: true },
    { title: "LAST", value: (stream) => String(stream.lastSeq), right: true },
    { title: "BYTES", value: (stream) => sizeText(stream.bytes), right: true },
  ]);
  await output.line();
  await output.line(
    `${file} is whole: of ${timeOf(manifest)}, by ${manifest.software} on nats-server ${manifest.natsServer}`,
  );
  const SECRETS = {
    opened: "the passphrase opens its secrets",
    "not tried": "its secrets were not opened: give --passphrase-file to try",
    none: "it holds no secrets: keep those of the server beside it",
  } as const;
  await output.line(SECRETS[opened]);
  return EXIT.ok;
}

export async function restore(
  invocation: Invocation,
  args: string[],
  options: Place & { nothingRanSince?: boolean },
): Promise<number> {
  const { clock, signal, output, world } = invocation;
  const config = configOf(invocation, options);
  const file = resolve(world.settings.cwd, args[0]!);
  const { verifyBackup } = await import("../../backup/verify.ts");
  const { restoreBackup } = await import("../../backup/restore.ts");
  const { refuseFilled } = await import("../../backup/restore-refusals.ts");
  const passphrase = options.withoutSecrets ? undefined : await givenPassphrase(invocation, options);
  // Asked again later; a large backup takes minutes to read.
  if (config.natsUrl === undefined) await refuseFilled(config.data);
  const verified = await verifyBackup(file, { passphrase });
  if (verified.manifest.secrets && !options.withoutSecrets && !verified.secrets) throw noPassphrase("open");
  await output.note(`${file} is whole; restoring it`);
  await restoreBackup({
    ...verified,
    file,
    config,
    nothingRanSince: options.nothingRanSince ?? false,
    clock,
    env: world.env,
    signal,
    progress: (line) => output.note(line),
  });
  const next = startLine(config);
  if (!output.people) {
    await output.data({ file, data: config.data, next, ...summaryOf(verified.manifest) });
    return EXIT.ok;
  }
  await output.line(
    `Restored the state of ${timeOf(verified.manifest)}. Start the server with the flags that it had:`,
  );
  await output.line(`  ${next}`);
  if (!verified.secrets)
    await output.line(
      `Before that, put its secrets into ${config.secrets ?? join(config.data, "secrets")}: with others it does not start.`,
    );
  return EXIT.ok;
}

async function connectToRunning(config: ServerConfig) {
  const { runningTarget } = await import("../../store/nats-target.ts");
  const { connectNats } = await import("../../store/jetstream.ts");
  const target = await runningTarget(config);
  try {
    return await connectNats({ ...target, name: "insitu-backup", reconnect: false });
  } catch (err) {
    if (config.natsUrl !== undefined) throw err;
    throw new InsituError(
      "unreachable",
      `the server of ${config.data} does not run: start it, a backup is taken while it works`,
      { cause: err },
    );
  }
}

/** The server's own flags and environment, as far as they say where its state is. */
function configOf({ world }: Invocation, options: Place): ServerConfig {
  const argv = [
    ...(options.data === undefined ? [] : ["--data", options.data]),
    ...(options.secrets === undefined ? [] : ["--secrets", options.secrets]),
    ...(options.natsUrl === undefined ? [] : ["--nats-url", options.natsUrl]),
    ...(options.streamReplicas === undefined ? [] : ["--stream-replicas", options.streamReplicas]),
  ];
  return loadConfig(argv, world.env) as ServerConfig;
}

async function neededPassphrase(invocation: Invocation, options: Place): Promise<string> {
  const passphrase = await givenPassphrase(invocation, options);
  if (passphrase === undefined) throw noPassphrase("seal");
  return passphrase;
}

async function givenPassphrase(
  { world }: Invocation,
  { passphraseFile }: Place,
): Promise<string | undefined> {
  const { settings, terminal } = world;
  if (passphraseFile === undefined) return settings.backupPassphrase ?? undefined;
  if (passphraseFile === "-") return firstLine(await terminal.readStdin());
  try {
    return firstLine(await readFile(resolve(settings.cwd, passphraseFile), "utf8"));
  } catch (err) {
    const reason = (err as NodeJS.ErrnoException).code;
    throw new InsituError(
      "request.invalid",
      `the passphrase cannot be read from ${passphraseFile} (${reason})`,
      {
        cause: err,
      },
    );
  }
}

function firstLine(text: string): string {
  return text.split(/\r?\n/, 1)[0]!;
}

function noPassphrase(what: "seal" | "open"): InsituError {
  const other =
    what === "seal"
      ? "or keep the secrets elsewhere and say --without-secrets"
      : "or say --without-secrets and bring the server's secrets yourself";
  return new InsituError(
    "request.invalid",
    `a passphrase is needed to ${what} the server's keys: give --passphrase-file FILE (- for standard input) or INSITU_BACKUP_PASSPHRASE; ${other}`,
  );
}

function startLine({ data, secrets, natsUrl }: ServerConfig): string {
  const where =
    natsUrl === undefined ? "" : ` --nats-url ${natsUrl.replaceAll(/\/\/[^@/,]*@/g, "//USER:PASSWORD@")}`;
  return `insitu server --data ${data}${secrets === undefined ? "" : ` --secrets ${secrets}`}${where}`;
}

function summaryOf({ takenAtMs, software, natsServer, streams, members }: Manifest) {
  return {
    takenAtMs,
    software,
    natsServer,
    streams: streams.map(({ name, messages, firstSeq, lastSeq, bytes }) => ({
      name,
      messages,
      firstSeq,
      lastSeq,
      bytes,
    })),
    members,
  };
}

function timeOf({ takenAtMs }: Pick<Manifest, "takenAtMs">): string {
  return new Date(takenAtMs).toISOString();
}

/** Sorts by time. */
function defaultName(atMs: number): string {
  return `insitu-${new Date(atMs).toISOString().slice(0, 19).replaceAll(/[-:]/g, "")}Z.tar`;
}
