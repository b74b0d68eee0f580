/** What a run that was killed could not put away: its processes, namespaces, disks and directory. */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sweepNamespaces } from "./namespaces.ts";
import { trySignal } from "./party.ts";

const DIRECTORY = /^insitu-chaos-(\d+)-/;
const KEPT = "kept";

/** For `mkdtemp`: a name that says whose it is. */
export function directoryPrefix(what = ""): string {
  return join(tmpdir(), `insitu-chaos-${process.pid}-${what}`);
}

/** Its owner wants it to be read: no later run removes it. */
export function keepDirectory(directory: string): void {
  writeFileSync(join(directory, KEPT), "");
}

/** Gives the names of the namespaces and directories that it removed. Those of living processes are left alone. */
export function sweep(): string[] {
  const root = process.getuid?.() === 0;
  const namespaces = root ? sweepNamespaces() : [];
  const directories = readdirSync(tmpdir()).filter((name) => {
    const pid = DIRECTORY.exec(name)?.[1];
    return pid !== undefined && !existsSync(`/proc/${pid}`) && !existsSync(join(tmpdir(), name, KEPT));
  });
  for (const name of directories) {
    const directory = join(tmpdir(), name);
    for (const pid of processesOf(directory)) trySignal(pid, "SIGKILL");
    for (const mount of mountsBelow(directory)) spawnSync("umount", ["-l", mount], { stdio: "ignore" });
    rmSync(directory, { recursive: true, force: true });
  }
  return [...namespaces, ...directories];
}

/** Every party is started with a file of the directory, and every step with a journal there. */
function processesOf(directory: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
    .filter((pid) =>
      [`/proc/${pid}/cmdline`, `/proc/${pid}/environ`].some((file) => read(file).includes(`${directory}/`)),
    )
    .map(Number);
}

function mountsBelow(directory: string): string[] {
  return read("/proc/self/mounts")
    .split("\n")
    .map((line) => line.split(" ")[1] ?? "")
    .filter((at) => at.startsWith(`${directory}/`));
}

function read(file: string): string {
  try {
    return readFileSync(file, "latin1");
  } catch {
    return ""; // it has just gone, or is not ours
  }
}
