import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { directoryPrefix, keepDirectory, sweep } from "./leftovers.ts";

test("what a killed run left is removed with its processes; what a living one has, or was kept, stays", async () => {
  const dead = spawn("true");
  await once(dead, "exit");
  const own = (pid: number, what: string): string => {
    const directory = join(tmpdir(), `insitu-chaos-${pid}-${what}`);
    mkdirSync(directory);
    return directory;
  };
  const [left, kept] = [own(dead.pid!, "left"), own(dead.pid!, "kept")];
  const living = `${directoryPrefix()}test`;
  mkdirSync(living);
  keepDirectory(kept);
  const inside = spawn("sleep", ["600"], { stdio: "ignore", env: { CHAOS_JOURNAL: `${left}/a.journal` } });
  const gone = once(inside, "exit");
  await once(inside, "spawn");
  try {
    const swept = sweep();
    expect(swept.filter((name) => name.includes(`-${dead.pid}-`))).toEqual([`insitu-chaos-${dead.pid}-left`]);
    expect(await gone).toEqual([null, "SIGKILL"]);
    expect([left, kept, living].map((directory) => existsSync(directory))).toEqual([false, true, true]);
  } finally {
    for (const directory of [left, kept, living]) rmSync(directory, { recursive: true, force: true });
  }
});
