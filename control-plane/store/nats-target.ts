/** How to reach the NATS of a configuration: the one that is named, or the one that a server keeps in its data directory. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { type ImportedAccounts, loadImported } from "../access/nats-imported.ts";
import { loadNatsOperator, type NatsOperator } from "../access/nats-operator.ts";
import { natsUrls, type ServerConfig } from "../config.ts";
import { loopbackOf } from "../host-names.ts";
import type { NatsTarget } from "./jetstream.ts";

type Target = Omit<NatsTarget, "name">;

/** As much as is needed of what `startNatsServer` writes. */
const Written = z.object({
  host: z.string().default("127.0.0.1"),
  port: z.int().min(1),
  authorization: z
    .object({ users: z.array(z.object({ user: z.string(), password: z.string() })).min(1) })
    .optional(),
  operator: z.string().optional(),
  tls: z.object({ ca_file: z.string() }).optional(),
});

/** Where the nats-server of the data directory has its configuration and its streams. */
export function embeddedDirectory(config: Pick<ServerConfig, "data">): string {
  return join(config.data, "nats");
}

export function secretsOf(config: Pick<ServerConfig, "data" | "secrets">): string {
  return config.secrets ?? join(config.data, "secrets");
}

/**
 * Of a NATS that runs already, for commands beside the server.
 *
 * @throws not-found when the data directory is of no server that runs a NATS of its own
 */
export async function runningTarget(config: ServerConfig): Promise<Target> {
  if (config.natsUrl !== undefined) return await externalTarget(config);
  const file = join(embeddedDirectory(config), "nats.conf.json");
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (err) {
    const reason = (err as NodeJS.ErrnoException).code ?? "unreadable";
    throw new InsituError(
      "not-found",
      `no server has a NATS of its own in ${config.data} (${reason}): name its data directory with --data, or its NATS with --nats-url`,
      { cause: err },
    );
  }
  const { host, port, authorization, operator, tls } = Written.parse(JSON.parse(text));
  const first = authorization?.users[0];
  const known = operator === undefined ? undefined : await loadNatsOperator(secretsOf(config));
  if (operator !== undefined && known === undefined) {
    throw new InsituError(
      "not-found",
      `${secretsOf(config)} does not hold the keys of the NATS in ${config.data}: name the server's directory of secrets with --secrets`,
    );
  }
  return {
    servers: [tls ? `tls://localhost:${port}` : `nats://${loopbackOf(host)}:${port}`],
    ...(first ?? {}),
    ...(known ? { credentials: known.controlPlaneUser() } : {}),
    ...(tls ? { caPem: await readFile(tls.ca_file, "utf8") } : {}),
  };
}

/**
 * Of a NATS that others run and that was given our accounts (`insitu nats init`). A user in its address says that it
 * was not: there may be keys all the same, of a nats-server that this server had before.
 */
export async function externalOperator(
  config: Pick<ServerConfig, "natsUrl" | "data" | "secrets">,
): Promise<NatsOperator | undefined> {
  return signedUrl(config) ? undefined : await loadNatsOperator(secretsOf(config));
}

/** Accounts below an operator that somebody else runs, before those of an operator of ours that may lie there too. */
export async function externalImported(
  config: Pick<ServerConfig, "natsUrl" | "data" | "secrets">,
): Promise<ImportedAccounts | undefined> {
  return signedUrl(config) ? undefined : await loadImported(secretsOf(config));
}

/** User and password are those of the first address that has them; without, the keys of the accounts are shown. */
export async function externalTarget(config: ServerConfig): Promise<Target> {
  const signed = signedUrl(config);
  const accounts = (await externalImported(config)) ?? (await externalOperator(config));
  return {
    servers: externalUrls(config).map((url) => `${url.protocol}//${url.host}`),
    ...(signed
      ? { user: decodeURIComponent(signed.username), password: decodeURIComponent(signed.password) }
      : {}),
    ...(accounts ? { credentials: accounts.controlPlaneUser() } : {}),
    ...(config.natsCaFile ? { caPem: await readCa(config.natsCaFile) } : {}),
  };
}

function externalUrls({ natsUrl }: Pick<ServerConfig, "natsUrl">): URL[] {
  return natsUrls(natsUrl!).map((url) => new URL(url));
}

function signedUrl(config: Pick<ServerConfig, "natsUrl">): URL | undefined {
  return externalUrls(config).find(({ username }) => username !== "");
}

async function readCa(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (err) {
    const reason = (err as NodeJS.ErrnoException).code ?? "unreadable";
    throw new InsituError("request.invalid", `INSITU_NATS_CA_FILE: cannot read ${file} (${reason})`, {
      cause: err,
    });
  }
}
