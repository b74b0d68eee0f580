/**
 * Finds a nats-server that is new enough, and installs Debian's when it may.
 *
 * Uses Node built-ins alone: it runs before the dependencies are there.
 */
import { execFile, spawn } from "node:child_process";
import { accessSync, constants, existsSync, realpathSync, statSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** JetStream with everything that the control plane asks for is there from 2.9 on. */
export const OLDEST = "2.9.0";
/** Debian puts servers where the PATH of ordinary users does not look. */
const EXTRA_DIRECTORIES = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin"];
const VERSION_TIMEOUT_MS = 10_000;

export const INSTALL_HELP = `Install it, then try again:
  Debian, Ubuntu   sudo apt-get update && sudo apt-get install -y nats-server
  macOS            brew install nats-server
  Docker           docker create --name nats nats:2 && docker cp nats:/nats-server ~/nats-server && docker rm nats
                   export INSITU_NATS_SERVER=~/nats-server   (on a Linux host)
Or point INSITU_NATS_SERVER at a nats-server binary of version ${OLDEST} or newer.`;

/**
 * @param {{ env?: NodeJS.ProcessEnv, install?: boolean, say?: (line: string) => void, alsoIn?: string[] }} [options]
 *   `install`: whether apt-get may be run (default false). `say`: where progress goes (default nowhere).
 *   `alsoIn`: directories that are searched after the PATH.
 * @returns {Promise<{ path: string, version: string }>}
 * @throws {Error} with the commands to type, when there is none that will do
 */
export async function findNatsServer({
  env = process.env,
  install = false,
  say = () => {},
  alsoIn = EXTRA_DIRECTORIES,
} = {}) {
  const chosen = env.INSITU_NATS_SERVER;
  if (chosen) {
    const version = await versionOf(chosen);
    if (version === null) {
      throw new Error(
        `INSITU_NATS_SERVER is ${chosen}, which does not answer to --version.\n${INSTALL_HELP}`,
      );
    }
    if (compareVersions(version, OLDEST) < 0) {
      throw new Error(
        `INSITU_NATS_SERVER is ${chosen}, version ${version}; ${OLDEST} is the oldest that will do.\n${INSTALL_HELP}`,
      );
    }
    return { path: chosen, version };
  }

  let found = await everyNatsServer(env, alsoIn);
  if (!found.some(isNewEnough) && install && mayUseApt(env)) {
    say("No nats-server found: installing Debian's package");
    await installWithApt(say, env);
    found = await everyNatsServer(env, alsoIn);
  }
  const best = newest(found);
  if (best === undefined) throw new Error(`No nats-server was found on the PATH.\n${INSTALL_HELP}`);
  if (!isNewEnough(best)) {
    throw new Error(
      `The newest nats-server found is ${best.path}, version ${best.version}; ${OLDEST} is the oldest that will do.\n${INSTALL_HELP}`,
    );
  }
  return best;
}

/** Positive when `a` is newer. A pre-release counts as its release. */
export function compareVersions(a, b) {
  const left = a.split("-")[0].split(".").map(Number);
  const right = b.split("-")[0].split(".").map(Number);
  for (let i = 0; i < 3; i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function isNewEnough(server) {
  return compareVersions(server.version, OLDEST) >= 0;
}

/** Of equals, the first: the PATH's own order decides. */
function newest(servers) {
  return servers.reduce(
    (best, server) => (best && compareVersions(best.version, server.version) >= 0 ? best : server),
    undefined,
  );
}

async function everyNatsServer(env, alsoIn) {
  const directories = [...(env.PATH ?? "").split(delimiter).filter(Boolean), ...alsoIn];
  const seen = new Set();
  const servers = [];
  for (const directory of directories) {
    const path = join(directory, "nats-server");
    if (!isExecutable(path)) continue;
    const real = realpathSync(path);
    if (seen.has(real)) continue;
    seen.add(real);
    const version = await versionOf(path);
    if (version !== null) servers.push({ path, version });
  }
  return servers;
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false; // absent or not ours to run: the same to us
  }
}

/** Of a binary, `nats-server: v2.9.10` becomes `2.9.10`; null when it is not a nats-server. */
async function versionOf(path) {
  try {
    const { stdout } = await run(path, ["--version"], { timeout: VERSION_TIMEOUT_MS });
    return /nats-server: v?(\d+\.\d+\.\d+[^\s]*)/.exec(stdout)?.[1] ?? null;
  } catch {
    return null; // does not start: no candidate
  }
}

export function mayUseApt(env) {
  const aptGet = (env.PATH ?? "")
    .split(delimiter)
    .some((directory) => existsSync(join(directory, "apt-get")));
  return process.getuid?.() === 0 && aptGet;
}

async function installWithApt(say, env) {
  const trouble = await aptInstall("nats-server", say, env);
  if (trouble !== null) throw new Error(`${trouble}.\n${INSTALL_HELP}`);
}

/** Null when the package is there. Package lists may be absent or old; they are refreshed when the first try fails. */
export async function aptInstall(name, say, env) {
  if ((await aptGet(["install", "-y", "--no-install-recommends", name], say, env)) === 0) return null;
  say("Refreshing Debian's package lists");
  if ((await aptGet(["update"], say, env)) !== 0) return "apt-get update failed";
  const code = await aptGet(["install", "-y", "--no-install-recommends", name], say, env);
  return code === 0 ? null : `apt-get install ${name} failed`;
}

/** Resolves with the exit code. The last lines are shown when it failed. */
function aptGet(args, say, env) {
  return new Promise((resolve, reject) => {
    const child = spawn("apt-get", ["-q", ...args], {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...env, DEBIAN_FRONTEND: "noninteractive" },
    });
    let tail = "";
    const keep = (chunk) => {
      tail = (tail + chunk).slice(-2_000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.on("error", reject);
    child.on("close", (code) => {
      if (code !== 0) for (const line of tail.trim().split("\n").slice(-5)) say(`  apt-get: ${line}`);
      resolve(code ?? 1);
    });
  });
}
