/** The folder of `insitu dev`: who may use it, and that one start at a time does. */
import { execFileSync } from "node:child_process";
import { linkSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { InsituError } from "../../../shared/errors.ts";
import type { Clock } from "../../../shared/system.ts";

/** Everything that we put there; anything else means that the folder is somebody's. */
const OURS = ["server", "sites", "logs", "context.json", "ca.pem", "dev.json"];
/** Written at the first start. Only a folder that has it is ever emptied. */
const MARKER = ".made-by-insitu-dev";
const LOCK = "dev.json";
const POLL_MS = 30;
const TERM_GRACE_MS = 6_000;
const KILL_GRACE_MS = 3_000;

/** A process by its number and its birth: after a reboot the number may be anybody's. */
interface Recorded {
  name: string;
  pid: number;
  born: string;
}

interface LockFile {
  owner: Recorded;
  children: Recorded[];
}

export class DataDirectory {
  readonly path: string;
  #children: Recorded[] = [];
  readonly #owner: Recorded;

  private constructor(path: string, owner: Recorded) {
    this.path = path;
    this.#owner = owner;
  }

  /**
   * Takes the folder for this process. Processes of an earlier start that was killed are stopped first.
   *
   * @param onLeftOver hears the names of such processes
   * @throws InsituError `conflict` when another start uses it, `request.invalid` when it is not ours to use
   */
  static async take(
    path: string,
    options: { clock: Clock; onLeftOver(names: string[]): void },
  ): Promise<DataDirectory> {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    refuseStrangers(path);
    const owner = { name: "insitu dev", pid: process.pid, born: birthOf(process.pid) ?? "" };
    const directory = new DataDirectory(path, owner);
    // Twice: whoever removes a lock that is stale may lose the race for the new one.
    for (let attempt = 0; attempt < 2; attempt++) {
      if (directory.#tryLock()) {
        writeFileSync(join(path, MARKER), "");
        return directory;
      }
      const held = readLock(path);
      if (held === null) {
        rmSync(join(path, LOCK), { force: true });
        continue;
      }
      if (isAlive(held.owner)) {
        throw new InsituError(
          "conflict",
          `insitu dev runs in ${path} already, as process ${held.owner.pid}. Use that one, stop it with Ctrl-C there or \`kill ${held.owner.pid}\`, or choose another folder with --data`,
        );
      }
      await stopLeftOvers(held.children, options);
      rmSync(join(path, LOCK), { force: true });
    }
    throw new InsituError("conflict", `another insitu dev is starting in ${path} at this moment; try again`);
  }

  /** Children are on record before anything else happens, so that a next start finds them. */
  record(name: string, pid: number): void {
    this.#children = [...this.#children, { name, pid, born: birthOf(pid) ?? "" }];
    this.#write();
  }

  /** Forgets runs, agents and data of earlier starts. */
  empty(): void {
    for (const name of ["server", "sites", "logs", "context.json"]) {
      rmSync(join(this.path, name), { recursive: true, force: true });
    }
  }

  release(): void {
    rmSync(join(this.path, LOCK), { force: true });
  }

  /** A link appears with its content: nobody ever reads half a lock. */
  #tryLock(): boolean {
    const own = join(this.path, `${LOCK}.${process.pid}.new`);
    writeFileSync(own, this.#text(), { mode: 0o600 });
    try {
      linkSync(own, join(this.path, LOCK));
      return true;
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code === "EEXIST") return false;
      throw err;
    } finally {
      rmSync(own, { force: true });
    }
  }

  #write(): void {
    const file = join(this.path, LOCK);
    writeFileSync(`${file}.new`, this.#text(), { mode: 0o600 });
    renameSync(`${file}.new`, file);
  }

  #text(): string {
    const lock: LockFile = { owner: this.#owner, children: this.#children };
    return `${JSON.stringify(lock, null, 2)}\n`;
  }
}

function refuseStrangers(path: string): void {
  const names = readdirSync(path);
  if (names.includes(MARKER)) return;
  const strange = names.filter((name) => !OURS.includes(name.replace(/(\.\d+)?\.new$/, "")));
  if (strange.length === 0) return;
  throw new InsituError(
    "request.invalid",
    `${path} holds other things (${strange.slice(0, 3).join(", ")}); give --data an empty or a new folder`,
  );
}

/** Null for a lock that was cut off while it was written, or is gone. */
function readLock(path: string): LockFile | null {
  try {
    const parsed = JSON.parse(readFileSync(join(path, LOCK), "utf8")) as Partial<LockFile>;
    return parsed.owner && Array.isArray(parsed.children) ? (parsed as LockFile) : null;
  } catch {
    return null;
  }
}

async function stopLeftOvers(
  children: readonly Recorded[],
  { clock, onLeftOver }: { clock: Clock; onLeftOver(names: string[]): void },
): Promise<void> {
  // They end by themselves when their parent goes; a start that comes at once may still meet them.
  const alive = () => children.filter(isAlive);
  if (alive().length === 0) return;
  onLeftOver(alive().map(({ name }) => name));
  for (const [signal, graceMs] of [
    ["SIGTERM", TERM_GRACE_MS],
    ["SIGKILL", KILL_GRACE_MS],
  ] as const) {
    for (const child of alive()) kill(child.pid, signal);
    const deadlineMs = clock.monotonicMs() + graceMs;
    while (alive().length > 0 && clock.monotonicMs() < deadlineMs) await clock.sleep(POLL_MS);
  }
  const [left] = alive();
  if (left)
    throw new InsituError("conflict", `${left.name} of an earlier start (process ${left.pid}) does not end`);
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended in between, which is what was wanted.
  }
}

function isAlive({ pid, born }: Recorded): boolean {
  const now = birthOf(pid);
  return now !== null && (born === "" || now === born);
}

/** When the process was born, as the system counts it; null when there is none, or only what is left of one. */
function birthOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The second field is the name in parentheses, and may itself hold spaces and parentheses.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? null : (fields[19] ?? null);
  } catch {
    return process.platform === "linux" ? null : birthByPs(pid);
  }
}

function birthByPs(pid: number): string | null {
  try {
    const args = ["-o", "lstart=", "-p", String(pid)];
    return execFileSync("ps", args, { encoding: "utf8", timeout: 5_000 }).trim() || null;
  } catch {
    return null; // ps says with its exit code that there is none
  }
}
