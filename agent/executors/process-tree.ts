/**
 * Ends every process of an attempt, also those that left its process group or lost their parents.
 *
 * On Linux each carries the attempt's marker in its environment, inherited over fork and exec; /proc shows it.
 * Elsewhere only the process group is reached. A step that wipes its own environment and starts a session of
 * its own escapes; containment that it cannot escape is the sandbox's.
 */
import { readdirSync, readFileSync } from "node:fs";
import type { Clock } from "../../shared/system.ts";

export const MARKER_VARIABLE = "INSITU_ATTEMPT_TOKEN";
const ROUND_MS = 50;
const ROUNDS_MAX = 100;

/** Process ids that carry the marker. Empty where there is no /proc. */
export function markedProcesses(marker: string): number[] {
  const wanted = `${MARKER_VARIABLE}=${marker}`;
  let entries: string[];
  try {
    entries = readdirSync("/proc");
  } catch {
    return []; // not Linux
  }
  return entries
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => pid !== process.pid && environmentOf(pid).split("\0").includes(wanted));
}

function environmentOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/environ`, "latin1");
  } catch {
    return ""; // gone, or somebody else's
  }
}

/** Sends a signal to the group and to all that carry the marker. Returns how many were found. */
export function signalTree(marker: string, groupPid: number | undefined, signal: NodeJS.Signals): number {
  if (groupPid !== undefined) trySignal(-groupPid, signal);
  const pids = markedProcesses(marker);
  for (const pid of pids) trySignal(pid, signal);
  return pids.length;
}

/** SIGKILL until nothing is left: a process can fork between the look and the signal. */
export async function killTree(marker: string, groupPid: number | undefined, clock: Clock): Promise<void> {
  for (let round = 0; round < ROUNDS_MAX; round++) {
    if (signalTree(marker, groupPid, "SIGKILL") === 0) return;
    await clock.sleep(ROUND_MS);
  }
}

/** SIGTERM, SIGKILL when the grace is over or at once when all have gone. */
export async function endTree(
  marker: string,
  groupPid: number | undefined,
  options: { graceMs: number; clock: Clock },
): Promise<void> {
  const { graceMs, clock } = options;
  const until = clock.monotonicMs() + graceMs;
  signalTree(marker, groupPid, "SIGTERM");
  while (clock.monotonicMs() < until && markedProcesses(marker).length > 0) {
    await clock.sleep(Math.min(ROUND_MS, graceMs));
  }
  await killTree(marker, groupPid, clock);
}

function trySignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // gone already
  }
}
