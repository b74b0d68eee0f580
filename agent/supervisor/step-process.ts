/** One step as processes of this host: argv without a shell, its own group, separate output streams. */
import { type ChildProcess, spawn } from "node:child_process";
import type { Socket } from "node:net";
import type { Clock, Timer } from "../../shared/system.ts";
import type { StopReason } from "../executors/executor.ts";
import { endTree, killTree, type Leftovers, signalGroup } from "../executors/process-tree.ts";
import { type BoxedChild, endBox, spawnBoxed } from "../sandbox/boxed-process.ts";
import type { StepGroup } from "../sandbox/group-plan.ts";
import { type LimitsMet, limitsMet, makeGroup, removeGroup } from "../sandbox/step-group.ts";
import type { Traffic } from "../sandbox/way-out.ts";
import { identityOf, type ProcessIdentity } from "./process-identity.ts";
import type { StepSpec } from "./protocol.ts";

/** How long the pipes may stay open after the process has gone: an escaped child can hold them for ever. */
const PIPE_GRACE_MS = 250;
/** A process that hides from its marker and goes on writing is listened to this many graces longer. */
const PIPE_ROUNDS_MAX = 20;

export interface OutputSink {
  /** False: wait for `onDrain` before reading more. */
  write(stream: "stdout" | "stderr", data: Buffer): boolean;
  onDrain(resume: () => void): void;
}

export class StepProcess {
  readonly #spec: StepSpec;
  readonly #sink: OutputSink;
  readonly #clock: Clock;
  readonly #leftovers: Leftovers;
  /** The process that was started, and its group. */
  #leader: ProcessIdentity | undefined;
  #boxed: BoxedChild | undefined;
  #ending: Promise<void> | undefined;
  #timeout: Timer | undefined;
  stopped: { reason: StopReason; message: string } | null = null;

  constructor(spec: StepSpec, sink: OutputSink, clock: Clock, leftovers: Leftovers) {
    this.#spec = spec;
    this.#sink = sink;
    this.#clock = clock;
    this.#leftovers = leftovers;
  }

  /** Resolves when the process has gone, its pipes are closed, and a stopped one's whole tree has ended. */
  async run(): Promise<Exit> {
    const { timeoutMs, marker, box } = this.#spec;
    const group = box?.group;
    if (group) makeGroup(group);
    try {
      return await this.#run(timeoutMs, marker, group);
    } finally {
      if (group) await removeGroup(group, this.#clock);
    }
  }

  async #run(timeoutMs: number, marker: string, group: StepGroup | undefined): Promise<Exit> {
    const child = this.#spawn();
    if (child.pid !== undefined) this.#leader = identityOf(child.pid);
    this.#timeout = this.#clock.after(timeoutMs, () => {
      this.stop("timed-out", `it ran longer than its timeout of ${timeoutMs} ms`);
    });
    const exited = exitOf(child, this.#leader, this.#clock, () => this.#killLeftovers());
    this.#pipe(child, "stdout");
    this.#pipe(child, "stderr");
    try {
      const exit = await exited;
      const error = this.stopped ? undefined : this.#boxed?.trouble();
      const met = group && limitsMet(group);
      const network = await this.#boxed?.traffic();
      return {
        ...exit,
        ...(error ? { error } : {}),
        ...(met ? { limitsMet: met } : {}),
        ...(network ? { network } : {}),
      };
    } finally {
      this.#timeout.cancel();
      await this.#boxed?.traffic();
      await this.#ending;
      if (child.pid !== undefined && !this.#ending) this.#leftovers.add(marker);
    }
  }

  /** Ends the whole tree. The first reason counts. */
  stop(reason: StopReason, message: string): void {
    if (this.stopped) return;
    this.stopped = { reason, message };
    const { marker, killGraceMs } = this.#spec;
    const options = { graceMs: killGraceMs, clock: this.#clock };
    this.#ending = this.#boxed
      ? endBox(this.#boxed, marker, options)
      : endTree(marker, this.#leader, options);
  }

  #spawn(): ChildProcess {
    const { argv, box, cwd, env } = this.#spec;
    if (box) {
      this.#boxed = spawnBoxed(box, this.#clock);
      return this.#boxed.child;
    }
    const [command, ...args] = argv;
    return spawn(command!, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"], detached: true });
  }

  #pipe(child: ChildProcess, name: "stdout" | "stderr"): void {
    const stream = child[name]!;
    stream.on("data", (data: Buffer) => {
      if (this.#sink.write(name, data)) return;
      stream.pause();
      this.#sink.onDrain(() => stream.resume());
    });
    stream.on("error", () => undefined); // ends the stream; the exit says the rest
  }

  /** The step has ended; what it left behind in its group or under its marker ends with it. */
  #killLeftovers(): Promise<void> {
    this.#ending ??= killTree(this.#spec.marker, this.#leader, this.#clock);
    return this.#ending;
  }
}

export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
  error?: NodeJS.ErrnoException;
  limitsMet?: LimitsMet;
  network?: Traffic;
}

/**
 * Resolves after the process has gone and its pipes are closed. When they stay open past a grace, a child that
 * escaped holds them: what carries the marker is killed, and only then, without any output for another grace,
 * the pipes are closed here.
 */
function exitOf(
  child: ChildProcess,
  leader: ProcessIdentity | undefined,
  clock: Clock,
  killLeftovers: () => Promise<void>,
): Promise<Exit> {
  return new Promise((resolve, reject) => {
    let exit: Exit = { code: null, signal: null };
    let grace: Timer | undefined;
    let closed = false;
    const pipes = [child.stdout as Socket, child.stderr as Socket];
    const received = (): number => pipes.reduce((sum, pipe) => sum + pipe.bytesRead, 0);
    const closeUnlessRead = (before: number, rounds: number): void => {
      if (closed) return;
      // Paused: what was written waits for the journal. Timers run before the reads of the same turn, so what
      // lies in the pipe after a long turn is counted one turn later.
      const busy = received() !== before && rounds < PIPE_ROUNDS_MAX;
      if (busy || pipes.some((pipe) => pipe.isPaused())) return watch(rounds + 1);
      for (const pipe of pipes) pipe.destroy();
    };
    const watch = (rounds: number): void => {
      const before = received();
      grace = clock.after(PIPE_GRACE_MS, () => setImmediate(() => closeUnlessRead(before, rounds)));
    };
    child.once("error", (error: NodeJS.ErrnoException) => {
      if (child.pid === undefined) resolve({ code: null, signal: null, error });
    });
    child.once("exit", (code, signal) => {
      exit = { code, signal };
      signalGroup(leader, "SIGKILL");
      grace = clock.after(PIPE_GRACE_MS, () => {
        killLeftovers().then(() => watch(0), reject);
      });
    });
    child.once("close", () => {
      closed = true;
      grace?.cancel();
      resolve(exit);
    });
  });
}
