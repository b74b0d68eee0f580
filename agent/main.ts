/** The command `insitu-agent`. */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { closeSync, existsSync, openSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type Logger, pino } from "pino";
import { InsituError } from "../shared/errors.ts";
import { systemClock, systemRandom } from "../shared/system.ts";
import { SOFTWARE_VERSION } from "../shared/wire/protocol.ts";
import { Agent } from "./agent.ts";
import { type AgentConfig, type Flags, loadConfig } from "./config.ts";
import { enrol } from "./enrolment/enrol.ts";
import { enrolmentKey, type Identity, loadIdentity, saveIdentity } from "./enrolment/identity.ts";
import { Network } from "./network/network.ts";
import { CedarProcess } from "./policy/cedar-process.ts";
import { readOwnedFile } from "./policy/owned-file.ts";
import { readPublicKeys } from "./policy/policy-seal.ts";
import { SealKeeper } from "./policy/seal-keeper.ts";
import { SitePolicy } from "./policy/site-policy.ts";
import { type HostFacts, probeHost } from "./sandbox/box-host.ts";
import { memoryOfHost, probeGroups } from "./sandbox/group-host.ts";
import { Sandbox } from "./sandbox/sandbox.ts";
import { Secrets } from "./secrets/secrets.ts";
import { softwareVersion } from "./uplink/version.ts";

const HELP = `insitu-agent — runs steps next to the data, over connections that it opens itself

Usage
  insitu-agent run   [--config FILE] [flags]   enrol if need be, then take work until stopped
  insitu-agent enrol [--config FILE] [flags]   exchange a join token for an identity, and exit
  insitu-agent doctor [--config FILE] [flags]  say what is in the way to the control plane, and what to ask the
                                               network team for; before enrolment (with a join token) and after it
  insitu-agent policy init|check|sign|verify   what this site allows: write such a file, ask it, sign it (policy --help)
  insitu-agent images import|list|remove       the container images that steps may run here (images --help)
  insitu-agent version

Flags
  --config FILE          YAML or JSON with the keys below; flags win over it
  --state-dir DIR        identity, journal, artifacts, running steps          (stateDir)
  --name NAME            unique in its environment; default: the host's name   (name)
  --join-token TOKEN     from "insitu join-token create"; "-" reads it from standard input,
                         so that it is in no list of processes                 (joinToken)
  --slots N              steps at the same time; default: one per core         (slots)
  --dataset NAME=PATH    where a dataset lies at this site; may be repeated    (datasets)
  --label KEY=VALUE      shown in the fleet; may be repeated                   (labels)
  --step-env KEY=VALUE   environment of steps; may be repeated                 (stepEnv)
  --on-stop leave|interrupt
                         running steps go on when the agent stops, and its next start takes them up again;
                         or they end. Default: leave                           (onStop)
  --sandbox required|preferred|off
                         whether steps run in a box; default: preferred         (sandbox.mode)
  --site-policy FILE     what this site allows, whatever the control plane asks for     (sitePolicy)
  --site-policy-key FILE public keys of the site's team, one of which has to have signed it  (sitePolicyKey)
  -o, --output text|json how doctor says it; default: text
  --log-level LEVEL      debug, info, warn or error                            (logLevel)

Only in the file: where secrets come from, secrets and vault (docs/security/secrets.md).

Environment
  INSITU_JOIN_TOKEN, INSITU_LOG_LEVEL
  HTTPS_PROXY, NO_PROXY  the site's HTTP proxy, when the configuration has no "proxy"

Examples
  insitu-agent run --state-dir ./state --join-token insitu1.eyJ… --dataset patients=/srv/patients.parquet
  insitu-agent enrol --config /etc/insitu/agent.yaml --join-token -
  insitu-agent run --config /etc/insitu/agent.yaml
  insitu-agent doctor --config /etc/insitu/agent.yaml
  insitu-agent doctor --state-dir ./state --join-token insitu1.eyJ… -o json

Exit codes: 0 stopped as asked, nothing in the way · 1 failed, something is in the way · 2 bad configuration · 6 enrolment refused · 8 control plane not reached
`;

const FLAGS = {
  config: { type: "string" },
  "state-dir": { type: "string" },
  name: { type: "string" },
  "join-token": { type: "string" },
  slots: { type: "string" },
  dataset: { type: "string", multiple: true },
  label: { type: "string", multiple: true },
  "step-env": { type: "string", multiple: true },
  "log-level": { type: "string" },
  "on-stop": { type: "string" },
  sandbox: { type: "string" },
  "site-policy": { type: "string" },
  "site-policy-key": { type: "string" },
  output: { type: "string", short: "o" },
  help: { type: "boolean", short: "h" },
} as const;

const SUPERVISOR_LOG_MAX_BYTES = 1024 * 1024;

async function main(argv: string[]): Promise<number> {
  if (argv[0] === "policy") {
    const { policyCommand } = await import("./policy/policy-command.ts");
    const write = (text: string): void => void process.stdout.write(text);
    return await policyCommand(argv.slice(1), { write, nowMs: () => systemClock.wallMs(), uid: ownUser() });
  }
  if (argv[0] === "images") {
    const { imagesCommand } = await import("./images/images-command.ts");
    const write = (text: string): void => void process.stdout.write(text);
    const world = { write, nowMs: () => systemClock.wallMs(), uid: ownUser(), env: process.env };
    return await imagesCommand(argv.slice(1), world);
  }
  const { values, positionals } = parse(argv);
  const [command] = positionals;
  if (values.help || command === undefined || command === "help") {
    process.stdout.write(HELP);
    return command === undefined && !values.help ? 2 : 0;
  }
  if (command === "version") {
    process.stdout.write(`${softwareVersion().software}\n`);
    return 0;
  }
  if (command !== "run" && command !== "enrol" && command !== "doctor") {
    throw new InsituError(
      "request.invalid",
      `there is no command "${command}"; it is run, enrol, doctor, policy, images or version`,
    );
  }
  const { output = "text" } = values;
  if (output !== "text" && output !== "json")
    throw new InsituError("request.invalid", `--output is text or json, not "${output}"`);
  if (values["join-token"] === "-") values["join-token"] = readFileSync(0, "utf8").trim();
  const config = await loadConfig(values as Flags, process.env);
  const log = pino({
    level: config.logLevel,
    base: { name: config.name },
    redact: ["joinToken", "password"],
  });
  await using network = new Network({ clock: systemClock, proxy: config.proxy, siteCaPem: config.siteCaPem });
  if (command === "doctor") return await doctor(config, network, output);
  const identity = await identityOf(config, network, log);
  if (command === "enrol") return 0;
  return await run(config, { identity, network }, log);
}

async function doctor(config: AgentConfig, network: Network, output: "text" | "json"): Promise<number> {
  const { examine } = await import("./doctor/doctor.ts");
  const { asJson, asText, exitCodeOf } = await import("./doctor/report.ts");
  const probe = () =>
    probeHost({ path: process.env.PATH ?? "", user: config.sandbox.user, clock: systemClock });
  const { gateway, findings } = await examine(config, { network, clock: systemClock, probe });
  process.stdout.write(output === "json" ? asJson(gateway, findings) : asText(gateway, findings));
  return exitCodeOf(findings);
}

/** In a session of its own, and with nothing of the agent's environment: it lives on when the agent does not. */
function launchSupervisor(directory: string, socketPath: string, failed: (why: Error) => void): void {
  const program = fileURLToPath(new URL("./insitu-supervisor.js", import.meta.url));
  const { PATH = "" } = process.env;
  const log = openLog(join(dirname(dirname(directory)), "supervisor.log"));
  const child = spawn(process.execPath, [program, directory, socketPath, SOFTWARE_VERSION], {
    detached: true,
    stdio: ["ignore", "ignore", log ?? "ignore"],
    env: { PATH },
  });
  child.on("error", failed);
  child.once("exit", (code, signal) => failed(new Error(`it ended with ${signal ?? `exit code ${code}`}`)));
  child.unref();
  if (log !== undefined) closeSync(log);
}

/** With nothing of the agent's environment. Its heap is small; that of WebAssembly is not in it. */
function launchEvaluator(): ChildProcessWithoutNullStreams {
  const program = fileURLToPath(new URL("./insitu-evaluator.js", import.meta.url));
  return spawn(process.execPath, ["--max-old-space-size=64", program], { stdio: "pipe", env: {} });
}

/** Anew when it has grown: nobody reads what was complained of long ago. Undefined when it cannot be written. */
function openLog(path: string): number | undefined {
  try {
    const grown = existsSync(path) && statSync(path).size > SUPERVISOR_LOG_MAX_BYTES;
    return openSync(path, grown ? "w" : "a", 0o600);
  } catch {
    return undefined; // a full disk, for example: steps run all the same
  }
}

function parse(argv: string[]) {
  try {
    return parseArgs({ args: argv, options: FLAGS, allowPositionals: true });
  } catch (err) {
    const message = err instanceof Error ? err.message : String(err);
    throw new InsituError("request.invalid", `${message} (see insitu-agent --help)`, { cause: err });
  }
}

async function identityOf(config: AgentConfig, network: Network, log: Logger): Promise<Identity> {
  const known = loadIdentity(config.stateDir);
  if (known) return known;
  if (config.joinToken === undefined) {
    throw new InsituError(
      "auth.missing",
      `this agent has no identity in ${config.stateDir} yet; give it a join token (--join-token, made by "insitu join-token create")`,
    );
  }
  saveIdentity(
    config.stateDir,
    await enrol({
      joinToken: config.joinToken,
      name: config.name,
      keyPem: enrolmentKey(config.stateDir),
      clock: systemClock,
      waits: (fingerprint) =>
        log.warn(
          { agentName: config.name, fingerprint },
          "waiting for approval: somebody has to say `insitu agents approve`, and to compare the fingerprint first",
        ),
      network,
    }),
  );
  const identity = loadIdentity(config.stateDir)!;
  log.info({ agent: identity.id, notAfter: new Date(identity.notAfterMs).toISOString() }, "enrolled");
  return identity;
}

/** What the agent reads secrets from. */
function secretFilesOf({ secrets, vault }: AgentConfig): string[] {
  const files = Object.values(secrets).flatMap((source) => (source.from === "file" ? [source.path] : []));
  return vault ? [...files, vault.tokenFile] : files;
}

function secretsOf({ secrets: sources, vault }: AgentConfig): Secrets {
  const memoryDirectories = ["/dev/shm", process.env.XDG_RUNTIME_DIR ?? ""].filter((path) => path !== "");
  return new Secrets({ clock: systemClock, sources, vault, environment: process.env, memoryDirectories });
}

/** @throws request.invalid when the configuration requires what the host cannot do */
async function sandboxOf(config: AgentConfig, log: Logger): Promise<Sandbox> {
  const { stateDir, datasets, sandbox: wanted } = config;
  const facts: HostFacts =
    wanted.mode === "off"
      ? { can: false, reason: "switched off" }
      : await probeHost({ path: process.env.PATH ?? "", user: wanted.user, clock: systemClock });
  if (wanted.mode === "required" && !facts.can) {
    throw new InsituError(
      "request.invalid",
      `sandbox.mode is required, and this host cannot: ${facts.reason} (see docs/security/sandbox.md)`,
    );
  }
  const hidden = secretFilesOf(config);
  const groups = facts.can ? await probeGroups(systemClock) : { host: {}, lacks: {} };
  const hostMemoryBytes = memoryOfHost();
  const sandbox = new Sandbox({ config: wanted, facts, groups, hostMemoryBytes, stateDir, datasets, hidden });
  const { held, notHeld } = sandbox.facts;
  if (sandbox.boxes) log.info({ sandbox: sandbox.summary, limits: held }, "steps run in a sandbox");
  else log.warn({ sandbox: sandbox.summary, unboxedUpTo: wanted.unboxedUpTo }, "steps run without a sandbox");
  if (Object.keys(notHeld).length > 0)
    log.warn({ notHeld }, "some limits of steps are not held on this host");
  if (wanted.egress.length > 0 && !sandbox.letsOut)
    log.warn({ reason: sandbox.noWayOut }, "steps cannot be let out to the targets of sandbox.egress");
  return sandbox;
}

/** By whom the policy's file may be written, besides root. */
function ownUser(): number {
  return process.getuid?.() ?? 0;
}

/** @throws request.invalid when the keys that have to have signed it cannot be used: no start without them */
function policyOf(config: AgentConfig, environment: string, log: Logger): SitePolicy | undefined {
  if (config.sitePolicy === undefined) return undefined;
  const { sitePolicyKey } = config;
  const uid = ownUser();
  const seals =
    sitePolicyKey === undefined
      ? undefined
      : new SealKeeper({
          keys: readPublicKeys(sitePolicyKey, readOwnedFile(sitePolicyKey, uid).text),
          environment,
          uid,
          statePath: join(config.stateDir, "site-policy.json"),
        });
  const process = { clock: systemClock, log, launch: launchEvaluator };
  return new SitePolicy({
    path: config.sitePolicy,
    uid,
    seals,
    openCedar: (file, text) => CedarProcess.open(process, file, text),
    clock: systemClock,
    log,
  });
}

async function run(
  config: AgentConfig,
  { identity, network }: { identity: Identity; network: Network },
  log: Logger,
): Promise<number> {
  const sandbox = await sandboxOf(config, log);
  const agent = new Agent(config, identity, {
    sandbox,
    network,
    policy: policyOf(config, identity.environment, log),
    secrets: secretsOf(config),
    clock: systemClock,
    random: systemRandom,
    log,
    launchSupervisor,
  });
  const stopped = new Promise<string>((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => resolve(signal));
    // Started by `insitu dev`: ends with it, however it ended.
    if (process.connected) process.once("disconnect", () => resolve("its parent has gone"));
  });
  await agent.start();
  log.info({ agent: identity.id, slots: config.slots, pid: process.pid }, "agent started");
  await agent.stop(await stopped);
  return 0;
}

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
    if (process.connected) process.disconnect();
  },
  (thrown: unknown) => {
    const err = InsituError.from(thrown);
    process.stderr.write(`insitu-agent: ${err.message}\n`);
    if (err.code === "internal" && err.stack) process.stderr.write(`${err.stack}\n`);
    process.exitCode = err.exitCode;
    if (process.connected) process.disconnect();
  },
);
