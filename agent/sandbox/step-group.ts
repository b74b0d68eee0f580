/**
 * The control groups of one attempt: made before its first process, which joins them itself, read when it has ended,
 * and removed with all that is still in them. Lives in the supervisor; the agent removes what a dead supervisor left.
 */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "../../shared/system.ts";
import type { StepGroup } from "./group-plan.ts";

/** The kernel takes a moment to let the last process go; one in the middle of a disk operation ends late. */
const ROUND_MIN_MS = 1;
const ROUND_MAX_MS = 50;
const ROUNDS_MAX = 50;

/** The kernel counts in batches: a group at its limit may look a little below. */
const FULL_SHARE = 0.9;

/** Which limits an attempt has met. */
export interface LimitsMet {
  /** The kernel has killed at least one of its processes for it. */
  memoryBytes?: number;
  /** At least one process or thread could not be begun for it. */
  processes?: number;
}

/** @throws with the code GROUP when a limit cannot be set: the step is not to begin without */
export function makeGroup(group: StepGroup): void {
  try {
    for (const { path, settings } of group.directories) {
      mkdirSync(path, { mode: 0o755 });
      for (const { file, value, optional } of settings) {
        const target = join(path, file);
        // Looked for first: a file cannot be created there, and the error would say another thing.
        if (optional && !existsSync(target)) continue;
        writeFileSync(target, value, { flag: "r+" });
      }
    }
  } catch (thrown) {
    for (const { path } of group.directories) tryRemove(path);
    const why = thrown instanceof Error ? thrown.message : String(thrown);
    throw Object.assign(new Error(`its control group cannot be made: ${why}`), { code: "GROUP" });
  }
}

/** Undefined when it met none. A process that the kernel ended for want of memory elsewhere is not counted. */
export function limitsMet({ directories, memoryBytes, processes }: StepGroup): LimitsMet | undefined {
  const counted = (file: string, key: string): number =>
    Math.max(0, ...directories.map(({ path }) => countIn(join(path, file), key)));
  // `oom_kill` counts any reason; the other figure tells that it was this group's own limit. On version 1 `failcnt`
  // would, but counts nothing where swap is limited too.
  const own = counted("memory.events", "oom_kill") > 0 && counted("memory.events", "oom") > 0;
  const ownOfVersion1 =
    memoryBytes !== undefined &&
    counted("memory.oom_control", "oom_kill") > 0 &&
    counted("memory.max_usage_in_bytes", "") >= memoryBytes * FULL_SHARE;
  const met: LimitsMet = {};
  if (memoryBytes !== undefined && (own || ownOfVersion1)) met.memoryBytes = memoryBytes;
  if (processes !== undefined && counted("pids.events", "max") > 0) met.processes = processes;
  return met.memoryBytes === undefined && met.processes === undefined ? undefined : met;
}

/** `key number` on a line of its own; an empty key for a file that is a number. */
function countIn(path: string, key: string): number {
  try {
    const text = readFileSync(path, "utf8");
    if (key === "") return Number(text);
    const line = text.split("\n").find((entry) => entry.startsWith(`${key} `));
    return Number(line?.slice(key.length + 1) ?? 0);
  } catch {
    return 0; // of another controller, or of a kernel that does not count it
  }
}

/** SIGKILL to all that is in the group now; at once where the kernel can. */
export function killGroup({ directories }: Pick<StepGroup, "directories">): void {
  for (const { path } of directories) {
    try {
      writeFileSync(join(path, "cgroup.kill"), "1", { flag: "r+" });
      continue;
    } catch {
      // Version 1, a kernel before 5.14, or gone: one by one.
    }
    for (const pid of membersOf(path)) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // gone already
      }
    }
  }
}

/** Ends what is left in the group, and removes it. False when something in it does not end. */
export async function removeGroup(group: Pick<StepGroup, "directories">, clock: Clock): Promise<boolean> {
  for (let round = 0; round < ROUNDS_MAX; round++) {
    if (group.directories.map(({ path }) => tryRemove(path)).every(Boolean)) return true;
    killGroup(group);
    await clock.sleep(Math.min(ROUND_MAX_MS, ROUND_MIN_MS * 2 ** round));
  }
  return false;
}

function membersOf(path: string): number[] {
  try {
    const lines = readFileSync(join(path, "cgroup.procs"), "utf8").split("\n");
    // Zero: of a process that this one cannot see.
    return lines.map(Number).filter((pid) => Number.isInteger(pid) && pid > 1 && pid !== process.pid);
  } catch {
    return [];
  }
}

/** True when it is not there any more. */
function tryRemove(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (thrown) {
    return (thrown as NodeJS.ErrnoException).code === "ENOENT";
  }
}
