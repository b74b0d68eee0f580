/** The agent's configuration: a file, flags over it, and the only reader of the environment. */
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { availableParallelism, hostname } from "node:os";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { InsituError } from "../shared/errors.ts";
import { FIELD_PATTERN, Name } from "../shared/model/names.ts";
import { ProxyConfig, proxyOf, proxyOfEnvironment, type SiteProxy } from "./network/proxy.ts";
import { SandboxConfig } from "./sandbox/sandbox-config.ts";
import { SecretsConfig, VaultConfig } from "./secrets/secret-config.ts";

const MiB = 1024 * 1024;

const Config = z
  .strictObject({
    /** Holds identity, journal, artifacts and the files of running steps. Relative to the configuration file. */
    stateDir: z.string().min(1),
    /** Unique within the environment. Default: the host's name. */
    name: Name,
    /** Needed until the agent has an identity. */
    joinToken: z.string().optional(),
    /** Steps at the same time. Default: one per core. */
    slots: z.coerce.number().int().min(1).max(1024),
    executors: z.array(z.enum(["process", "noop", "container"])).min(1),
    /** Where each dataset lies at this site: name → path. */
    datasets: z.record(Name, z.string()),
    labels: z.record(z.string(), z.string()),
    /** What steps see of the environment, besides what the product sets. */
    stepEnv: z.record(z.string().regex(FIELD_PATTERN), z.string()),
    logLevel: z.enum(["debug", "info", "warn", "error"]),
    /** Logs that are not delivered yet: beyond this the oldest are given up, and counted. */
    logSpoolMaxBytes: z.coerce.number().int().min(MiB),
    /** Reports that are not delivered yet: beyond this the agent takes no more work. */
    outboxMaxBytes: z.coerce.number().int().min(MiB),
    /** Less free disk than this, and the agent takes no more work. */
    diskFreeMinBytes: z.coerce.number().int().min(0),
    /** Between asking a step's processes to end and killing them. */
    killGraceMs: z.coerce.number().int().min(0).max(600_000),
    /** What becomes of running steps when the agent is stopped: they go on and are taken up again, or they end. */
    onStop: z.enum(["leave", "interrupt"]),
    /** How steps are kept from the rest of the host. See docs/security/sandbox.md. */
    sandbox: SandboxConfig.prefault({}),
    /** Where the secrets that steps name come from at this site. See docs/security/secrets.md. */
    secrets: SecretsConfig.default({}),
    /** Of secrets that come from one. */
    vault: VaultConfig.optional(),
    /** The file with what the site allows. Relative to the configuration file. See docs/security/site-policy.md. */
    sitePolicy: z.string().min(1).optional(),
    /** Public keys of the site's team, one of which has to have signed it. Relative to the configuration file. */
    sitePolicyKey: z.string().min(1).optional(),
    /** The site's HTTP proxy; without it that of HTTPS_PROXY. See docs/install-agent.md. */
    proxy: ProxyConfig.optional(),
    /** PEM files with authorities of the site, trusted beside the system's for a proxy and a NATS of the site's. */
    ca: z.array(z.string().min(1)).default([]),
  })
  .superRefine(({ secrets, vault, sitePolicy, sitePolicyKey }, context) => {
    if (sitePolicyKey !== undefined && sitePolicy === undefined) {
      const message = "there is no sitePolicy that could be signed with it; name both, or none";
      context.addIssue({ code: "custom", path: ["sitePolicyKey"], message });
    }
    if (vault !== undefined) return;
    for (const [name, { from }] of Object.entries(secrets)) {
      if (from !== "vault") continue;
      const message = "comes from a vault, and the key vault, with address and tokenFile, is missing";
      context.addIssue({ code: "custom", path: ["secrets", name], message });
    }
  });
export type AgentConfig = Readonly<
  Omit<z.infer<typeof Config>, "proxy" | "ca"> & { proxy: SiteProxy | undefined; siteCaPem: string }
>;

const DEFAULTS = {
  executors: ["process", "noop", "container"],
  datasets: {},
  labels: {},
  stepEnv: {},
  logLevel: "info",
  logSpoolMaxBytes: 1024 * MiB,
  outboxMaxBytes: 256 * MiB,
  diskFreeMinBytes: 64 * MiB,
  killGraceMs: 5_000,
  onStop: "leave",
};

/** Flags that set one key each. */
const SCALAR_FLAGS = {
  "state-dir": "stateDir",
  name: "name",
  "join-token": "joinToken",
  slots: "slots",
  "log-level": "logLevel",
  "on-stop": "onStop",
  "site-policy": "sitePolicy",
  "site-policy-key": "sitePolicyKey",
} as const;
/** Flags that set one key of a part. */
const SANDBOX_FLAG = "sandbox";
const PAIR_FLAGS = { dataset: "datasets", label: "labels", "step-env": "stepEnv" } as const;

export interface Flags {
  config?: string | undefined;
  [flag: string]: string | string[] | undefined;
}

/**
 * File, then environment (`INSITU_JOIN_TOKEN`, `INSITU_LOG_LEVEL`), then flags. `HTTPS_PROXY` and `NO_PROXY` count when
 * the file has no `proxy`.
 *
 * @throws request.invalid with every bad key at once
 */
export async function loadConfig(flags: Flags, env: NodeJS.ProcessEnv): Promise<AgentConfig> {
  const file = flags.config;
  const base = file === undefined ? process.cwd() : dirname(resolve(file));
  const raw: Record<string, unknown> = {
    ...DEFAULTS,
    name: hostName(),
    slots: availableParallelism(),
    ...(file === undefined ? {} : await readFile(file)),
  };
  if (env.INSITU_JOIN_TOKEN) raw.joinToken = env.INSITU_JOIN_TOKEN;
  if (env.INSITU_LOG_LEVEL) raw.logLevel = env.INSITU_LOG_LEVEL;
  for (const [flag, key] of Object.entries(SCALAR_FLAGS))
    if (flags[flag] !== undefined) raw[key] = flags[flag];
  if (flags[SANDBOX_FLAG] !== undefined && (raw.sandbox === undefined || isMap(raw.sandbox)))
    raw.sandbox = { ...raw.sandbox, mode: flags[SANDBOX_FLAG] };
  const problems: string[] = [];
  for (const [flag, key] of Object.entries(PAIR_FLAGS)) {
    const given = pairs(flag, flags[flag], problems);
    // What is no map of names is left as it is, for the schema to refuse.
    if (isMap(raw[key])) raw[key] = { ...raw[key], ...given };
  }
  if (isMap(raw.proxy) && typeof raw.proxy.passwordFile === "string")
    raw.proxy = { ...raw.proxy, passwordFile: resolve(base, raw.proxy.passwordFile) };
  const parsed = Config.safeParse(raw);
  if (!parsed.success) {
    for (const issue of parsed.error.issues)
      problems.push(`  ${issue.path.join(".") || "(top)"}: ${issue.message}`);
  }
  const siteCaPem = parsed.success ? readCas(base, parsed.data.ca, problems) : "";
  const proxy = parsed.success ? proxyFrom(parsed.data.proxy, env, problems) : undefined;
  if (!parsed.success || problems.length > 0) {
    const source = file ?? "flags";
    throw new InsituError(
      "request.invalid",
      `the agent's configuration (${source}) is not valid:\n${problems.join("\n")}`,
    );
  }
  const { ca: _, ...config } = parsed.data;
  const datasets = Object.fromEntries(
    Object.entries(config.datasets).map(([name, path]) => [
      name,
      path.includes("://") ? path : resolve(base, path),
    ]),
  );
  const PATH = env.PATH ?? "/usr/local/bin:/usr/bin:/bin";
  const stepEnv = { PATH, LANG: "C.UTF-8", ...config.stepEnv };
  const stateDir = resolve(base, config.stateDir);
  const sitePolicy = config.sitePolicy === undefined ? {} : { sitePolicy: resolve(base, config.sitePolicy) };
  const sitePolicyKey =
    config.sitePolicyKey === undefined ? {} : { sitePolicyKey: resolve(base, config.sitePolicyKey) };
  const secrets = Object.fromEntries(
    Object.entries(config.secrets).map(([name, source]) => [
      name,
      source.from === "file" ? { ...source, path: resolve(base, source.path) } : source,
    ]),
  );
  const { vault } = config;
  if (vault) {
    vault.tokenFile = resolve(base, vault.tokenFile);
    if (vault.caFile !== undefined) vault.caFile = resolve(base, vault.caFile);
  }
  return Object.freeze({
    ...config,
    ...sitePolicy,
    ...sitePolicyKey,
    secrets,
    stateDir,
    datasets,
    stepEnv,
    proxy,
    siteCaPem,
  });
}

function proxyFrom(
  given: z.infer<typeof ProxyConfig> | undefined,
  env: NodeJS.ProcessEnv,
  problems: string[],
): SiteProxy | undefined {
  if (given) return proxyOf(given);
  try {
    return proxyOfEnvironment(env);
  } catch (err) {
    problems.push(`  ${(err as Error).message}`);
    return undefined;
  }
}

/** Each file is checked here: one that cannot be read would be missed much later, as a certificate that nobody knows. */
function readCas(base: string, files: readonly string[], problems: string[]): string {
  return files
    .map((file) => {
      const path = resolve(base, file);
      try {
        const pem = readFileSync(path, "utf8");
        const found = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
        if (found.length === 0) throw new Error("there is no certificate in it");
        for (const one of found) new X509Certificate(one);
        return found.join("\n");
      } catch (err) {
        problems.push(`  ca: ${path} is no file of PEM certificates (${(err as Error).message})`);
        return "";
      }
    })
    .join("\n");
}

async function readFile(file: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (err) {
    throw new InsituError("request.invalid", `cannot read the configuration ${file}`, { cause: err });
  }
  // Not the package itself: bundled, a CommonJS module that is imported late has no named exports.
  const { parseYamlText } = await import("./yaml-text.ts");
  try {
    const parsed = parseYamlText(text);
    if (isMap(parsed)) return parsed;
  } catch (err) {
    const message = err instanceof Error ? err.message : String(err);
    throw new InsituError("request.invalid", `${file} is not YAML: ${message}`, { cause: err });
  }
  throw new InsituError("request.invalid", `${file} must hold keys and values, like "slots: 4"`);
}

function pairs(
  flag: string,
  given: string | string[] | undefined,
  problems: string[],
): Record<string, string> {
  const found: Record<string, string> = {};
  for (const item of given === undefined ? [] : [given].flat()) {
    const at = item.indexOf("=");
    if (at <= 0) problems.push(`  --${flag} takes name=value, not "${item}"`);
    else found[item.slice(0, at)] = item.slice(at + 1);
  }
  return found;
}

function isMap(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function hostName(): string {
  const name = hostname()
    .toLowerCase()
    .replace(/[^a-z0-9-]+/g, "-");
  return name.replace(/^-+|-+$/g, "").slice(0, 63) || "agent";
}
