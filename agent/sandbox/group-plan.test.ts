import { expect, test } from "vitest";
import { groupDirectories, objectionToMove, ownGroups, parseMounts, planGroup } from "./group-plan.ts";

const limits = { memoryBytes: 64, cpus: 0.5, processes: 10, openFiles: 16, fileSizeBytes: 1024 };
const V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
const V1 = [
  "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
  "35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
  "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
].join("\n");

test("on version 2 one group holds all limits, kills as a whole and does not swap", () => {
  const base = { version: 2 as const, directory: "/sys/fs/cgroup/agent" };
  const group = planGroup({ memory: base, cpu: base, pids: base }, "m", limits)!;
  expect(group.directories).toHaveLength(1);
  expect(group.directories[0]!.path).toBe("/sys/fs/cgroup/agent/insitu-m");
  const written = Object.fromEntries(group.directories[0]!.settings.map(({ file, value }) => [file, value]));
  expect(written).toEqual({
    "memory.max": "64",
    "memory.swap.max": "0",
    "memory.oom.group": "1",
    "cpu.max": "50000 100000",
    // bubblewrap and its process 1 are in it too.
    "pids.max": "12",
  });
});

test("on version 1 each controller has a group of its own, and none that sets nothing is made", () => {
  const host = {
    memory: { version: 1 as const, directory: "/m" },
    cpu: { version: 1 as const, directory: "/c" },
  };
  const { directories, processes } = planGroup(host, "x", { ...limits, cpus: undefined })!;
  expect(directories.map(({ path }) => path)).toEqual(["/m/insitu-x"]);
  // It is not held by the group, so nobody may say that it was met.
  expect(processes).toBeUndefined();
  expect(groupDirectories(host, "x").directories.map(({ path }) => path)).toEqual([
    "/m/insitu-x",
    "/c/insitu-x",
  ]);
  expect(planGroup({}, "x", limits)).toBeUndefined();
});

test("the agent's own groups are found on version 2, on version 1, and where both are mounted", () => {
  const two = { version: 2, directory: "/sys/fs/cgroup/system.slice/insitu.service" };
  expect(ownGroups(parseMounts(V2), "0::/system.slice/insitu.service\n")).toEqual({
    memory: two,
    cpu: two,
    pids: two,
  });
  const own = "9:memory:/docker/ab/step\n3:cpu,cpuacct:/\n1:pids:/\n0::/\n";
  expect(ownGroups(parseMounts(V1), own)).toEqual({
    memory: { version: 1, directory: "/sys/fs/cgroup/memory/step" },
    cpu: { version: 1, directory: "/sys/fs/cgroup/cpu,cpuacct" },
    // Version 1 has it and does not show it; version 2 has not got it, which its own file says.
    pids: { version: 2, directory: "/sys/fs/cgroup/unified" },
  });
});

test("a group outside of what is mounted stands for the top of what is", () => {
  expect(ownGroups(parseMounts(V2), "0::/../other\n").memory?.directory).toBe("/sys/fs/cgroup");
  expect(ownGroups(parseMounts(V1), "9:memory:/elsewhere\n").memory?.directory).toBe("/sys/fs/cgroup/memory");
});

test("blanks in a mount point are read", () => {
  expect(parseMounts("1 1 0:1 / /a\\040b rw - cgroup2 x rw")[0]?.point).toBe("/a b");
});

test("the agent moves itself alone, and never in a unit of systemd", () => {
  const self = 7;
  expect(objectionToMove({ directory: "/sys/fs/cgroup", members: [7], self })).toBeUndefined();
  expect(objectionToMove({ directory: "/sys/fs/cgroup", members: [7, 8], self })).toMatch(/shares/);
  const service = "/sys/fs/cgroup/system.slice/insitu.service";
  expect(objectionToMove({ directory: service, members: [7], self })).toMatch(
    /DelegateSubgroup=insitu-agent/,
  );
});
