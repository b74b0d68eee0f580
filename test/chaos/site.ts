/** An agent with its host: supervisors, the processes of steps, a disk of its own, a clock of its own. */
import { spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import type { Network } from "./network.ts";
import { Party, trySignal } from "./party.ts";
import { DATASET } from "./workload.ts";

const DISK = "48m";
const DISK_FREE_MIN_BYTES = 16 * 1024 * 1024;
const FILL_BYTES = 64 * 1024;

export interface HostOptions {
  name: string;
  site: string;
  directory: string;
  dist: string;
  joinToken: string;
  journal: string;
  holdsData: boolean;
  /** A small disk of its own. */
  ownDisk: boolean;
  clockEnv: NodeJS.ProcessEnv;
  network: Network;
}

export class Host {
  readonly party: Party;
  readonly #stateDir: string;
  readonly #name: string;
  readonly #mounted: boolean;
  #halted: number[] = [];

  constructor(options: HostOptions) {
    const { name, site, directory, dist, joinToken, journal, holdsData, ownDisk, clockEnv, network } =
      options;
    this.#name = name;
    this.#stateDir = join(directory, name);
    mkdirSync(this.#stateDir, { recursive: true });
    this.#mounted = ownDisk && run("mount", "-t", "tmpfs", "-o", `size=${DISK}`, "tmpfs", this.#stateDir);
    const file = join(directory, `${name}.json`);
    const config = {
      stateDir: this.#stateDir,
      name,
      joinToken,
      slots: 4,
      diskFreeMinBytes: this.#mounted ? DISK_FREE_MIN_BYTES : 0,
      datasets: holdsData ? { [DATASET]: directory } : {},
      // The witness is a file of the site that every step writes to.
      sandbox: { mode: "off" },
      stepEnv: { CHAOS_JOURNAL: journal, CHAOS_SITE: site, CHAOS_AGENT: name },
    };
    writeFileSync(file, JSON.stringify(config));
    const logFile = join(directory, `${name}.log`);
    network.host(name);
    const command = network.at(name, process.execPath, [
      join(dist, "insitu-agent.js"),
      "run",
      "--config",
      file,
    ]);
    this.party = new Party({ name, ...command, env: clockEnv, logFile, speaks: false });
  }

  killSupervisors(): void {
    for (const pid of this.#supervisors()) trySignal(pid, "SIGKILL");
  }

  haltSupervisors(): void {
    this.#halted = this.#supervisors();
    for (const pid of this.#halted) trySignal(pid, "SIGSTOP");
  }

  letSupervisorsGoOn(): void {
    for (const pid of this.#halted) trySignal(pid, "SIGCONT");
    this.#halted = [];
  }

  /** As a power cut does; what is on disk stays. */
  async powerOff(): Promise<void> {
    await this.party.kill();
    this.killSupervisors();
    for (const pid of this.#steps()) trySignal(pid, "SIGKILL");
  }

  fillDisk(): void {
    const fd = openSync(join(this.#stateDir, "filler"), "w");
    try {
      const piece = Buffer.alloc(FILL_BYTES, 1);
      // At the end byte by byte, or nothing of a page would be left to find full.
      for (let size = piece.length; size >= 1; )
        try {
          writeSync(fd, piece, 0, size);
        } catch {
          size = Math.floor(size / 2);
        }
    } finally {
      closeSync(fd);
    }
  }

  freeDisk(): void {
    rmSync(join(this.#stateDir, "filler"), { force: true });
  }

  async close(): Promise<void> {
    this.letSupervisorsGoOn();
    await this.powerOff();
    if (this.#mounted) run("umount", "-l", this.#stateDir);
  }

  #supervisors(): number[] {
    const base = join(this.#stateDir, "supervisors");
    if (!existsSync(base)) return [];
    return readdirSync(base).flatMap((name) => {
      const pid = pidIn(join(base, name, "about.json"));
      // The number may be another process's by now.
      return pid !== undefined && read(`/proc/${pid}/cmdline`).includes(this.#stateDir) ? [pid] : [];
    });
  }

  #steps(): number[] {
    const mine = `CHAOS_AGENT=${this.#name}\0`;
    const here = `CHAOS_JOURNAL=${join(this.#stateDir, "..")}`;
    return readdirSync("/proc")
      .filter((entry) => /^\d+$/.test(entry))
      .filter((pid) => {
        const environment = read(`/proc/${pid}/environ`);
        return environment.includes(mine) && environment.includes(here);
      })
      .map(Number);
  }
}

/** Root, and mounts work. */
export function canMount(directory: string): boolean {
  mkdirSync(directory, { recursive: true });
  return run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory) && run("umount", directory);
}

function run(command: string, ...args: string[]): boolean {
  return spawnSync(command, args, { stdio: "ignore" }).status === 0;
}

function pidIn(file: string): number | undefined {
  try {
    return (JSON.parse(readFileSync(file, "utf8")) as { pid: number }).pid;
  } catch {
    return undefined; // it has just gone
  }
}

function read(file: string): string {
  try {
    return readFileSync(file, "latin1");
  } catch {
    return "";
  }
}
