/** From limits to control groups: which directories, with which words in which files. Pure. */
import { z } from "zod";
import type { StepLimits } from "./step-limits.ts";

/** `optional`: not on every kernel, and the limit holds without it. */
const Setting = z.object({ file: z.string(), value: z.string(), optional: z.boolean().optional() });

export const StepGroup = z.object({
  directories: z.array(z.object({ path: z.string(), settings: z.array(Setting) })),
  /** What is limited by it; for the message when the limit is met. */
  memoryBytes: z.number().optional(),
  processes: z.number().optional(),
});
export type StepGroup = z.infer<typeof StepGroup>;

export const CONTROLLERS = ["memory", "cpu", "pids"] as const;
export type Controller = (typeof CONTROLLERS)[number];
/** Where groups can be made: on version 2 the same directory for all. Missing: this host cannot. */
export type GroupHost = { readonly [K in Controller]?: { version: 1 | 2; directory: string } };

export const GROUP_PREFIX = "insitu-";
/** Version 2 limits groups without processes of their own alone: the agent's own stay in here. */
export const AGENT_GROUP = `${GROUP_PREFIX}agent`;
const SYSTEMD_UNIT = /\.(service|scope|slice)$/;
const PERIOD_US = 100_000;
/** bubblewrap and its process 1, which are in the group and not the step's. */
const BOX_PROCESSES = 2;

/** Undefined where the host has no control group to give. */
export function planGroup(host: GroupHost, marker: string, limits: StepLimits): StepGroup | undefined {
  const settings = new Map<string, z.infer<typeof Setting>[]>();
  for (const controller of CONTROLLERS) {
    const base = host[controller];
    if (!base) continue;
    const list = settingsOf(controller, base.version, limits);
    const path = `${base.directory}/${GROUP_PREFIX}${marker}`;
    if (list.length > 0) settings.set(path, [...(settings.get(path) ?? []), ...list]);
  }
  if (settings.size === 0) return undefined;
  return {
    directories: [...settings].map(([path, list]) => ({ path, settings: list })),
    ...(host.memory ? { memoryBytes: limits.memoryBytes } : {}),
    ...(host.pids ? { processes: limits.processes } : {}),
  };
}

/** The directories alone, to end and remove what somebody else has made. */
export function groupDirectories(host: GroupHost, marker: string): Pick<StepGroup, "directories"> {
  const paths = CONTROLLERS.flatMap((controller) => host[controller]?.directory ?? []);
  return {
    directories: [...new Set(paths)].map((path) => ({
      path: `${path}/${GROUP_PREFIX}${marker}`,
      settings: [],
    })),
  };
}

function settingsOf(
  controller: Controller,
  version: 1 | 2,
  { memoryBytes, cpus, processes }: StepLimits,
): z.infer<typeof Setting>[] {
  if (controller === "pids") return [{ file: "pids.max", value: String(processes + BOX_PROCESSES) }];
  if (controller === "cpu") {
    if (cpus === undefined) return [];
    const quota = String(Math.max(1_000, Math.round(cpus * PERIOD_US)));
    return version === 2
      ? [{ file: "cpu.max", value: `${quota} ${PERIOD_US}` }]
      : [
          { file: "cpu.cfs_period_us", value: String(PERIOD_US) },
          { file: "cpu.cfs_quota_us", value: quota },
        ];
  }
  const bytes = String(memoryBytes);
  // Without swap: a step that swaps slows down its neighbours instead of ending.
  return version === 2
    ? [
        { file: "memory.max", value: bytes },
        { file: "memory.swap.max", value: "0", optional: true },
        // One killed process of many leaves a step that computes on with a part missing.
        { file: "memory.oom.group", value: "1", optional: true },
      ]
    : [
        { file: "memory.limit_in_bytes", value: bytes },
        { file: "memory.memsw.limit_in_bytes", value: bytes, optional: true },
      ];
}

/** A line of /proc/self/mountinfo that mounts control groups. */
export interface GroupMount {
  version: 1 | 2;
  /** What of the hierarchy is mounted. */
  root: string;
  point: string;
  /** Of version 1; version 2 says them in its files. */
  controllers: readonly string[];
}

/** proc_pid_mountinfo(5). */
export function parseMounts(text: string): GroupMount[] {
  return text.split("\n").flatMap((line) => {
    const [before = "", after = ""] = line.split(" - ");
    const [, , , root = "", point = ""] = before.split(" ");
    const [type, , options = ""] = after.split(" ");
    if (type !== "cgroup" && type !== "cgroup2") return [];
    const version = type === "cgroup2" ? 2 : 1;
    return [{ version, root: unescaped(root), point: unescaped(point), controllers: options.split(",") }];
  });
}

function unescaped(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/**
 * The directory of this process's own group in each hierarchy that limits something, from /proc/self/cgroup
 * (cgroups(7)): `id:controllers:path`, and for version 2 `0::path`.
 */
export function ownGroups(mounts: readonly GroupMount[], text: string): GroupHost {
  const found: { -readonly [K in Controller]?: { version: 1 | 2; directory: string } } = {};
  for (const line of text.split("\n")) {
    const [id, names, ...rest] = line.split(":");
    if (names === undefined) continue;
    const path = rest.join(":");
    const isVersion2 = id === "0" && names === "";
    for (const controller of CONTROLLERS) {
      if (!isVersion2 && !names.split(",").includes(controller)) continue;
      // Where both are there, a controller is at work in one of them; version 1 names it.
      if (isVersion2 && found[controller]) continue;
      const mount = mounts.find(({ version, controllers }) =>
        isVersion2 ? version === 2 : version === 1 && controllers.includes(controller),
      );
      if (mount) found[controller] = { version: mount.version, directory: below(mount, path) };
    }
  }
  return found;
}

/** A path outside of what is mounted, as in a container, cannot be reached: its top stands for it. */
function below({ root, point }: GroupMount, path: string): string {
  const inside =
    root === "/" ? path : path === root || path.startsWith(`${root}/`) ? path.slice(root.length) : "";
  return inside === "/" || inside.includes("..") ? point : `${point}${inside}`;
}

/**
 * Why the agent may not move itself into a group below its own, so that its own can have limits below; undefined when it
 * may. A unit of systemd is systemd's: it could not start the agent again in a group that was rearranged while steps go
 * on, so there systemd has to make the group below.
 */
export function objectionToMove({
  directory,
  members,
  self,
}: {
  directory: string;
  members: readonly number[];
  self: number;
}): string | undefined {
  if (SYSTEMD_UNIT.test(directory))
    return `${directory} is systemd's; put Delegate=yes and DelegateSubgroup=${AGENT_GROUP} (systemd 254 or newer) into the agent's service`;
  if (members.some((pid) => pid !== self))
    return `the agent shares the control group ${directory} with other processes; start it in one of its own`;
  return undefined;
}
