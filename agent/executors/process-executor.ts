/** Runs a step as processes of this host or of a container image, under a supervisor that outlives the agent. */
import { createHash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { formatSize } from "../../shared/model/units.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import type { LeaseKey, Offer } from "../../shared/wire/attempt.ts";
import { highestClassification, type NetworkUse } from "../egress/egress-gate.ts";
import type { ImageStore } from "../images/image-store.ts";
import { SECRETS_DIRECTORY } from "../sandbox/box-plan.ts";
import { writeImageEtc } from "../sandbox/image-etc.ts";
import { hostsFile, type NetworkPlan, networkEnvironment } from "../sandbox/network-plan.ts";
import type { Boxed, BoxWishes, Sandbox } from "../sandbox/sandbox.ts";
import { removeGroup } from "../sandbox/step-group.ts";
import type { Traffic } from "../sandbox/way-out.ts";
import { SecretError } from "../secrets/secret-error.ts";
import type { ResolvedSecrets, Secrets } from "../secrets/secrets.ts";
import type { Supervisors } from "../supervisor/client.ts";
import type { Ending, Followed, FrameSink } from "../supervisor/followed-step.ts";
import type { ExitRecord, StepSpec } from "../supervisor/protocol.ts";
import {
  type AttemptIo,
  type Execution,
  type ExecutionResult,
  type Executor,
  failure,
  type StopReason,
} from "./executor.ts";
import { endTree, killTree, MARKER_VARIABLE } from "./process-tree.ts";
import { type Program, programOf } from "./program.ts";
import {
  concealed,
  removeSecretFiles,
  resolveSecrets,
  secretEnvironment,
  secretFilesOf,
} from "./step-secrets.ts";
import {
  collectOutputs,
  createWorkspace,
  handOver,
  keepArtifacts,
  ProductError,
  removeWorkspace,
  WORK,
  type Workspace,
  workspaceAt,
  workspaceRoot,
} from "./workspace.ts";

/** Beyond the grace, before a supervisor that was told to stop a step is passed over. */
const INSIST_AFTER_MS = 10_000;

export interface ProcessExecutorOptions {
  clock: Clock;
  stateDir: string;
  /** Dataset name → path at this site. */
  datasets: Readonly<Record<string, string>>;
  stepEnv: Readonly<Record<string, string>>;
  killGraceMs: number;
  sandbox: Sandbox;
  supervisors: Supervisors;
  /** Missing: this agent knows none. */
  secrets?: Secrets;
  /** Given: it runs containers, and no processes of the host. */
  images?: ImageStore;
}

export class ProcessExecutor implements Executor {
  readonly kind: "process" | "container";
  readonly #options: ProcessExecutorOptions;

  constructor(options: ProcessExecutorOptions) {
    this.kind = options.images ? "container" : "process";
    this.#options = options;
  }

  start(offer: Offer, io: AttemptIo): Execution {
    const execution = new ProcessExecution(offer, io, this.#options);
    return execution.as(execution.begin());
  }

  resume(offer: Offer, io: AttemptIo, offset: number): Execution | undefined {
    const execution = new ProcessExecution(offer, io, this.#options);
    const resumed = execution.resume(offset);
    return resumed && execution.as(resumed);
  }

  async cleanUp(offer: Offer): Promise<void> {
    await removeSecretFiles(this.#options.secrets, markerOf(this.#options, offer.lease));
    // The directory first: a supervisor that is told only now to start the step cannot.
    await removeWorkspace(workspaceRoot(workBase(this.#options), offer.lease));
    const marker = markerOf(this.#options, offer.lease);
    await killTree(marker, undefined, this.#options.clock);
    await removeGroup(this.#options.sandbox.groupOf(marker), this.#options.clock);
  }
}

class ProcessExecution implements FrameSink {
  readonly #offer: Offer;
  readonly #io: AttemptIo;
  readonly #options: ProcessExecutorOptions;
  readonly #root: string;
  #followed: Followed | undefined;
  #insisting: Timer | undefined;
  #stopped: { reason: StopReason; message: string } | undefined;
  /** Ends the waiting for secrets. */
  readonly #halt = new AbortController();

  constructor(offer: Offer, io: AttemptIo, options: ProcessExecutorOptions) {
    this.#offer = offer;
    this.#io = io;
    this.#options = options;
    this.#root = workspaceRoot(workBase(options), offer.lease);
  }

  as(done: Promise<ExecutionResult>): Execution {
    return {
      done,
      stop: (reason, message) => this.stop(reason, message),
      // Tried again by the next start when it fails.
      forget: async () => {
        // Left by a supervisor that was killed.
        await this.#removeSecretFiles().catch(() => undefined);
        await removeWorkspace(this.#root).catch(() => undefined);
      },
    };
  }

  async #removeSecretFiles(): Promise<void> {
    if (this.#offer.step.secrets === undefined) return;
    await removeSecretFiles(this.#options.secrets, markerOf(this.#options, this.#offer.lease));
  }

  async begin(): Promise<ExecutionResult> {
    const { datasets } = this.#options;
    const missing = [...this.#offer.step.reads, ...this.#offer.step.writes].filter(
      (name) => datasets[name] === undefined,
    );
    if (missing.length > 0) {
      const names = missing.join(", ");
      const advice = "add them to `datasets` in this agent's configuration";
      return failure("refused", "dataset.not-mounted", `not mounted at this agent: ${names}; ${advice}`);
    }
    const refusal = this.#options.sandbox.refusal(
      highestClassification(this.#offer),
      this.#offer.step.sandbox === "required",
    );
    if (refusal !== undefined) return failure("refused", "sandbox", refusal);
    try {
      const program = await programOf(this.#offer.step.executor, this.#options);
      if ("code" in program) return failure("refused", program.code, program.message);
      const { secrets: source, sandbox } = this.#options;
      const wanted = { secrets: source, boxed: sandbox.boxes, signal: this.#halt.signal };
      const secrets = await resolveSecrets(this.#offer, wanted);
      const workspace = await createWorkspace(workBase(this.#options), this.#offer);
      const spec = await this.#spec(workspace, program, secrets);
      if (spec.kind === "refused") return failure("refused", "sandbox", spec.message);
      const early = this.#wish();
      if (early) return failure(early.reason, early.reason, early.message);
      const followed = await this.#options.supervisors.start(spec.step, this);
      this.#followed = followed;
      const late = this.#wish();
      if (late) this.#tellStop(followed, late);
      return await this.#conclude(followed, workspace);
    } catch (thrown) {
      const wish = this.#wish();
      if (wish && thrown instanceof SecretError) return failure(wish.reason, wish.reason, wish.message);
      return failed(thrown);
    }
  }

  /** Undefined when the step has not begun, and will not by itself. */
  resume(offset: number): Promise<ExecutionResult> | undefined {
    const { lease } = this.#offer;
    const workspace = workspaceAt(workBase(this.#options), lease);
    const marker = markerOf(this.#options, lease);
    this.#followed = this.#options.supervisors.resume(marker, supervised(workspace), offset, this);
    return this.#followed && this.#conclude(this.#followed, workspace).catch(failed);
  }

  stop(reason: StopReason, message: string): void {
    if (this.#stopped) return;
    this.#stopped = { reason, message };
    this.#halt.abort(new InsituError("cancelled", message));
    if (this.#followed) this.#tellStop(this.#followed, { reason, message });
  }

  /** One that is halted takes the request and does nothing: its step is ended over its head in the end. */
  #tellStop(followed: Followed, { reason, message }: { reason: StopReason; message: string }): void {
    if (!followed.stop(reason, message)) return this.#end();
    const { clock, killGraceMs } = this.#options;
    this.#insisting = clock.after(killGraceMs + INSIST_AFTER_MS, () => this.#end());
  }

  /** Over the head of a supervisor that does not speak to us. A tree that cannot be listed ends with its timeout. */
  #end(): void {
    const { clock, killGraceMs: graceMs } = this.#options;
    const marker = markerOf(this.#options, this.#offer.lease);
    void endTree(marker, undefined, { graceMs, clock }).catch(() => undefined);
  }

  /** It may come at any await. */
  #wish(): { reason: StopReason; message: string } | undefined {
    return this.#stopped;
  }

  get storedOffset(): number {
    return this.#io.storedOffset;
  }

  frame({ stream, data, atMs, endOffset }: Parameters<FrameSink["frame"]>[0]): boolean {
    return this.#io.log(stream, data, { atMs, endOffset });
  }

  onDrain(resume: () => void): void {
    this.#io.onDrain(resume);
  }

  async #spec(
    workspace: Workspace,
    program: Program,
    secrets: ResolvedSecrets | undefined,
  ): Promise<{ kind: "step"; step: StepSpec } | { kind: "refused"; message: string }> {
    const { timeoutMs } = this.#offer.step;
    const marker = markerOf(this.#options, this.#offer.lease);
    const argv = [...program.argv];
    const network = this.#options.sandbox.planNetwork(this.#offer.step);
    if (typeof network === "string") return { kind: "refused", message: network };
    const filesAt = this.#options.sandbox.boxes ? undefined : secretFilesOf(this.#options.secrets, marker);
    const secretEnv = secrets ? secretEnvironment(secrets, filesAt ?? SECRETS_DIRECTORY) : {};
    const networkEnv = network ? networkEnvironment(network) : {};
    const own = { networkEnv, secretEnv, imageEnv: program.env };
    const env = stepEnvironment(this.#offer, workspace, this.#options, marker, own);
    const files = secrets?.files ?? {};
    const { rootfs } = program;
    const boxed = await this.#box(workspace, { marker, argv, env, secrets: files, network, rootfs });
    if (boxed.kind === "refused") return boxed;
    const step: StepSpec = {
      key: marker,
      directory: supervised(workspace),
      argv,
      env,
      cwd: workspace.work,
      marker,
      timeoutMs,
      killGraceMs: this.#options.killGraceMs,
      ...(secrets ? { secrets: concealed(this.#offer, workspace, secrets, filesAt) } : {}),
    };
    // Boxed, the environment is told to the innermost shell alone.
    return { kind: "step", step: boxed.kind === "boxed" ? { ...step, env: {}, box: boxed.box } : step };
  }

  async #box(
    workspace: Workspace,
    wishes: Pick<BoxWishes, "marker" | "argv" | "env"> & {
      secrets: Record<string, Buffer>;
      network: NetworkPlan | undefined;
      rootfs: string | undefined;
    },
  ): Promise<Boxed> {
    const { sandbox } = this.#options;
    if (!sandbox.boxes) return { kind: "plain" };
    const { work, inputs, outputs, scratch } = workspace;
    const { network: plan, rootfs, ...rest } = wishes;
    const hosts = join(workspace.root, "hosts");
    if (plan) await writeFile(hosts, hostsFile(plan), { mode: 0o644 });
    const etc = join(workspace.root, "etc");
    if (rootfs !== undefined) await writeImageEtc(etc, sandbox.owner ?? ownUser());
    if (sandbox.owner) await handOver([work, inputs, outputs, scratch], sandbox.owner);
    return sandbox.plan({
      step: this.#offer.step,
      ...rest,
      cwd: work,
      // Not their parent: it holds the supervisor's record of how the step ended.
      writable: [work, outputs, scratch],
      readable: [inputs],
      network: plan && { plan, hosts },
      image: rootfs === undefined ? undefined : { rootfs, etc },
    });
  }

  async #conclude(followed: Followed, workspace: Workspace): Promise<ExecutionResult> {
    const ending = await followed.ending;
    this.#insisting?.cancel();
    if (ending.kind !== "exited") return await this.#unknownEnd(ending);
    const { record, unreadBytes } = ending;
    this.#io.dropped(record.droppedBytes + unreadBytes, record.droppedLines ?? 0);
    const { sandbox } = this.#options;
    const result: ExecutionResult = {
      ...(await this.#ended(record, workspace)),
      ...(record.error ? {} : { sandbox: sandbox.recordOf(this.#offer.step) }),
      ...(record.network ? { network: networkUse(this.#offer.step, record.network) } : {}),
    };
    if (!record.secrets) return result;
    const { maskedInLog, maskedOutputs } = record.secrets;
    return {
      ...result,
      masked: { log: maskedInLog > 0, outputs: maskedOutputs ?? Object.keys(result.outputs) },
    };
  }

  async #ended(record: ExitRecord, workspace: Workspace): Promise<ExecutionResult> {
    // Of a supervisor that could not be told: its record knows of no wish, and the process did not end by itself.
    const stopped = record.stopped ?? (record.code === 0 ? null : (this.#stopped ?? null));
    if (stopped || record.error || record.code !== 0) return this.#failed({ ...record, stopped });
    if (this.#offer.step.secrets && record.secrets?.trouble !== null) {
      const why = record.secrets?.trouble ?? "its supervisor did not say that they were";
      return failure("failed", "secret.unmasked", `secrets could not be masked in the outputs: ${why}`, {
        exitCode: 0,
      });
    }
    return await this.#succeeded(workspace);
  }

  /** The host's trouble and not the step's: another grant may do better. */
  async #unknownEnd(ending: Exclude<Ending, { kind: "exited" }>): Promise<ExecutionResult> {
    const { clock, sandbox } = this.#options;
    const marker = markerOf(this.#options, this.#offer.lease);
    await killTree(marker, undefined, clock);
    await removeGroup(sandbox.groupOf(marker), clock);
    if (ending.kind === "lost") {
      const { reason = "interrupted", message = ending.why } = this.#stopped ?? {};
      return failure(reason, reason, message);
    }
    const { code, message } = ending.trouble;
    if (isDiskFull({ code })) return failed(Object.assign(new Error(message), { code }));
    return failure("interrupted", "supervisor", `the step could not begin: ${message}`);
  }

  #failed(exit: ExitRecord): ExecutionResult {
    const { code: exitCode, signal } = exit;
    if (exit.stopped) {
      const { reason, message } = exit.stopped;
      return failure(reason, reason === "timed-out" ? "timeout" : reason, message, { exitCode, signal });
    }
    const { memoryBytes, processes } = exit.limitsMet ?? {};
    if (memoryBytes !== undefined) {
      const limit = formatSize(memoryBytes);
      const message = `out of memory: it needed more than its limit of ${limit} (resources.memory of the step)`;
      return failure("failed", "memory", message, { exitCode, signal });
    }
    if (exit.error) return failure("failed", "exec", describeSpawnError(exit.error, this.#offer));
    const met =
      (processes === undefined
        ? ""
        : `; it met its limit of ${processes} processes (resources.processes of the step)`) +
      (exit.network?.trouble === undefined ? "" : `; on its way out, ${exit.network.trouble}`);
    if (signal !== null)
      return failure("failed", "signal", `ended by signal ${signal}${met}`, { exitCode, signal });
    return failure("failed", "exit", `exit code ${exitCode}${met}`, { exitCode, signal });
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

function failed(thrown: unknown): ExecutionResult {
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  if (thrown instanceof SecretError)
    return failure(thrown.kind === "missing" ? "refused" : "failed", `secret.${thrown.kind}`, message);
  if (thrown instanceof InsituError && thrown.code === "offer.refused")
    return failure("refused", thrown.code, message);
  // The host's trouble and not the step's: another grant may do better.
  if (isDiskFull(thrown))
    return failure("interrupted", "disk-full", `no room on the agent's disk: ${message}`);
  if (thrown instanceof InsituError && thrown.code === "unavailable")
    return failure("interrupted", "supervisor", message);
  return failure("failed", thrown instanceof ProductError ? thrown.code : "agent", message);
}

/** Of targets that it had to do with. */
function networkUse({ network }: Offer["step"], { targets, refused }: Traffic): NetworkUse[] {
  const uses = targets.map(([connections, failures, sentBytes, receivedBytes], index) => {
    return { target: network?.allow[index] ?? null, connections, failures, sentBytes, receivedBytes };
  });
  const others = { target: null, connections: 0, failures: refused, sentBytes: 0, receivedBytes: 0 };
  return [...uses, others].filter(({ connections, failures }) => connections + failures > 0);
}

function isDiskFull(thrown: unknown): boolean {
  return ["ENOSPC", "EDQUOT"].includes((thrown as NodeJS.ErrnoException).code ?? "");
}

function ownUser(): { uid: number; gid: number } {
  return { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
}

/** Where the supervisor keeps output and exit record. */
function supervised(workspace: Workspace): string {
  return join(workspace.root, "supervised");
}

/** The same after a restart, and another than that of any other agent on the host. */
function markerOf({ stateDir }: ProcessExecutorOptions, lease: LeaseKey): string {
  const text = `${stateDir}/${lease.runId}/${lease.stepId}/${lease.attempt}/${lease.epoch}`;
  return createHash("sha256").update(text).digest("hex").slice(0, 32);
}

function workBase(options: ProcessExecutorOptions): string {
  return join(options.stateDir, WORK);
}

function stepEnvironment(
  offer: Offer,
  workspace: Workspace,
  options: ProcessExecutorOptions,
  marker: string,
  {
    networkEnv,
    secretEnv,
    imageEnv,
  }: Record<"networkEnv" | "secretEnv" | "imageEnv", Record<string, string>>,
): Record<string, string> {
  const { lease, step } = offer;
  const env: Record<string, string> = {
    HOME: workspace.work,
    TMPDIR: workspace.scratch,
    ...options.stepEnv,
    ...imageEnv,
    // Before the step's own word: a proxy that the host's programs use is not there in the box.
    ...networkEnv,
    ...step.env,
    ...secretEnv,
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

function describeSpawnError(error: { code: string; message: string }, offer: Offer): string {
  const { executor } = offer.step;
  const image = executor.kind === "container" ? executor.image : undefined;
  const command = executor.kind === "process" ? executor.argv[0] : `the program of ${image}`;
  if (error.code === "BOX") return `the sandbox of ${command} could not be set up; the step's log says why`;
  if (error.code === "NETWORK") return `${command} was not started: ${error.message}`;
  if (error.code === "GROUP") return `the limits of ${command} could not be set: ${error.message}`;
  if (image !== undefined && (error.code === "ENOENT" || error.code === "EACCES"))
    return `${command} is not in the image, or not for every user to execute (see container.command of the step)`;
  if (error.code === "ENOENT")
    return `there is no command ${command} on this host's PATH (see stepEnv in the agent's configuration)`;
  if (error.code === "EACCES") return `${command} may not be executed on this host`;
  if (error.code === "E2BIG")
    return `the arguments and environment of ${command} are too large for this host`;
  return `${command} could not be started: ${error.message}`;
}
