/** Runs a step as processes of this host: argv without a shell, its own group, separate output streams. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import type { Socket } from "node:net";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import type { LeaseKey, Offer } from "../../shared/wire/attempt.ts";
import {
  type AttemptIo,
  type Execution,
  type ExecutionResult,
  type Executor,
  failure,
  type StopReason,
} from "./executor.ts";
import { endTree, killTree, Leftovers, MARKER_VARIABLE } from "./process-tree.ts";
import {
  collectOutputs,
  createWorkspace,
  keepArtifacts,
  ProductError,
  removeWorkspace,
  type Workspace,
  workspaceRoot,
} from "./workspace.ts";

/** How long the pipes may stay open after the process has gone: an escaped child can hold them for ever. */
const PIPE_GRACE_MS = 250;
/** A process that hides from its marker and goes on writing is listened to this many graces longer. */
const PIPE_ROUNDS_MAX = 20;

export interface ProcessExecutorOptions {
  clock: Clock;
  stateDir: string;
  /** Dataset name → path at this site. */
  datasets: Readonly<Record<string, string>>;
  stepEnv: Readonly<Record<string, string>>;
  killGraceMs: number;
}

export class ProcessExecutor implements Executor {
  readonly kind = "process";
  readonly #options: ProcessExecutorOptions;
  readonly #leftovers: Leftovers;

  constructor(options: ProcessExecutorOptions) {
    this.#options = options;
    this.#leftovers = new Leftovers(options.clock);
  }

  start(offer: Offer, io: AttemptIo): Execution {
    const execution = new ProcessExecution(offer, io, this.#options, this.#leftovers);
    return { done: execution.run(), stop: (reason, message) => execution.stop(reason, message) };
  }

  async cleanUp(offer: Offer): Promise<void> {
    await killTree(markerOf(this.#options, offer.lease), undefined, this.#options.clock);
    await removeWorkspace(workspaceRoot(workBase(this.#options), offer.lease));
  }

  settled(): Promise<void> {
    return this.#leftovers.settled();
  }
}

class ProcessExecution {
  readonly #offer: Offer;
  readonly #io: AttemptIo;
  readonly #options: ProcessExecutorOptions;
  readonly #leftovers: Leftovers;
  readonly #marker: string;
  #child: ChildProcess | undefined;
  #stopped: { reason: StopReason; message: string } | undefined;
  #ending: Promise<void> | undefined;
  #timeout: Timer | undefined;

  constructor(offer: Offer, io: AttemptIo, options: ProcessExecutorOptions, leftovers: Leftovers) {
    this.#offer = offer;
    this.#leftovers = leftovers;
    this.#io = io;
    this.#options = options;
    this.#marker = markerOf(options, offer.lease);
  }

  async run(): Promise<ExecutionResult> {
    const { datasets } = this.#options;
    const missing = [...this.#offer.step.reads, ...this.#offer.step.writes].filter(
      (name) => datasets[name] === undefined,
    );
    if (missing.length > 0) {
      const names = missing.join(", ");
      const advice = "add them to `datasets` in this agent's configuration";
      return failure("refused", "dataset.not-mounted", `not mounted at this agent: ${names}; ${advice}`);
    }
    let workspace: Workspace | undefined;
    try {
      workspace = await createWorkspace(workBase(this.#options), this.#offer);
      const exit = await this.#spawn(workspace);
      if (this.#stopped || exit.error || exit.code !== 0) return this.#failed(exit);
      return await this.#succeeded(workspace);
    } catch (thrown) {
      const message = thrown instanceof Error ? thrown.message : String(thrown);
      if (thrown instanceof InsituError && thrown.code === "offer.refused")
        return failure("refused", thrown.code, message);
      return failure("failed", thrown instanceof ProductError ? thrown.code : "agent", message);
    } finally {
      this.#timeout?.cancel();
      await this.#ending;
      if (this.#child?.pid !== undefined && !this.#ending) this.#leftovers.add(this.#marker);
      if (workspace) await removeWorkspace(workspace.root).catch(() => undefined); // tried again by the next start
    }
  }

  stop(reason: StopReason, message: string): void {
    if (this.#stopped) return;
    this.#stopped = { reason, message };
    const { clock, killGraceMs } = this.#options;
    this.#ending = endTree(this.#marker, this.#child?.pid, { graceMs: killGraceMs, clock });
  }

  async #spawn(workspace: Workspace): Promise<Exit> {
    const { executor, timeoutMs } = this.#offer.step;
    if (executor.kind !== "process") throw new Error(`executor ${executor.kind} is not a process`);
    if (this.#stopped) return { code: null, signal: null };
    const [command, ...args] = executor.argv;
    const child = spawn(command!, args, {
      cwd: workspace.work,
      env: stepEnvironment(this.#offer, workspace, this.#options, this.#marker),
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    this.#child = child;
    this.#timeout = this.#options.clock.after(timeoutMs, () => {
      this.stop("timed-out", `it ran longer than its timeout of ${timeoutMs} ms`);
    });
    const exited = exitOf(child, this.#options.clock, () => this.#killLeftovers());
    this.#pipe(child, "stdout");
    this.#pipe(child, "stderr");
    return await exited;
  }

  #pipe(child: ChildProcess, name: "stdout" | "stderr"): void {
    const stream = child[name]!;
    stream.on("data", (data: Buffer) => {
      if (this.#io.log(name, data)) return;
      stream.pause();
      this.#io.onDrain(() => stream.resume());
    });
    stream.on("error", () => undefined); // ends the stream; the exit says the rest
  }

  /** The step has ended; what it left behind in its group or under its marker ends with it. */
  #killLeftovers(): Promise<void> {
    this.#ending ??= killTree(this.#marker, this.#child?.pid, this.#options.clock);
    return this.#ending;
  }

  #failed(exit: Exit): ExecutionResult {
    const { code: exitCode, signal } = exit;
    if (this.#stopped) {
      const { reason, message } = this.#stopped;
      return failure(reason, reason === "timed-out" ? "timeout" : reason, message, { exitCode, signal });
    }
    if (exit.error) return failure("failed", "exec", describeSpawnError(exit.error, this.#offer));
    if (signal !== null)
      return failure("failed", "signal", `ended by signal ${signal}`, { exitCode, signal });
    return failure("failed", "exit", `exit code ${exitCode}`, { exitCode, signal });
  }

  async #succeeded(workspace: Workspace): Promise<ExecutionResult> {
    const { step } = this.#offer;
    try {
      const outputs = await collectOutputs(workspace, step.outputs);
      const artifacts = await keepArtifacts(
        workspace,
        step.artifacts,
        join(this.#options.stateDir, "artifacts"),
      );
      return { status: "succeeded", exitCode: 0, signal: null, error: null, outputs, artifacts };
    } catch (thrown) {
      if (!(thrown instanceof ProductError)) throw thrown;
      return failure("failed", thrown.code, thrown.message, { exitCode: 0 });
    }
  }
}

interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
  error?: NodeJS.ErrnoException;
}

/**
 * Resolves after the process has gone and its pipes are closed. When they stay open past a grace, a child that
 * escaped holds them: what carries the marker is killed, and only then, without any output for another grace,
 * the pipes are closed here.
 */
function exitOf(child: ChildProcess, clock: Clock, killLeftovers: () => Promise<void>): Promise<Exit> {
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
      groupKill(child.pid);
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

function groupKill(pid: number | undefined): void {
  try {
    if (pid !== undefined) process.kill(-pid, "SIGKILL");
  } catch {
    // nobody is left in the group
  }
}

/** The same after a restart, and another than that of any other agent on the host. */
function markerOf({ stateDir }: ProcessExecutorOptions, lease: LeaseKey): string {
  const text = `${stateDir}/${lease.runId}/${lease.stepId}/${lease.attempt}/${lease.epoch}`;
  return createHash("sha256").update(text).digest("hex").slice(0, 32);
}

function workBase(options: ProcessExecutorOptions): string {
  return join(options.stateDir, "work");
}

function stepEnvironment(
  offer: Offer,
  workspace: Workspace,
  options: ProcessExecutorOptions,
  marker: string,
): Record<string, string> {
  const { lease, step } = offer;
  const env: Record<string, string> = {
    HOME: workspace.work,
    TMPDIR: workspace.root,
    ...options.stepEnv,
    ...step.env,
  };
  for (const [name, value] of Object.entries(offer.params))
    env[`INSITU_PARAM_${variable(name)}`] = String(value);
  for (const name of [...step.reads, ...step.writes]) {
    env[`INSITU_DATASET_${variable(name)}`] = options.datasets[name]!;
  }
  return {
    ...env,
    INSITU_RUN_ID: lease.runId,
    INSITU_STEP_ID: lease.stepId,
    INSITU_ATTEMPT: String(lease.attempt),
    INSITU_EPOCH: String(lease.epoch),
    INSITU_ENVIRONMENT: offer.environment,
    INSITU_PIPELINE: offer.pipeline,
    INSITU_OUTPUT_DIR: workspace.outputs,
    INSITU_INPUT_DIR: workspace.inputs,
    TRACEPARENT: offer.traceparent,
    [MARKER_VARIABLE]: marker,
  };
}

function variable(name: string): string {
  return name.toUpperCase().replaceAll("-", "_");
}

function describeSpawnError(error: NodeJS.ErrnoException, offer: Offer): string {
  const { executor } = offer.step;
  const command = executor.kind === "process" ? executor.argv[0] : executor.kind;
  if (error.code === "ENOENT")
    return `there is no command ${command} on this host's PATH (see stepEnv in the agent's configuration)`;
  if (error.code === "EACCES") return `${command} may not be executed on this host`;
  if (error.code === "E2BIG")
    return `the arguments and environment of ${command} are too large for this host`;
  return `${command} could not be started: ${error.message}`;
}
