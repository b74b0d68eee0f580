/** The sites of a demonstration: a folder each, with its own data, one agent, and a configuration of that data alone. */
import { createHash, X509Certificate } from "node:crypto";
import {
  existsSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { delimiter, dirname, isAbsolute, join } from "node:path";
import type { Demo } from "../../../examples/demo.ts";
import { InsituError } from "../../../shared/errors.ts";
import type { Clock } from "../../../shared/system.ts";
import { decodeJoinToken } from "../../../shared/wire/join-token.ts";
import type { ApiClient } from "../client.ts";

const TOKEN_TTL_MS = 10 * 60_000;
const SLOTS = 2;
const AGENTS_TIMEOUT_MS = 30_000;
const POLL_MS = 40;
const NAMES_MAX = 1_000;

export interface Site {
  environment: string;
  directory: string;
  configFile: string;
  stateDirectory: string;
  /** `environment/name` */
  agentId: string;
}

/**
 * Writes the configuration of one site's agent, with a token to join if it has no identity that is still good.
 * An identity stays good over a restart: it is renewed only when the server is a new one.
 */
export async function prepareSite(
  environment: string,
  options: {
    directory: string;
    demo: Demo;
    client: ApiClient;
    /** Agents that the server knows: their names are taken. */
    knownAgents: ReadonlySet<string>;
    signal: AbortSignal;
  },
): Promise<Site> {
  const { demo, client, knownAgents, signal } = options;
  const directory = join(options.directory, environment);
  const stateDirectory = join(directory, "state");
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const { token } = await client.createJoinToken(
    { environment, ttlMs: TOKEN_TTL_MS, uses: 1, approval: false },
    signal,
  );
  const { caPin, gateway } = decodeJoinToken(token);
  const known = keepIdentity(stateDirectory, { caPin, gateway });
  const name = known ?? freeName(environment, knownAgents);
  const config = {
    name,
    stateDir: "state",
    // Only what lies at this site: a path to another's data is nowhere in it.
    datasets: demo.environments[environment]?.datasets ?? {},
    stepEnv: demo.stepEnv,
    sandbox: { paths: programsOf(demo), user: { uid: STEP_ID, gid: STEP_ID } },
    slots: SLOTS,
    ...(known === null ? { joinToken: token } : {}),
  };
  // Steps of a root agent run as this user; at a real site, whoever owns the data gives that user its rights.
  if (process.getuid?.() === 0) giveAway(join(directory, "data"));
  const configFile = join(directory, "agent.json");
  writeAtomically(configFile, `${JSON.stringify(config, null, 2)}\n`);
  return { environment, directory, configFile, stateDirectory, agentId: `${environment}/${name}` };
}

const STEP_ID = 62_017;

function giveAway(directory: string): void {
  if (!existsSync(directory)) return;
  lchownSync(directory, STEP_ID, STEP_ID);
  for (const entry of readdirSync(directory, { recursive: true, encoding: "utf8" }))
    lchownSync(join(directory, entry), STEP_ID, STEP_ID);
}

/** What the example's steps need of this machine beyond its system directories: Node, and packages. */
function programsOf(demo: Demo): string[] {
  const packages = (demo.stepEnv.NODE_PATH ?? "").split(delimiter);
  const node = dirname(dirname(process.execPath));
  return [node, ...packages].filter((path) => isAbsolute(path) && path !== "/" && !path.startsWith("/usr"));
}

/**
 * The name in an identity that this server gave out. An identity of another server goes away with all its state:
 * nothing in it could ever be delivered. A gateway that moved to another port is written into the identity.
 */
function keepIdentity(stateDirectory: string, wanted: { caPin: string; gateway: string }): string | null {
  const identity = join(stateDirectory, "identity");
  const file = join(identity, "identity.json");
  try {
    const who = JSON.parse(readFileSync(file, "utf8")) as { name?: unknown; gateway?: unknown };
    if (typeof who.name === "string" && pinOf(readFileSync(join(identity, "ca.pem"))) === wanted.caPin) {
      if (who.gateway !== wanted.gateway) {
        writeAtomically(file, JSON.stringify({ ...who, gateway: wanted.gateway }));
      }
      return who.name;
    }
  } catch {
    // None, or one that was cut off while it was written: it joins anew.
  }
  rmSync(stateDirectory, { recursive: true, force: true });
  return null;
}

/** As join tokens pin it: the SHA-256 of the SubjectPublicKeyInfo. */
function pinOf(pem: Buffer): string {
  const key = new X509Certificate(pem).publicKey.export({ type: "spki", format: "der" });
  return `sha256:${createHash("sha256").update(key).digest("hex")}`;
}

function freeName(environment: string, known: ReadonlySet<string>): string {
  for (let number = 1; number <= NAMES_MAX; number++) {
    if (!known.has(`${environment}/agent-${number}`)) return `agent-${number}`;
  }
  throw new InsituError(
    "conflict",
    `${NAMES_MAX} agents of ${environment} are known already; begin anew with --fresh`,
  );
}

/** Holds a token that lets agents in, so nobody else may read it. */
function writeAtomically(file: string, text: string): void {
  writeFileSync(`${file}.new`, text, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

/** Resolves when all agents are connected. @throws InsituError `timeout` that names those who are not */
export async function waitForAgents(
  sites: readonly Site[],
  { client, clock, signal }: { client: ApiClient; clock: Clock; signal: AbortSignal },
): Promise<void> {
  const deadlineMs = clock.monotonicMs() + AGENTS_TIMEOUT_MS;
  for (;;) {
    const agents = await client.listAgents(signal);
    const connected = new Set(agents.filter((agent) => agent.connected).map(({ id }) => id));
    const missing = sites.filter(({ agentId }) => !connected.has(agentId));
    if (missing.length === 0) return;
    if (clock.monotonicMs() > deadlineMs) {
      const names = missing.map(({ agentId }) => agentId).join(", ");
      throw new InsituError(
        "timeout",
        `not connected after ${AGENTS_TIMEOUT_MS / 1000} s: ${names}; their logs say why`,
      );
    }
    await clock.sleep(POLL_MS, signal);
  }
}
