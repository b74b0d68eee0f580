/** Finds and stops a nats-server whose control plane was killed. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";

const run = promisify(execFile);
const POLL_MS = 20;
const TERM_GRACE_MS = 5_000;
const KILL_GRACE_MS = 5_000;

/**
 * Stops the process in `nats.pid` when it is a nats-server of our configuration file and its parent is gone or
 * is this process. A pid file alone proves nothing: after a reboot its number may be anybody's.
 *
 * @throws {InsituError} `unavailable` when its parent lives: another control plane uses the directory.
 */
export async function stopLeftOver(options: {
  directory: string;
  configFile: string;
  clock: Clock;
}): Promise<void> {
  const { directory, configFile, clock } = options;
  const pid = await readPid(join(directory, "nats.pid"));
  if (pid === null || !(await isOurServer(pid, configFile))) return;
  const parent = await parentOf(pid);
  if (parent !== null && parent !== process.pid && (await isNode(parent))) {
    throw new InsituError(
      "unavailable",
      `${directory} is in use by process ${parent}, which runs nats-server ${pid} there. Stop that one first, or choose another data directory`,
    );
  }
  kill(pid, "SIGTERM");
  if (await isGone(pid, configFile, TERM_GRACE_MS, clock)) return;
  kill(pid, "SIGKILL");
  if (await isGone(pid, configFile, KILL_GRACE_MS, clock)) return;
  throw new InsituError(
    "unavailable",
    `the nats-server ${pid} that was left behind in ${directory} does not end`,
  );
}

async function readPid(path: string): Promise<number | null> {
  try {
    const pid = Number((await readFile(path, "utf8")).trim());
    return Number.isInteger(pid) && pid > 1 ? pid : null;
  } catch {
    return null; // no file: nothing was left behind
  }
}

async function isOurServer(pid: number, configFile: string): Promise<boolean> {
  return (await commandOf(pid)).some((argument) => argument.includes(configFile));
}

async function isNode(pid: number): Promise<boolean> {
  return /node/.test((await commandOf(pid))[0] ?? "");
}

/** The arguments of a process; none when it is gone (a zombie has none either). */
async function commandOf(pid: number): Promise<string[]> {
  try {
    return (await readFile(`/proc/${pid}/cmdline`, "utf8")).split("\0");
  } catch {
    return ps(pid, "command").then((line) => (line === null ? [] : line.split(" ")));
  }
}

/** Null when it is gone, or when it belongs to init. */
async function parentOf(pid: number): Promise<number | null> {
  let parent: number;
  try {
    // The second field is the name in parentheses, and may itself hold spaces and parentheses.
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
    parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    parent = Number(await ps(pid, "ppid"));
  }
  return parent > 1 ? parent : null;
}

/** For systems without /proc. */
async function ps(pid: number, column: string): Promise<string | null> {
  try {
    return (await run("ps", ["-o", `${column}=`, "-p", String(pid)], { timeout: 5_000 })).stdout.trim();
  } catch {
    return null; // ps says no with its exit code
  }
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It ended in between, which is what was wanted; if it may not be killed, waiting for it says so.
  }
}

/** It is no child of ours, so there is no event to wait for. */
async function isGone(pid: number, configFile: string, withinMs: number, clock: Clock): Promise<boolean> {
  const deadlineMs = clock.monotonicMs() + withinMs;
  while (clock.monotonicMs() < deadlineMs) {
    if (!(await isOurServer(pid, configFile))) return true;
    await clock.sleep(POLL_MS);
  }
  return false;
}
