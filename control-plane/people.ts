/** How people get in: the identity provider of the configuration, sessions, and the link for the first administrator. */
import { readFile } from "node:fs/promises";
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import { InsituError } from "../shared/errors.ts";
import type { Clock } from "../shared/system.ts";
import { BUCKETS } from "../shared/wire/subjects.ts";
import type { FirstAdmin } from "./access/first-admin.ts";
import { createFirstAdmin, FirstAdminRecord } from "./access/first-admin.ts";
import { type IdentityProvider, openIdProvider } from "./access/identity-provider.ts";
import { principalOf } from "./access/people.ts";
import { loadSecret } from "./access/secret-file.ts";
import { createSessions, SESSION_BUCKET_TTL_MS, SessionRecord, type Sessions } from "./access/sessions.ts";
import type { ServerConfig } from "./config.ts";
import { type KvOptions, openKv } from "./store/kv.ts";

export interface People {
  sessions: Sessions;
  firstAdmin: FirstAdmin;
  provider: IdentityProvider | null;
}

export interface PeopleDeps {
  connection: NatsConnection;
  buckets: Pick<KvOptions<unknown>, "clock" | "log" | "poison" | "replicas">;
  clock: Clock;
  log: Logger;
}

/** The identity provider need not answer yet. @throws InsituError `request.invalid` for files that cannot be used */
export async function openPeople(config: ServerConfig, deps: PeopleDeps): Promise<People> {
  const { connection, buckets, clock, log } = deps;
  const provider = await openProvider(config, deps);
  const sessionKv = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.sessions,
    schema: SessionRecord,
    ttlMs: SESSION_BUCKET_TTL_MS,
  });
  const firstAdminKv = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.firstAdmin,
    schema: FirstAdminRecord,
  });
  const sessions = createSessions({
    kv: sessionKv,
    clock,
    log,
    principalOf: (person) =>
      person.issuer === provider?.issuer ? principalOf(person, config.oidcRoles) : null,
  });
  return { sessions, firstAdmin: createFirstAdmin({ kv: firstAdminKv, clock }), provider };
}

async function openProvider(
  config: ServerConfig,
  { clock, log }: PeopleDeps,
): Promise<IdentityProvider | null> {
  const { oidcIssuer: issuer, oidcClientId: clientId } = config;
  if (issuer === undefined || clientId === undefined) return null;
  const provider = openIdProvider({
    issuer,
    clientId,
    clientSecret:
      config.oidcClientSecretFile === undefined ? null : await secretIn(config.oidcClientSecretFile),
    scopes: ["openid", "profile", "email", ...config.oidcScopes],
    groupsClaim: config.oidcGroupsClaim,
    ca: config.oidcCaFile === undefined ? undefined : await caIn(config.oidcCaFile),
    clock,
    log,
  });
  // Its log says when it is away; it is asked again when somebody wants to sign in.
  void provider.discover().catch(() => undefined);
  return provider;
}

async function secretIn(path: string): Promise<string> {
  const secret = (await loadSecret(path))?.trim();
  if (secret) return secret;
  throw new InsituError("request.invalid", `--oidc-client-secret-file: ${path} does not exist or is empty`);
}

async function caIn(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (err) {
    throw new InsituError("request.invalid", `--oidc-ca: cannot read ${path}`, { cause: err });
  }
}
