/**
 * Which process a number means. Numbers are given again, and after a restart of the host all of them are: a process is
 * known by its number, the moment it began, and the boot of the host that it began in (proc(5), `starttime`).
 */
import { readFileSync } from "node:fs";
import { z } from "zod";

export const ProcessIdentity = z.object({
  pid: z.number(),
  /** In clock ticks after the boot; null where there is no /proc. */
  startTicks: z.number().nullable(),
  bootId: z.string().nullable(),
});
export type ProcessIdentity = z.infer<typeof ProcessIdentity>;

export function identityOf(pid: number): ProcessIdentity {
  return { pid, startTicks: startTicksOf(pid), bootId: bootId() };
}

/** Whether that very process is there. False where there is no /proc: nobody can know. */
export function isAlive(identity: ProcessIdentity): boolean {
  if (identity.startTicks === null || isOfAnotherBoot(identity)) return false;
  return startTicksOf(identity.pid) === identity.startTicks;
}

/** True when the host was started again since: whatever ran then has ended. */
export function isOfAnotherBoot({ bootId: then }: { bootId: string | null }): boolean {
  const now = bootId();
  return then !== null && now !== null && then !== now;
}

/** Null when there is no such process, or no /proc. */
export function startTicksOf(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The command's name is in parentheses and may hold anything: the fields are counted from behind it.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return Number(fields[19]);
  } catch {
    return null;
  }
}

let boot: string | null | undefined;
/** Does not change while we live. */
function bootId(): string | null {
  if (boot !== undefined) return boot;
  try {
    boot = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
  } catch {
    boot = null;
  }
  return boot;
}
