/** One process that takes part, and what a service manager does for it: it is started again when it ends by itself. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { systemClock } from "../../shared/system.ts";

const RESTART_MS = 500;
const LAST_LINES = 15;
const LAST_WORDS = 3;
const LAST_WORDS_MAX = 400;

export interface PartySpec {
  name: string;
  command: string;
  args: readonly string[];
  env?: NodeJS.ProcessEnv;
  logFile: string;
  /** The process speaks up over IPC when it is ready; without it a party is ready once it runs. */
  speaks: boolean;
}

export class Party {
  readonly name: string;
  /** Ends that nobody here asked for. */
  readonly ends: string[] = [];
  readonly #spec: PartySpec;
  #child: ChildProcess | undefined;
  #wanted = false;
  #stopped = false;
  /** Told after each start. */
  onStart: () => void = () => undefined;

  constructor(spec: PartySpec) {
    this.name = spec.name;
    this.#spec = spec;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Runs, and is not halted. */
  get up(): boolean {
    return this.#child !== undefined && !this.#stopped;
  }

  start(): void {
    this.#wanted = true;
    if (this.#child) return;
    const { command, args, env, logFile, speaks } = this.#spec;
    const log = openSync(logFile, "a");
    const child = spawn(command, args, {
      stdio: speaks ? ["ignore", log, log, "ipc"] : ["ignore", log, log],
      // What we trust ourselves is no help to a process that has to be told whom to trust.
      env: { ...process.env, NODE_EXTRA_CA_CERTS: undefined, ...env },
      detached: true,
    });
    closeSync(log);
    // Without it a channel to a process that was just killed ends this one.
    child.on("error", () => undefined);
    this.#child = child;
    this.#stopped = false;
    child.once("exit", (code, signal) => this.#ended(child, signal ?? `exit ${code}`));
    this.onStart();
  }

  /** Resolves with what it says first. @throws Error when it ends before */
  async ready(): Promise<void> {
    const child = this.#child;
    if (!child) throw new Error(`${this.name} does not run`);
    const gone = new AbortController();
    const said = once(child, "message", { signal: gone.signal });
    child.once("exit", () => gone.abort());
    await said.catch(() => {
      throw new Error(`${this.name} ended before it was ready: ${this.lastWords()}`);
    });
  }

  /** Resolves when it is gone; it stays away until `start`. */
  async kill(): Promise<void> {
    this.#wanted = false;
    const child = this.#child;
    if (!child) return;
    const gone = once(child, "exit");
    child.kill("SIGKILL");
    await gone;
  }

  halt(): void {
    this.#stopped = this.#child?.kill("SIGSTOP") ?? false;
  }

  goOn(): void {
    this.#child?.kill("SIGCONT");
    this.#stopped = false;
  }

  lastWords(): string {
    return readFileSync(this.#spec.logFile, "utf8").split("\n").slice(-LAST_LINES).join("\n");
  }

  /** What it said before it ended, short enough for a table. */
  #lastLine(): string {
    const lines = this.lastWords()
      .split("\n")
      .filter((line) => line !== "" && !line.startsWith("{"));
    return lines.slice(-LAST_WORDS).join(" / ").slice(0, LAST_WORDS_MAX);
  }

  #ended(child: ChildProcess, how: string): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    if (!this.#wanted) return;
    this.ends.push(`${how}: ${this.#lastLine()}`);
    systemClock.after(RESTART_MS, () => {
      if (this.#wanted) this.start();
    });
  }
}

/** False when it has gone. */
export function trySignal(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}
