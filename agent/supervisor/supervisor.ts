/**
 * Runs the processes of steps for an agent, and goes on when the agent is killed, restarted or upgraded: output and
 * exit record lie on disk, and whoever comes back reads them there.
 *
 * One of them serves all steps that an agent starts: a process for each would cost every step its start.
 */
import { closeSync, existsSync, fsyncSync, openSync, renameSync, writeSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { basename, join } from "node:path";
import type { Clock, Timer } from "../../shared/system.ts";
import { Leftovers } from "../executors/process-tree.ts";
import { identityOf, type ProcessIdentity } from "./process-identity.ts";
import {
  type ExitRecord,
  type FromSupervisor,
  onMessages,
  type StepSpec,
  SUPERVISOR_PROTOCOL,
  SUPERVISOR_REVISION,
  ToSupervisor,
  tell,
} from "./protocol.ts";
import { SpoolWriter } from "./spool.ts";
import { claim } from "./started.ts";
import { type Exit, type OutputSink, StepProcess } from "./step-process.ts";
import { StepSecrets } from "./step-secrets.ts";

/** Written and not read by the agent: above it the step's pipes are paused. */
const UNREAD_MAX_BYTES = 4 * 1024 * 1024;
/** While no agent is there nothing is paused; above this, output is dropped and counted. */
const ALONE_MAX_BYTES = 64 * 1024 * 1024;
/** Without an agent and without a step for so long, it ends. */
const IDLE_MS = 30_000;
/** A full disk must not cost the exit record: its room is taken before the step starts. */
const SLOT_BYTES = 4096;
const SLOT = "exit.slot";
export const EXIT_FILE = "exit.json";
export const FRAMES = "frames";
const MESSAGE_MAX_CHARS = 2_000;
/** Names of outputs in an exit record, which have 63 characters at most. */
const NAMED_MAX = 16;
/** Between two tries to write an exit record to a disk that is full. */
const KEEP_AGAIN_MS = 500;

export interface SupervisorOptions {
  /** Its own; steps that it begins bear its name. */
  directory: string;
  socketPath: string;
  software: string;
  clock: Clock;
  /** Called when it has nothing to do any more. */
  onIdle(): void;
}

export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #attempts = new Map<string, Attempt>();
  readonly #agents = new Set<Socket>();
  readonly #leftovers: Leftovers;
  readonly #server: Server;
  readonly #identity: ProcessIdentity = identityOf(process.pid);
  #idle: Timer | undefined;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#leftovers = new Leftovers(options.clock);
    this.#server = createServer((socket) => this.#welcome(socket));
  }

  async start(): Promise<void> {
    const { socketPath } = this.#options;
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(socketPath, resolve);
    });
    this.#watchIdle();
  }

  /** Stops every step. Resolves when each has its exit record. */
  async close(message: string): Promise<void> {
    this.#idle?.cancel();
    for (const attempt of this.#attempts.values()) attempt.process.stop("interrupted", message);
    await Promise.all([...this.#attempts.values()].map(({ done }) => done));
    await this.#leftovers.settled();
    for (const agent of this.#agents) agent.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #welcome(socket: Socket): void {
    this.#agents.add(socket);
    this.#idle?.cancel();
    socket.on("error", () => undefined); // "close" follows
    socket.on("close", () => {
      this.#agents.delete(socket);
      if (this.#agents.size === 0) for (const attempt of this.#attempts.values()) attempt.drain();
      this.#watchIdle();
    });
    onMessages(socket, ToSupervisor, (message) => this.#receive(socket, message));
    const { software } = this.#options;
    tell(socket, {
      say: "hello",
      protocol: SUPERVISOR_PROTOCOL,
      revision: SUPERVISOR_REVISION,
      software,
      pid: process.pid,
    });
  }

  #receive(socket: Socket, message: ToSupervisor): void {
    switch (message.op) {
      case "start":
        return this.#begin(message.spec);
      case "attach": {
        const attempt = this.#attempts.get(message.key);
        if (!attempt) return tell(socket, { say: "unknown", key: message.key });
        attempt.read(message.offset);
        return tell(socket, { say: "output", key: message.key, end: attempt.end });
      }
      case "read":
        return this.#attempts.get(message.key)?.read(message.offset);
      case "stop":
        return this.#attempts.get(message.key)?.process.stop(message.stop.reason, message.stop.message);
      case "leave":
        if (this.#attempts.size === 0) void this.#leftovers.settled().then(() => this.#options.onIdle());
        return;
      default:
        return;
    }
  }

  #begin(spec: StepSpec): void {
    if (this.#attempts.has(spec.key)) return;
    const { clock, directory } = this.#options;
    const say = (message: FromSupervisor): void => {
      for (const agent of this.#agents) tell(agent, message);
    };
    let attempt: Attempt;
    try {
      // Never twice: also when the agent was killed between asking and remembering that it did. The record is looked
      // for as well: a supervisor of the first revision left nothing else.
      const recorded = existsSync(join(spec.directory, EXIT_FILE));
      if (recorded || !claim(spec.directory, { supervisor: basename(directory), by: this.#identity }))
        return say({ say: "exit", key: spec.key });
      attempt = new Attempt(spec, clock, this.#leftovers, { attached: () => this.#agents.size > 0, say });
    } catch (thrown) {
      // No room for its files, or they are gone: it never began, and the steps that run here are not to fall with it.
      const { code = "", message } = thrown as NodeJS.ErrnoException;
      return say({
        say: "exit",
        key: spec.key,
        error: { code, message: message.slice(0, MESSAGE_MAX_CHARS) },
      });
    }
    this.#attempts.set(spec.key, attempt);
    attempt.done = attempt.run().finally(() => {
      this.#attempts.delete(spec.key);
      this.#watchIdle();
    });
  }

  #watchIdle(): void {
    this.#idle?.cancel();
    if (this.#agents.size > 0 || this.#attempts.size > 0) return;
    this.#idle = this.#options.clock.after(IDLE_MS, () => this.#options.onIdle());
  }
}

class Attempt implements OutputSink {
  readonly process: StepProcess;
  done: Promise<void> = Promise.resolve();
  readonly #spec: StepSpec;
  readonly #clock: Clock;
  readonly #world: { attached(): boolean; say(message: FromSupervisor): void };
  readonly #spool: SpoolWriter;
  /** The room for the exit record. */
  readonly #slot: number;
  readonly #secrets: StepSecrets | undefined;
  #read = 0;
  #resumes: (() => void)[] = [];

  constructor(
    spec: StepSpec,
    clock: Clock,
    leftovers: Leftovers,
    world: { attached(): boolean; say(message: FromSupervisor): void },
  ) {
    this.#spec = spec;
    this.#clock = clock;
    this.#world = world;
    this.#spool = new SpoolWriter(join(spec.directory, FRAMES));
    this.#slot = reserve(spec.directory);
    try {
      this.#secrets = spec.secrets && new StepSecrets(spec.secrets);
    } catch (thrown) {
      closeSync(this.#slot);
      throw thrown;
    }
    this.process = new StepProcess(spec, this, clock, leftovers);
  }

  get end(): number {
    return this.#spool.end;
  }

  write(stream: "stdout" | "stderr", data: Buffer): boolean {
    return this.#append(stream, this.#secrets ? this.#secrets.mask(stream, data) : data);
  }

  #append(stream: "stdout" | "stderr", data: Buffer): boolean {
    const unread = this.#spool.end - this.#read;
    if (!this.#world.attached() && unread > ALONE_MAX_BYTES) {
      this.#spool.drop(data);
      return true;
    }
    // All of it held back: the beginning of a secret, perhaps.
    if (data.length > 0) this.#spool.append(stream, this.#clock.wallMs(), data);
    this.#world.say({ say: "output", key: this.#spec.key, end: this.#spool.end });
    return !this.#world.attached() || unread < UNREAD_MAX_BYTES;
  }

  onDrain(resume: () => void): void {
    this.#resumes.push(resume);
  }

  /** The agent has everything before the offset. */
  read(offset: number): void {
    this.#read = Math.max(this.#read, offset);
    if (this.#spool.end - this.#read < UNREAD_MAX_BYTES / 2) this.drain();
  }

  drain(): void {
    for (const resume of this.#resumes.splice(0)) resume();
  }

  async run(): Promise<void> {
    const startedAtMs = this.#clock.wallMs();
    let exit: Exit;
    try {
      exit = await this.process.run();
    } catch (thrown) {
      exit = { code: null, signal: null, error: thrown as NodeJS.ErrnoException };
    }
    const secrets = this.#concealed();
    this.#spool.close();
    const { error } = exit;
    const record: ExitRecord = {
      v: 1,
      code: exit.code,
      signal: exit.signal,
      stopped: this.process.stopped && shortened(this.process.stopped),
      error: error
        ? { code: error.code ?? "", message: this.#shown(error.message).slice(0, MESSAGE_MAX_CHARS / 2) }
        : null,
      startedAtMs,
      endedAtMs: this.#clock.wallMs(),
      end: this.#spool.end,
      droppedBytes: this.#spool.droppedBytes,
      droppedLines: this.#spool.droppedLines,
      ...(secrets ? { secrets } : {}),
      ...(exit.limitsMet ? { limitsMet: exit.limitsMet } : {}),
      ...(exit.network ? { network: exit.network } : {}),
    };
    await this.#keep(record);
    this.#world.say({ say: "exit", key: this.#spec.key });
  }

  #shown(message: string): string {
    return this.#secrets ? this.#secrets.text(message) : message;
  }

  /** The step has ended: what was held back is written, its outputs are masked, and the files of its secrets go. */
  #concealed(): ExitRecord["secrets"] {
    const secrets = this.#secrets;
    if (!secrets) return undefined;
    for (const stream of ["stdout", "stderr"] as const) this.#append(stream, secrets.end(stream));
    let trouble: string | null = null;
    try {
      secrets.maskOutputs();
    } catch (thrown) {
      trouble = (thrown as NodeJS.ErrnoException).code ?? "unknown";
    }
    try {
      secrets.withdraw();
    } catch {
      // The agent removes the directory again when it has the outcome.
    }
    const { maskedInLog, maskedOutputs } = secrets;
    return { maskedInLog, maskedOutputs: maskedOutputs.length > NAMED_MAX ? null : maskedOutputs, trouble };
  }

  /** The true end is worth waiting for: where the reserved room does not suffice, it is tried until there is more. */
  async #keep(record: ExitRecord): Promise<void> {
    for (;;) {
      try {
        // With the agent there, its journal has the outcome on disk within milliseconds.
        keep(this.#spec.directory, this.#slot, record, !this.#world.attached());
        return closeSync(this.#slot);
      } catch (thrown) {
        // Else the agent has given the attempt up and removed its directory: nobody wants to know.
        if (!isFull(thrown)) return closeSync(this.#slot);
      }
      await this.#clock.sleep(KEEP_AGAIN_MS);
    }
  }
}

function isFull(thrown: unknown): boolean {
  return ["ENOSPC", "EDQUOT"].includes((thrown as NodeJS.ErrnoException).code ?? "");
}

function shortened<T extends { message: string }>(stopped: T): T {
  return { ...stopped, message: stopped.message.slice(0, MESSAGE_MAX_CHARS / 2) };
}

/** @throws ENOSPC: the step is not to begin then */
function reserve(directory: string): number {
  const fd = openSync(join(directory, SLOT), "w", 0o600);
  try {
    writeWhole(fd, Buffer.alloc(SLOT_BYTES, " "));
    return fd;
  } catch (thrown) {
    closeSync(fd);
    throw thrown;
  }
}

/** In place, then under its name: it is complete or absent. @throws ENOSPC; may be called again then */
function keep(directory: string, slot: number, record: ExitRecord, durable: boolean): void {
  writeWhole(slot, Buffer.from(JSON.stringify(record)));
  if (durable) fsyncSync(slot);
  renameSync(join(directory, SLOT), join(directory, EXIT_FILE));
  if (durable) syncDirectory(directory);
}

/** Of a disk with little room, a write takes what there is, and only the next one fails. */
function writeWhole(fd: number, bytes: Buffer): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, at);
}

function syncDirectory(directory: string): void {
  const fd = openSync(directory, "r");
  fsyncSync(fd);
  closeSync(fd);
}
