/**
 * Ends every process of an attempt, also those that left its process group or lost their parents.
 *
 * On Linux each carries the attempt's marker in its environment, inherited over fork and exec; /proc shows it.
 * Elsewhere only the process group is reached. A step that wipes its own environment and starts a session of
 * its own escapes; containment that it cannot escape is the sandbox's.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import type { Clock } from "../../shared/system.ts";
import { type ProcessIdentity, startTicksOf } from "../supervisor/process-identity.ts";

export const MARKER_VARIABLE = "INSITU_ATTEMPT_TOKEN";
const ROUND_MS = 50;
const ROUNDS_MAX = 100;
const SWEEP_MS = 100;
const HAS_PROC = existsSync("/proc/self/environ");

/** Process ids that carry the marker. Empty where there is no /proc. */
export function markedProcesses(marker: string): number[] {
  return carriersOf(new Map([[marker, 0]])).get(marker) ?? [];
}

/** Process ids by marker, for those markers that any process carries. */
function carriersOf(markers: ReadonlyMap<string, unknown>): Map<string, number[]> {
  const found = new Map<string, number[]>();
  if (!HAS_PROC) return found;
  const prefix = `${MARKER_VARIABLE}=`;
  for (const entry of readdirSync("/proc")) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    for (const variable of environmentOf(pid).split("\0")) {
      if (!variable.startsWith(prefix)) continue;
      const marker = variable.slice(prefix.length);
      if (markers.has(marker)) found.set(marker, [...(found.get(marker) ?? []), pid]);
    }
  }
  return found;
}

function environmentOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/environ`, "latin1");
  } catch {
    return ""; // gone, or somebody else's
  }
}

/**
 * Signals the group that a process began. The number of a group whose members have all ended may be another's by now:
 * then a process of that number is there, and began at another time.
 */
export function signalGroup(leader: ProcessIdentity | undefined, signal: NodeJS.Signals | 0): boolean {
  if (leader === undefined) return false;
  const now = startTicksOf(leader.pid);
  if (now !== null && now !== leader.startTicks) return false;
  return trySignal(-leader.pid, signal);
}

/** Sends a signal to the group and to all that carry the marker. Returns how many were found. */
export function signalTree(
  marker: string,
  leader: ProcessIdentity | undefined,
  signal: NodeJS.Signals,
): number {
  signalGroup(leader, signal);
  const pids = markedProcesses(marker);
  for (const pid of pids) trySignal(pid, signal);
  return pids.length;
}

/** SIGKILL until nothing is left: a process can fork between the look and the signal. */
export async function killTree(
  marker: string,
  leader: ProcessIdentity | undefined,
  clock: Clock,
): Promise<void> {
  for (let round = 0; round < ROUNDS_MAX; round++) {
    if (signalTree(marker, leader, "SIGKILL") === 0) return;
    await clock.sleep(ROUND_MS);
  }
}

/** SIGTERM, SIGKILL when the grace is over or at once when all have gone. */
export async function endTree(
  marker: string,
  leader: ProcessIdentity | undefined,
  options: { graceMs: number; clock: Clock },
): Promise<void> {
  const { graceMs, clock } = options;
  const until = clock.monotonicMs() + graceMs;
  signalTree(marker, leader, "SIGTERM");
  while (clock.monotonicMs() < until && isAlive(marker, leader)) {
    await clock.sleep(Math.min(ROUND_MS, graceMs));
  }
  await killTree(marker, leader, clock);
}

function isAlive(marker: string, leader: ProcessIdentity | undefined): boolean {
  if (markedProcesses(marker).length > 0) return true;
  // With /proc the marker decides: a zombie that nobody reaps would keep its group alive for ever.
  return !HAS_PROC && signalGroup(leader, 0);
}

/**
 * Ends what attempts left behind after they succeeded: children that left the group and let go of the pipes.
 *
 * One look at /proc serves all attempts that ended within a round, and none waits for it: the look costs a few
 * milliseconds, and an outcome has eight to reach the next step.
 */
export class Leftovers {
  readonly #clock: Clock;
  readonly #markers = new Map<string, number>();
  #sweeping: Promise<void> = Promise.resolve();
  #running = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  add(marker: string): void {
    this.#markers.set(marker, ROUNDS_MAX);
    if (this.#running) return;
    this.#running = true;
    this.#sweeping = this.#sweep();
  }

  /** Resolves when nothing is left of the attempts that were added. */
  settled(): Promise<void> {
    return this.#sweeping;
  }

  async #sweep(): Promise<void> {
    while (this.#markers.size > 0) {
      await this.#clock.sleep(SWEEP_MS);
      const found = carriersOf(this.#markers);
      for (const [marker, rounds] of this.#markers) {
        const pids = found.get(marker) ?? [];
        for (const pid of pids) trySignal(pid, "SIGKILL");
        if (pids.length === 0 || rounds <= 1) this.#markers.delete(marker);
        else this.#markers.set(marker, rounds - 1);
      }
    }
    this.#running = false;
  }
}

/** False when nobody is there. */
function trySignal(pid: number, signal: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false; // gone already
  }
}
