/** The agent's side: finds its supervisors again, starts one when it needs one, and follows the steps they run. */
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import { exitOf, type Followed, FollowedStep, type FrameSink } from "./followed-step.ts";
import { identityOf } from "./process-identity.ts";
import { About, type StepSpec, SUPERVISOR_REVISION } from "./protocol.ts";
import { claim, startedOf } from "./started.ts";
import { SupervisorLine } from "./supervisor-line.ts";

const START_WITHIN_MS = 10_000;
/** After a supervisor could not be started, no step is begun for so long. */
const TROUBLE_MS = 10_000;
/** `sun_path` of unix(7) holds 108 bytes with its zero. */
const SOCKET_PATH_MAX = 100;
const FAR_PREFIX = "insitu-";

export interface SupervisorsOptions {
  clock: Clock;
  /** Of the agent; holds `supervisors/`. */
  stateDir: string;
  software: string;
  /** Starts the program in the background; it listens on the path soon after. `failed`: it ended before it did. */
  launch(directory: string, socketPath: string, failed: (why: Error) => void): void;
}

export class Supervisors {
  readonly #options: SupervisorsOptions;
  readonly #lines = new Set<SupervisorLine>();
  /** The one that new steps are given to. */
  #current: Promise<SupervisorLine> | undefined;
  #failed: { atMs: number; message: string } | undefined;

  constructor(options: SupervisorsOptions) {
    this.#options = options;
  }

  /** Finds those of an earlier process of this agent, also those that do not answer now. */
  async find(): Promise<void> {
    const base = join(this.#options.stateDir, "supervisors");
    for (const name of entries(base)) {
      const directory = join(base, name);
      const about = aboutOf(directory);
      if (about) this.#lines.add(this.#line(directory, about));
      else rmSync(directory, { recursive: true, force: true });
    }
    const states = await Promise.all([...this.#lines].map((line) => line.settled()));
    for (const [index, line] of [...this.#lines].entries()) if (states[index] === "gone") this.#remove(line);
    const fresh = [...this.#lines].find((line) => this.#isOurs(line));
    if (fresh) this.#current = Promise.resolve(fresh);
  }

  /** Whether it may be given steps to begin: it must understand all that we say of one. */
  #isOurs({ state, software, revision }: SupervisorLine): boolean {
    return state === "open" && software === this.#options.software && revision >= SUPERVISOR_REVISION;
  }

  /** Empty, or why no step can be begun now. */
  get trouble(): string {
    if (!this.#failed) return "";
    const isOver = this.#options.clock.monotonicMs() > this.#failed.atMs + TROUBLE_MS;
    return isOver ? "" : this.#failed.message;
  }

  /** @throws InsituError `unavailable` when no supervisor can be started */
  async start(spec: StepSpec, sink: FrameSink): Promise<Followed> {
    const line = await this.#usable();
    const { key, directory } = spec;
    line.send({ op: "start", spec });
    return new FollowedStep({ key, directory, offset: 0, sink, lines: [line] });
  }

  /** Takes a step up again. Undefined when it has not begun, and will not. */
  resume(key: string, directory: string, offset: number, sink: FrameSink): Followed | undefined {
    if (!existsSync(dirname(directory))) return undefined;
    const lines = exitOf(directory) ? [] : this.#candidates(directory);
    return lines && new FollowedStep({ key, directory, offset, sink, lines });
  }

  /** Ends those that have no step of ours and get none any more: of an earlier release, for example. */
  async dismiss(): Promise<void> {
    const current = await this.#current?.catch(() => undefined);
    for (const line of this.#lines) {
      if (line === current || line.isFollowing || !line.send({ op: "leave" })) continue;
      this.#lines.delete(line);
      line.end();
    }
  }

  /** Supervisors without a step end; the others go on without us. */
  close(): void {
    for (const line of this.#lines) {
      line.send({ op: "leave" });
      line.end();
    }
  }

  /** Which of them may run the step. Undefined when it has not begun. */
  #candidates(directory: string): SupervisorLine[] | undefined {
    const lines = [...this.#lines];
    const started = startedOf(directory);
    if (started === "unreadable") return lines;
    if (started) return lines.filter((line) => basename(line.directory) === started.supervisor);
    // One of the first revision leaves no word that a step has begun; the others have not begun it, or do not from
    // now on: a halted one may have our request still before it.
    const unmarked = lines.filter((line) => !line.marksStarts);
    if (existsSync(directory) && unmarked.length > 0) return unmarked;
    return this.#giveUp(directory) ? undefined : this.#candidates(directory);
  }

  /** False when somebody has begun it after all. */
  #giveUp(directory: string): boolean {
    try {
      return claim(directory, { supervisor: null, by: identityOf(process.pid) });
    } catch {
      // No room for the mark. Without its workspace nobody can begin it either, and that one is removed now.
      return true;
    }
  }

  /** Those that ask while one starts wait for the same one. */
  async #usable(): Promise<SupervisorLine> {
    for (;;) {
      this.#current ??= this.#launch();
      const current = this.#current;
      const line = await current.catch((thrown: unknown) => {
        if (this.#current === current) this.#current = undefined;
        throw thrown;
      });
      await line.settled();
      if (this.#isOurs(line)) return line;
      // Halted, or gone this moment.
      if (this.#current === current) this.#current = undefined;
    }
  }

  #line(directory: string, about: About, starting?: () => boolean): SupervisorLine {
    return new SupervisorLine({
      clock: this.#options.clock,
      directory,
      about,
      ...(starting ? { starting } : {}),
      onGone: (line) => this.#remove(line),
    });
  }

  #remove(line: SupervisorLine): void {
    this.#lines.delete(line);
    line.end();
    removeHome(line.directory, line.socketPath);
  }

  async #launch(): Promise<SupervisorLine> {
    const { clock, stateDir, launch } = this.#options;
    const id = newSecret(6);
    const directory = join(stateDir, "supervisors", id);
    let failure: Error | undefined;
    try {
      mkdirSync(directory, { recursive: true, mode: 0o700 });
      const socketPath = socketPathOf(directory, id);
      launch(directory, socketPath, (why) => {
        failure ??= why;
      });
      const untilMs = clock.monotonicMs() + START_WITHIN_MS;
      const starting = (): boolean => failure === undefined && clock.monotonicMs() < untilMs;
      const line = this.#line(directory, { socketPath, revision: SUPERVISOR_REVISION }, starting);
      this.#lines.add(line);
      const isOpen = await line.opened(START_WITHIN_MS);
      if (this.#isOurs(line)) {
        this.#failed = undefined;
        return line;
      }
      if (isOpen) failure = new Error("its program is of another release than this agent");
      line.send({ op: "leave" });
      this.#remove(line);
    } catch (thrown) {
      failure = thrown instanceof Error ? thrown : new Error(String(thrown));
      rmSync(directory, { recursive: true, force: true });
    }
    const why = failure?.message ?? `it does not answer within ${START_WITHIN_MS} ms`;
    const message = `the supervisor of steps does not start: ${why}. When the agent's program or Node was replaced, restart the agent; see also supervisor.log in its state directory`;
    this.#failed = { atMs: clock.monotonicMs(), message };
    throw new InsituError("unavailable", message, { retryable: true, cause: failure });
  }
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function aboutOf(directory: string): About | undefined {
  try {
    return About.parse(JSON.parse(readFileSync(join(directory, "about.json"), "utf8")));
  } catch {
    return undefined;
  }
}

function removeHome(directory: string, socketPath: string): void {
  const far = dirname(socketPath);
  if (far !== directory && basename(far).startsWith(FAR_PREFIX))
    rmSync(far, { recursive: true, force: true });
  rmSync(directory, { recursive: true, force: true });
}

function socketPathOf(directory: string, id: string): string {
  const near = join(directory, "socket");
  if (Buffer.byteLength(near) <= SOCKET_PATH_MAX) return near;
  const short = createHash("sha256").update(directory).digest("hex").slice(0, 16);
  const far = join(tmpdir(), `${FAR_PREFIX}${short}-${id}`);
  mkdirSync(far, { mode: 0o700 });
  chmodSync(far, 0o700);
  return join(far, "socket");
}
