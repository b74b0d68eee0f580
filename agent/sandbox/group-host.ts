/** Finds out, once, whether the agent may make control groups: by starting a process in one that has a limit. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { totalmem } from "node:os";
import { basename, dirname, join } from "node:path";
import type { Clock } from "../../shared/system.ts";
import {
  AGENT_GROUP,
  CONTROLLERS,
  type Controller,
  GROUP_PREFIX,
  type GroupHost,
  objectionToMove,
  ownGroups,
  parseMounts,
} from "./group-plan.ts";
import { removeGroup } from "./step-group.ts";

const TRIAL_TIMEOUT_MS = 5_000;
const TRIAL: Readonly<Record<Controller, Readonly<Record<1 | 2, readonly [file: string, value: string]>>>> = {
  memory: { 1: ["memory.limit_in_bytes", "67108864"], 2: ["memory.max", "67108864"] },
  cpu: { 1: ["cpu.cfs_quota_us", "50000"], 2: ["cpu.max", "50000 100000"] },
  pids: { 1: ["pids.max", "64"], 2: ["pids.max", "64"] },
};

export interface GroupFacts {
  host: GroupHost;
  /** Why not, of each controller that the host does not have. */
  lacks: Readonly<Partial<Record<Controller, string>>>;
}

/** Never rejects: what cannot be is said in words. */
export async function probeGroups(clock: Clock): Promise<GroupFacts> {
  const own = readOwn();
  const host: { -readonly [K in Controller]?: NonNullable<GroupHost[K]> } = {};
  const lacks: Partial<Record<Controller, string>> = {};
  for (const controller of CONTROLLERS) {
    const base = own[controller];
    try {
      if (!base) throw new Error("no hierarchy with it is mounted");
      const directory = base.version === 2 ? delegate(base.directory, controller) : base.directory;
      await tryIt(directory, controller, base.version, clock);
      host[controller] = { version: base.version, directory };
    } catch (thrown) {
      lacks[controller] = thrown instanceof Error ? thrown.message : String(thrown);
    }
  }
  return { host, lacks };
}

/** Memory that this process may have, as far as it is told: of the host, or of its own control group. */
export function memoryOfHost(): number {
  const group = process.constrainedMemory();
  return group > 0 ? Math.min(group, totalmem()) : totalmem();
}

function readOwn(): GroupHost {
  try {
    const mounts = parseMounts(readFileSync("/proc/self/mountinfo", "utf8"));
    return ownGroups(mounts, readFileSync("/proc/self/cgroup", "utf8"));
  } catch {
    return {}; // not Linux, or no /proc
  }
}

/**
 * The directory whose groups have the controller, which is switched on when it is not.
 *
 * @throws when it cannot
 */
function delegate(own: string, controller: Controller): string {
  const directory = basename(own) === AGENT_GROUP ? dirname(own) : own;
  const has = (file: string): boolean =>
    readFileSync(join(directory, file), "utf8").trim().split(/\s+/).includes(controller);
  if (!has("cgroup.controllers")) throw new Error(`${directory} does not have the controller`);
  // Also when it is switched on already, and for those that the kernel switches on next to processes: no process can
  // join a group below then. The top of the hierarchy, which has no such file, may have both.
  const members = readFileSync(join(directory, "cgroup.procs"), "utf8").trim();
  if (members !== "" && existsSync(join(directory, "cgroup.type")))
    moveAside(directory, members.split("\n").map(Number));
  if (!has("cgroup.subtree_control")) switchOn(directory, controller);
  return directory;
}

function switchOn(directory: string, controller: Controller): void {
  writeFileSync(join(directory, "cgroup.subtree_control"), `+${controller}`, { flag: "r+" });
}

/** @throws when the group is not the agent's to rearrange */
function moveAside(directory: string, members: readonly number[]): void {
  const objection = objectionToMove({ directory, members, self: process.pid });
  if (objection !== undefined) throw new Error(objection);
  const aside = join(directory, AGENT_GROUP);
  if (!existsSync(aside)) mkdirSync(aside);
  writeFileSync(join(aside, "cgroup.procs"), String(process.pid), { flag: "r+" });
}

/** @throws when a group cannot be made, its limit not be set, or no process join it */
async function tryIt(directory: string, controller: Controller, version: 1 | 2, clock: Clock): Promise<void> {
  const trial = join(directory, `${GROUP_PREFIX}trial-${process.pid}-${controller}`);
  const [file, value] = TRIAL[controller][version];
  mkdirSync(trial);
  try {
    writeFileSync(join(trial, file), value, { flag: "r+" });
    const joining = ["-c", 'echo $$ >"$0/cgroup.procs"', trial];
    execFileSync("/bin/sh", joining, { stdio: ["ignore", "ignore", "pipe"], timeout: TRIAL_TIMEOUT_MS });
  } finally {
    await removeGroup({ directories: [{ path: trial, settings: [] }] }, clock);
  }
}
