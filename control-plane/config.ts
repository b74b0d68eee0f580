/** The control plane's configuration: flags over environment over defaults, every fault reported at once. */
import { isIPv4, isIPv6 } from "node:net";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { z } from "zod";
import { InsituError } from "../shared/errors.ts";
import { parseRoleRule } from "./access/people.ts";
import { isLoopback } from "./api/serve.ts";
import { trustedProxies } from "./api/source-address.ts";

const Config = z
  .strictObject({
    data: z.string().min(1),
    secrets: z.string().min(1).optional(),
    host: z.string().min(1),
    port: z.coerce.number().int().min(0).max(65_535),
    gatewayHost: z.string().min(1),
    gatewayPort: z.coerce.number().int().min(0).max(65_535),
    /** Where agents reach everything, NATS included; undefined: there is no such port. */
    onePort: z
      .string()
      .transform((text, context) => {
        const found = /^(.+):(\d{1,5})$/.exec(text);
        const port = Number(found?.[2]);
        const host = found?.[1] ?? "";
        const six = /^\[(.*)\]$/.exec(host)?.[1];
        const known = six === undefined ? /^[\w.-]+$/.test(host) : isIPv6(six);
        if (known && port <= 65_535) return { host: six ?? host, port };
        context.addIssue({ code: "custom", message: "must be like 0.0.0.0:443 or [::]:443" });
        return z.NEVER;
      })
      .optional(),
    /** Names or addresses under which agents and people reach this host, beside localhost. */
    publicHosts: z.array(z.string().min(1)),
    /** Of the servers of one NATS, with commas between them. */
    natsUrl: z
      .string()
      .refine((text) => natsUrls(text).every(isNatsUrl), {
        error: "must be nats://host:port or tls://host:port, or several of them with commas",
      })
      .optional(),
    natsPort: z.coerce.number().int().min(0).max(65_535),
    natsHost: z.string().min(1),
    /** Of the embedded nats-server: whether each write is on disk before it is acknowledged, by whoever does it. */
    natsSync: z.enum(["always", "interval"]),
    /** Of a single external nats-server: whether a copy is kept of what it acknowledged and may not have synced. */
    natsCopy: z.enum(["on", "off"]),
    natsCaFile: z.string().optional(),
    natsServer: z.string().optional(),
    agentNatsUser: z.string(),
    agentNatsPassword: z.string(),
    /** Servers of a NATS cluster that each stream is kept on; undefined leaves those that exist as they are. */
    streamReplicas: z
      .enum(["1", "3", "5"], {
        error: "must be 1, 3 or 5: an even number survives no more lost servers than the odd one below it",
      })
      .transform(Number)
      .optional(),
    heartbeatMs: z.coerce.number().int().min(100).max(60_000),
    leaseTtlMs: z.coerce.number().int().min(500).max(600_000),
    offerTtlMs: z.coerce.number().int().min(2_000).max(3_600_000),
    trustDomain: z.string().min(1),
    requireSignedReports: z
      .enum(["true", "false"], { error: "must be true or false" })
      .transform((text) => text === "true"),
    /** Under which people open the console, when that is not the address that the server listens on. */
    publicUrl: z
      .string()
      .refine(isWebAddress, {
        error: "must be https://host[:port], without a path; http:// on loopback alone",
      })
      .optional(),
    trustedProxies: z.array(z.string().transform(networkOf)),
    oidcIssuer: z
      .string()
      .refine(isIssuer, { error: "must be an https:// address without ? and #; http:// on loopback alone" })
      .optional(),
    oidcClientId: z.string().min(1).optional(),
    oidcClientSecretFile: z.string().min(1).optional(),
    oidcCaFile: z.string().min(1).optional(),
    oidcGroupsClaim: z.string().min(1),
    /** Asked for beside openid, profile and email. */
    oidcScopes: z.array(z.string().regex(/^[\x21\x23-\x5b\x5d-\x7e]+$/, { error: "must be one word" })),
    oidcRoles: z.array(z.string().transform(roleRule)),
    logLevel: z.enum(["debug", "info", "warn", "error"]),
    context: z.string().optional(),
  })
  .refine((c) => c.heartbeatMs * 3 <= c.leaseTtlMs, {
    path: ["leaseTtlMs"],
    error: "three heartbeats must fit in a lease: raise --lease-ttl or lower --heartbeat",
  })
  .refine(({ natsUrl }) => natsUrl === undefined || natsUrls(natsUrl).every(isSafe), {
    path: ["natsUrl"],
    error: "there is no plaintext mode off loopback: use tls://",
  })
  .refine(({ natsUrl, streamReplicas = 1 }) => natsUrl !== undefined || streamReplicas === 1, {
    path: ["streamReplicas"],
    error: "needs a NATS cluster: give --nats-url its servers, with commas between them",
  })
  .refine(({ oidcIssuer, oidcClientId }) => (oidcIssuer === undefined) === (oidcClientId === undefined), {
    path: ["oidcIssuer"],
    error: "--oidc-issuer and --oidc-client-id belong together",
  })
  .refine(
    (c) => c.oidcIssuer !== undefined || !(c.oidcClientSecretFile || c.oidcCaFile || c.oidcRoles.length > 0),
    {
      path: ["oidcIssuer"],
      error: "the other --oidc flags are of no use without --oidc-issuer",
    },
  );
export type ServerConfig = Readonly<z.infer<typeof Config>>;

export const SERVER_HELP = `Usage: insitu server [flags]

Runs one replica of the control plane: API and console, the gateway for agents, and, unless --nats-url is given,
a nats-server of its own with its streams in the data directory. Several replicas share one NATS and one directory
of secrets; each has its own data directory, takes its share of the work, and steps in for one that has gone.

Flags (environment variable, default)
  --data DIR              where everything is kept          (INSITU_DATA, ./.insitu/server)
  --secrets DIR           CA, keys and API token; the same for all replicas  (INSITU_SECRETS, <data>/secrets)
  --host ADDR             API and console                   (INSITU_HOST, 127.0.0.1; elsewhere HTTPS)
  --port N                0: a free one                     (INSITU_PORT, 7070)
  --gateway-host ADDR     gateway for agents, mutual TLS    (INSITU_GATEWAY_HOST, 127.0.0.1)
  --gateway-port N        0: a free one                     (INSITU_GATEWAY_PORT, 7443)
  --one-port ADDR:PORT    also a port on which agents reach everything that they need, NATS included: at the sites, no
                          other port need be open. Goes into join tokens, and to agents that are connected
                                                            (INSITU_ONE_PORT; none)
  --public-host NAME      how agents reach this host; may be repeated, the first goes into join tokens
                                                            (INSITU_PUBLIC_HOSTS, comma-separated)
  --nats-url URL          an existing NATS with JetStream   (INSITU_NATS_URL); user and password may be part of it;
                          the servers of a cluster with commas between them
  --stream-replicas N     of a cluster's servers, how many keep each stream: 1, 3 or 5. Streams that exist are raised
                          to it, never lowered        (INSITU_STREAM_REPLICAS, what they have; 1 for new ones)
  --nats-copy on|off      of a single existing one: "on" keeps a copy of what it acknowledged until it is on its disk,
                          and puts back what a power cut took; "off" is for one with sync_interval: always, which is
                          2.10 or newer                        (INSITU_NATS_COPY, on)
  --nats-host ADDR        of the embedded one; off loopback it speaks TLS    (INSITU_NATS_HOST, 127.0.0.1)
  --nats-port N           of the embedded one, 0: a free one (INSITU_NATS_PORT, 4222)
  --nats-sync WHEN        of the embedded one: "always" survives a power cut, "interval" is faster and can lose
                          the last two minutes and more                (INSITU_NATS_SYNC, always)
  --heartbeat MS          between heartbeats of agents      (INSITU_HEARTBEAT_MS, 5000)
  --lease-ttl MS          a lease not renewed for this long is given to another agent (INSITU_LEASE_TTL_MS, 30000)
  --offer-ttl MS          an offer that nobody takes is made again after     (INSITU_OFFER_TTL_MS, 120000)
  --trust-domain NAME     of the identities of agents       (INSITU_TRUST_DOMAIN, insitu.local)
  --require-signed-reports   takes no report that its agent has not signed, as agents of older releases do not
                                                            (INSITU_REQUIRE_SIGNED_REPORTS=true)
  --public-url URL        under which people open the console, when a proxy stands before it   (INSITU_PUBLIC_URL)
  --trusted-proxy ADDR[/BITS]   a proxy whose X-Forwarded-For is believed; may be repeated
                                                            (INSITU_TRUSTED_PROXIES, comma-separated)
  --oidc-issuer URL       OpenID provider with which people sign in      (INSITU_OIDC_ISSUER)
  --oidc-client-id ID     as it knows this server                        (INSITU_OIDC_CLIENT_ID)
  --oidc-client-secret-file FILE   mode 0600; without it the client is a public one   (INSITU_OIDC_CLIENT_SECRET_FILE)
  --oidc-role GROUP=ROLE[@PIPELINE,…]   what who is in the group may do; may be repeated
                                                            (INSITU_OIDC_ROLES, with ; between them)
  --oidc-groups-claim NAME   where the provider lists groups (INSITU_OIDC_GROUPS_CLAIM, groups)
  --oidc-scope NAME       to ask for beside openid, profile and email; may be repeated
                                                            (INSITU_OIDC_SCOPES, space-separated)
  --oidc-ca FILE          PEM of the authority that vouches for the provider   (INSITU_OIDC_CA_FILE, the system's)
  --context FILE          also write { server, token } there, for the command line
  --log-level LEVEL       debug, info, warn, error          (INSITU_LOG_LEVEL, info)

More for an existing NATS: INSITU_NATS_CA_FILE; with users in place of accounts INSITU_AGENT_NATS_USER, ..._PASSWORD.
insitu nats init writes the configuration of a NATS with an account for each environment, and the secrets for it.
The nats-server binary: INSITU_NATS_SERVER, else the newest on the PATH.

Examples
  insitu server
  insitu server --host 0.0.0.0 --gateway-host 0.0.0.0 --nats-host 0.0.0.0 --public-host insitu.example.org
  insitu server --one-port 0.0.0.0:443 --public-host insitu.example.org
  insitu server --oidc-issuer https://id.example.org --oidc-client-id insitu --oidc-role platform=admin \\
                --oidc-role "science=runner@nightly,weekly"
  insitu server --nats-url tls://nats.example.org:4222
  insitu server --nats-url tls://n1.example.org:4222,tls://n2.example.org:4222,tls://n3.example.org:4222 \\
                --stream-replicas 3
  insitu server --nats-url tls://nats.example.org:4222 --secrets /etc/insitu/secrets --data /var/lib/insitu/b
`;

const FLAGS = {
  data: { type: "string" },
  secrets: { type: "string" },
  host: { type: "string" },
  port: { type: "string" },
  "gateway-host": { type: "string" },
  "gateway-port": { type: "string" },
  "one-port": { type: "string" },
  "public-host": { type: "string", multiple: true },
  "nats-url": { type: "string" },
  "stream-replicas": { type: "string" },
  "nats-host": { type: "string" },
  "nats-port": { type: "string" },
  "nats-sync": { type: "string" },
  "nats-copy": { type: "string" },
  heartbeat: { type: "string" },
  "lease-ttl": { type: "string" },
  "offer-ttl": { type: "string" },
  "trust-domain": { type: "string" },
  "require-signed-reports": { type: "boolean" },
  "public-url": { type: "string" },
  "trusted-proxy": { type: "string", multiple: true },
  "oidc-issuer": { type: "string" },
  "oidc-client-id": { type: "string" },
  "oidc-client-secret-file": { type: "string" },
  "oidc-groups-claim": { type: "string" },
  "oidc-scope": { type: "string", multiple: true },
  "oidc-role": { type: "string", multiple: true },
  "oidc-ca": { type: "string" },
  context: { type: "string" },
  "log-level": { type: "string" },
  help: { type: "boolean", short: "h" },
} as const;

/** `help` when that was asked for. @throws request.invalid with every fault */
export function loadConfig(argv: string[], env: NodeJS.ProcessEnv): ServerConfig | "help" {
  let flags: ReturnType<typeof parseFlags>;
  try {
    flags = parseFlags(argv);
  } catch (err) {
    const message = err instanceof Error ? err.message : String(err);
    throw new InsituError("request.invalid", `${message} (see insitu server --help)`, { cause: err });
  }
  if (flags.help) return "help";
  const given = {
    data: flags.data ?? env.INSITU_DATA ?? ".insitu/server",
    secrets: flags.secrets ?? env.INSITU_SECRETS,
    host: flags.host ?? env.INSITU_HOST ?? "127.0.0.1",
    port: flags.port ?? env.INSITU_PORT ?? 7070,
    gatewayHost: flags["gateway-host"] ?? env.INSITU_GATEWAY_HOST ?? "127.0.0.1",
    gatewayPort: flags["gateway-port"] ?? env.INSITU_GATEWAY_PORT ?? 7443,
    onePort: flags["one-port"] ?? env.INSITU_ONE_PORT,
    publicHosts: flags["public-host"] ?? env.INSITU_PUBLIC_HOSTS?.split(",").map((name) => name.trim()) ?? [],
    natsUrl: flags["nats-url"] ?? env.INSITU_NATS_URL,
    natsHost: flags["nats-host"] ?? env.INSITU_NATS_HOST ?? "127.0.0.1",
    natsPort: flags["nats-port"] ?? env.INSITU_NATS_PORT ?? 4222,
    natsSync: flags["nats-sync"] ?? env.INSITU_NATS_SYNC ?? "always",
    natsCopy: flags["nats-copy"] ?? env.INSITU_NATS_COPY ?? "on",
    natsCaFile: env.INSITU_NATS_CA_FILE,
    natsServer: env.INSITU_NATS_SERVER,
    agentNatsUser: env.INSITU_AGENT_NATS_USER ?? "",
    agentNatsPassword: env.INSITU_AGENT_NATS_PASSWORD ?? "",
    streamReplicas: flags["stream-replicas"] ?? env.INSITU_STREAM_REPLICAS,
    heartbeatMs: flags.heartbeat ?? env.INSITU_HEARTBEAT_MS ?? 5_000,
    leaseTtlMs: flags["lease-ttl"] ?? env.INSITU_LEASE_TTL_MS ?? 30_000,
    offerTtlMs: flags["offer-ttl"] ?? env.INSITU_OFFER_TTL_MS ?? 120_000,
    trustDomain: flags["trust-domain"] ?? env.INSITU_TRUST_DOMAIN ?? "insitu.local",
    requireSignedReports: String(
      flags["require-signed-reports"] ?? env.INSITU_REQUIRE_SIGNED_REPORTS ?? false,
    ),
    publicUrl: flags["public-url"] ?? env.INSITU_PUBLIC_URL,
    trustedProxies: flags["trusted-proxy"] ?? words(env.INSITU_TRUSTED_PROXIES, ","),
    oidcIssuer: flags["oidc-issuer"] ?? env.INSITU_OIDC_ISSUER,
    oidcClientId: flags["oidc-client-id"] ?? env.INSITU_OIDC_CLIENT_ID,
    oidcClientSecretFile: flags["oidc-client-secret-file"] ?? env.INSITU_OIDC_CLIENT_SECRET_FILE,
    oidcCaFile: flags["oidc-ca"] ?? env.INSITU_OIDC_CA_FILE,
    oidcGroupsClaim: flags["oidc-groups-claim"] ?? env.INSITU_OIDC_GROUPS_CLAIM ?? "groups",
    oidcScopes: flags["oidc-scope"] ?? words(env.INSITU_OIDC_SCOPES, " "),
    oidcRoles: flags["oidc-role"] ?? words(env.INSITU_OIDC_ROLES, ";"),
    logLevel: flags["log-level"] ?? env.INSITU_LOG_LEVEL ?? "info",
    context: flags.context,
  };
  const parsed = Config.safeParse(given);
  if (!parsed.success) {
    const faults = parsed.error.issues.map((issue) => `  ${issue.path.join(".")}: ${issue.message}`);
    throw new InsituError(
      "request.invalid",
      `the server's configuration is not valid:\n${faults.join("\n")}`,
    );
  }
  const { data, secrets } = parsed.data;
  return Object.freeze({
    ...parsed.data,
    data: resolve(data),
    ...(secrets === undefined ? {} : { secrets: resolve(secrets) }),
  });
}

function words(text: string | undefined, separator: string): string[] {
  return (text ?? "").split(separator).flatMap((word) => (word.trim() === "" ? [] : [word.trim()]));
}

function networkOf(text: string, context: z.core.$RefinementCtx): string {
  return orIssue(text, context, () => trustedProxies([text]) && text);
}

function roleRule(text: string, context: z.core.$RefinementCtx): ReturnType<typeof parseRoleRule> {
  return orIssue(text, context, () => parseRoleRule(text));
}

function orIssue<T>(text: string, context: z.core.$RefinementCtx, parse: () => T): T {
  try {
    return parse();
  } catch (err) {
    context.issues.push({ code: "custom", message: InsituError.from(err).message, input: text });
    return z.NEVER;
  }
}

function isWebAddress(text: string): boolean {
  return isIssuer(text) && new URL(text).pathname === "/";
}

/** OpenID Connect Discovery 1.0, section 3. */
function isIssuer(text: string): boolean {
  if (!z.url({ protocol: /^https?$/ }).safeParse(text).success) return false;
  const { protocol, hostname, search, hash, username } = new URL(text);
  const bare = search === "" && hash === "" && username === "";
  return bare && (protocol === "https:" || isLoopback(hostname.replace(/^\[|\]$/g, "")));
}

function parseFlags(argv: string[]) {
  return parseArgs({ args: argv, options: FLAGS }).values;
}

/** @param text one address, or several with commas between them */
export function natsUrls(text: string): string[] {
  return text.split(",").map((url) => url.trim());
}

function isNatsUrl(text: string): boolean {
  return z.url({ protocol: /^(nats|tls)$/ }).safeParse(text).success;
}

function isSafe(url: string): boolean {
  return !isNatsUrl(url) || url.startsWith("tls:") || isLoopbackUrl(url);
}

function isLoopbackUrl(url: string): boolean {
  const { hostname } = new URL(url);
  // Only an address: 127.0.0.1.example.org is a name, of whoever owns it.
  return (
    hostname === "localhost" || hostname === "[::1]" || (isIPv4(hostname) && hostname.startsWith("127."))
  );
}
