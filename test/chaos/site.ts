/** An agent with its host: supervisors, the processes of steps, a disk of its own, a clock of its own. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Disk } from "../support/disk.ts";
import type { Network } from "./network.ts";
import { Party, trySignal } from "./party.ts";
import { DATASET } from "./workload.ts";

const DISK = "48m";
const DISK_FREE_MIN_BYTES = 16 * 1024 * 1024;

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
  readonly #disk: Disk;
  #halted: number[] = [];

  constructor(options: HostOptions) {
    const { name, site, directory, dist, joinToken, journal, holdsData, ownDisk, clockEnv, network } =
      options;
    this.#name = name;
    this.#stateDir = join(directory, name);
    this.#disk = new Disk(this.#stateDir, ownDisk ? DISK : undefined);
    const file = join(directory, `${name}.json`);
    const config = {
      stateDir: this.#stateDir,
      name,
      joinToken,
      slots: 4,
      diskFreeMinBytes: this.#disk.mounted ? DISK_FREE_MIN_BYTES : 0,
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
    this.#disk.fill();
  }

  freeDisk(): void {
    this.#disk.free();
  }

  async close(): Promise<void> {
    this.letSupervisorsGoOn();
    await this.powerOff();
    this.#disk.close();
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
