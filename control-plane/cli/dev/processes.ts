/** The children of `insitu dev`: each with a log of its own, an end that is noticed, and no life after its parent's. */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, fstatSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { InsituError } from "../../../shared/errors.ts";
import type { Clock } from "../../../shared/system.ts";

const TERM_GRACE_MS = 8_000;
const TAIL_LINES = 12;
const TAIL_MAX_BYTES = 16 * 1024;

export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

export interface ChildOptions {
  name: string;
  argv: readonly string[];
  env: NodeJS.ProcessEnv;
  logDirectory: string;
  clock: Clock;
  /** Called as soon as it has a number. */
  onSpawn(pid: number): void;
}

export class Child {
  readonly name: string;
  readonly logFile: string;
  readonly argv: readonly string[];
  readonly exited: Promise<Exit>;
  readonly #process: ChildProcess;
  readonly #clock: Clock;
  /** Where its own log begins: the file holds those of earlier starts too. */
  readonly #logFrom: number;
  #stopping = false;
  #exit: Exit | null = null;

  constructor(options: ChildOptions) {
    this.name = options.name;
    this.argv = options.argv;
    this.#clock = options.clock;
    this.logFile = join(options.logDirectory, `${options.name}.log`);
    mkdirSync(dirname(this.logFile), { recursive: true });
    const log = openSync(this.logFile, "a", 0o600);
    try {
      this.#logFrom = fstatSync(log).size;
      this.#process = spawn(process.execPath, options.argv, {
        env: options.env,
        // The channel closes when this process ends, however it ends; that tells the child to end too.
        stdio: ["ignore", log, log, "ipc"],
        // A group of its own: Ctrl-C reaches us alone, and we stop them in order.
        detached: true,
      });
    } finally {
      closeSync(log);
    }
    this.exited = new Promise((resolve) => {
      const done = (exit: Exit): void => {
        this.#exit ??= exit;
        resolve(this.#exit);
      };
      this.#process.once("exit", (code, signal) => done({ code, signal }));
      // It could not be started at all.
      this.#process.once("error", () => done({ code: 127, signal: null }));
    });
    if (this.#process.pid !== undefined) options.onSpawn(this.#process.pid);
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }
  /** True once it has been told to end: its exit is no crash. */
  get stopping(): boolean {
    return this.#stopping;
  }
  get running(): boolean {
    return this.#exit === null;
  }

  /**
   * The first message that `read` makes something of.
   *
   * @throws InsituError with the end of its log when it exits first; the reason of `signal`
   */
  message<T>(read: (message: unknown) => T | undefined, signal: AbortSignal): Promise<T> {
    return new Promise((resolve, reject) => {
      const end = (settle: () => void): void => {
        this.#process.off("message", onMessage);
        signal.removeEventListener("abort", onAbort);
        settle();
      };
      const onMessage = (message: unknown): void => {
        const value = read(message);
        if (value !== undefined) end(() => resolve(value));
      };
      const onAbort = (): void => end(() => reject(signal.reason));
      if (signal.aborted) return reject(signal.reason);
      this.#process.on("message", onMessage);
      signal.addEventListener("abort", onAbort, { once: true });
      void this.exited.then((exit) => end(() => reject(this.crash(exit))));
    });
  }

  /** From now on its end is no crash. */
  expectEnd(): void {
    this.#stopping = true;
  }

  /** Asks it to end, waits, and ends it with everything it started when it does not. */
  async stop(insist: AbortSignal): Promise<void> {
    this.#stopping = true;
    if (!this.running) return;
    this.#process.kill("SIGTERM");
    const patience = new AbortController();
    const late = this.#clock.sleep(TERM_GRACE_MS, AbortSignal.any([insist, patience.signal])).catch(() => {});
    await Promise.race([this.exited, late]);
    patience.abort();
    if (this.running) this.#killGroup();
    await this.exited;
  }

  /** What its exit means, with the end of its log. */
  crash(exit: Exit): InsituError {
    const how = exit.signal === null ? `with exit code ${exit.code}` : `by signal ${exit.signal}`;
    const tail = tailOf(this.#log());
    const end = tail === "" ? "Its log is empty" : `The end of its log:\n${tail}\nThe whole log`;
    return new InsituError("unavailable", `${this.name} ended ${how}. ${end}: ${this.logFile}`);
  }

  /** Whether its log holds such a text. */
  said(pattern: RegExp): boolean {
    return pattern.test(this.#log());
  }

  #log(): string {
    try {
      return readFileSync(this.logFile).subarray(this.#logFrom).toString("utf8");
    } catch {
      return ""; // no log, nothing to show of it
    }
  }

  #killGroup(): void {
    try {
      process.kill(-this.pid, "SIGKILL");
    } catch {
      this.#process.kill("SIGKILL"); // no group: it never got as far
    }
  }
}

/** The last lines of a log; entries in JSON as their message. */
function tailOf(log: string): string {
  const text = log.slice(-TAIL_MAX_BYTES);
  const lines = text.trimEnd().split("\n").slice(-TAIL_LINES);
  return lines
    .filter((line) => line !== "")
    .map((line) => `  | ${readable(line)}`)
    .join("\n");
}

function readable(line: string): string {
  if (!line.startsWith("{")) return line;
  try {
    const { msg, err } = JSON.parse(line) as { msg?: string; err?: { message?: string } };
    return [msg, err?.message].filter(Boolean).join(": ") || line;
  } catch {
    return line; // the beginning of it was cut off
  }
}
