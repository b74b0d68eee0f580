/** Ends the supervisors of steps whose agents were killed: `insitu dev` leaves no process behind. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "../../../shared/system.ts";

const WITHIN_MS = 8_000;
const POLL_MS = 20;

/** @param sites directory of the sites' directories, each with the `state` of its agent */
export async function endSupervisors(sites: string, clock: Clock): Promise<void> {
  const untilMs = clock.monotonicMs() + WITHIN_MS;
  let left = supervisorsOf(sites);
  for (const pid of left) signal(pid, "SIGTERM");
  while (left.length > 0 && clock.monotonicMs() < untilMs) {
    await clock.sleep(POLL_MS);
    left = supervisorsOf(sites);
  }
  for (const pid of left) signal(pid, "SIGKILL");
}

/** Those that live: they remove their directory when they end, unless they were killed. */
function supervisorsOf(sites: string): number[] {
  return namesIn(sites).flatMap((site) => {
    const base = join(sites, site, "state", "supervisors");
    return namesIn(base).flatMap((id) => {
      const pid = pidIn(join(base, id, "about.json"));
      return pid !== undefined && isSupervisor(pid) ? [pid] : [];
    });
  });
}

function namesIn(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory) : [];
}

function pidIn(file: string): number | undefined {
  try {
    return (JSON.parse(readFileSync(file, "utf8")) as { pid: number }).pid;
  } catch {
    return undefined; // it ends at this moment
  }
}

/** The number may be another process's by now. Where there is no /proc, it is believed. */
function isSupervisor(pid: number): boolean {
  if (!existsSync("/proc/self/cmdline")) return signal(pid, 0);
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("insitu-supervisor");
  } catch {
    return false;
  }
}

function signal(pid: number, name: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, name);
  } catch {
    return false;
  }
}
