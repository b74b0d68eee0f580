/** One step as the agent follows it: its output out of the spool, in order, and then how it ended. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { StopReason } from "../executors/executor.ts";
import { isOfAnotherBoot } from "./process-identity.ts";
import { ExitRecord, type Trouble } from "./protocol.ts";
import { type Frame, SpoolReader } from "./spool.ts";
import { startedOf } from "./started.ts";
import { EXIT_FILE, FRAMES } from "./supervisor.ts";
import type { LineStep, SupervisorLine } from "./supervisor-line.ts";

/** Takes what a step wrote. False: wait for `onDrain`. */
export interface FrameSink {
  /** What lies before it is not needed in the spool any more. */
  readonly storedOffset: number;
  frame(frame: Frame): boolean;
  onDrain(resume: () => void): void;
}

/** How a step ended; `lost`: its end is not known, or it had no beginning. `unreadBytes` of its spool were spoilt. */
export type Ending =
  | { kind: "exited"; record: ExitRecord; unreadBytes: number }
  | { kind: "not-begun"; trouble: Trouble }
  | { kind: "lost"; why: string };

export interface Followed {
  /** Resolves after all output was given to the sink. */
  readonly ending: Promise<Ending>;
  /** False when its supervisor cannot be told now: the caller has to end the processes itself. */
  stop(reason: StopReason, message: string): boolean;
}

export interface FollowedStepOptions {
  key: string;
  directory: string;
  offset: number;
  sink: FrameSink;
  /** Those that may run it; none when its end is on record, or nobody runs it. */
  lines: readonly SupervisorLine[];
}

export class FollowedStep implements Followed, LineStep {
  readonly ending: Promise<Ending>;
  readonly key: string;
  readonly #directory: string;
  readonly #sink: FrameSink;
  readonly #lines: Set<SupervisorLine>;
  readonly #reader: SpoolReader;
  #resolve!: (ending: Ending) => void;
  #end: number;
  #record: ExitRecord | undefined;
  #trouble: Trouble | undefined;
  #wish: { reason: StopReason; message: string } | undefined;
  #over = false;
  #pumping = false;
  #done = false;
  /** The spool cannot be read any further. */
  #spoilt = false;

  constructor({ key, directory, offset, sink, lines }: FollowedStepOptions) {
    this.key = key;
    this.#directory = directory;
    this.#sink = sink;
    this.#lines = new Set(lines);
    this.#reader = new SpoolReader(join(directory, FRAMES), offset);
    this.#end = offset;
    this.ending = new Promise((resolve) => {
      this.#resolve = resolve;
    });
    if (lines.length === 0) this.#ended();
    else for (const line of lines) line.follow(this);
  }

  get offset(): number {
    return this.#reader.offset;
  }

  stop(reason: StopReason, message: string): boolean {
    this.#wish = { reason, message };
    const [line] = this.#lines;
    return this.#lines.size === 1 && line!.send({ op: "stop", key: this.key, stop: this.#wish });
  }

  known(line: SupervisorLine): void {
    for (const other of this.#lines) {
      if (other === line) continue;
      other.forget(this.key);
      this.#lines.delete(other);
    }
  }

  unknown(line: SupervisorLine): void {
    this.#lines.delete(line);
    line.forget(this.key);
    if (this.#lines.size === 0) this.#ended();
  }

  written(end: number): void {
    // After a connection was lost, what was asked meanwhile is asked again; it knows repeats.
    if (this.#wish) this.#tell({ op: "stop", key: this.key, stop: this.#wish });
    this.#end = Math.max(this.#end, end);
    void this.#pump();
  }

  exited(trouble: Trouble | undefined): void {
    this.#trouble = trouble;
    this.#ended();
  }

  look(): void {
    if (this.#over) return;
    if (exitOf(this.#directory)) return this.#ended();
    this.#end = Math.max(this.#end, this.#reader.size());
    void this.#pump();
  }

  #ended(): void {
    if (this.#over) return;
    this.#record = exitOf(this.#directory);
    this.#over = true;
    if (this.#record) this.#end = this.#record.end;
    void this.#pump();
  }

  async #pump(): Promise<void> {
    if (this.#pumping) return;
    this.#pumping = true;
    for (let frames = this.#next(); frames.length > 0; frames = this.#next()) {
      for (const frame of frames) {
        if (this.#sink.frame(frame)) continue;
        await new Promise<void>((resolve) => this.#sink.onDrain(resolve));
      }
      this.#tell({ op: "read", key: this.key, offset: this.#reader.offset });
      this.#reader.forget(this.#sink.storedOffset);
      // Heartbeats and other steps have their turn in a flood.
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
    this.#pumping = false;
    if (!this.#over || this.#done) return;
    this.#done = true;
    for (const line of this.#lines) line.forget(this.key);
    this.#resolve(this.#conclusion());
  }

  #conclusion(): Ending {
    if (this.#record) {
      const unreadBytes = Math.max(0, this.#record.end - this.#reader.offset);
      return { kind: "exited", record: this.#record, unreadBytes };
    }
    if (this.#trouble) return { kind: "not-begun", trouble: this.#trouble };
    return { kind: "lost", why: describeLoss(this.#directory) };
  }

  /** Without a record nobody knows the end: all that is on disk. */
  #next(): Frame[] {
    if (this.#spoilt) return [];
    try {
      return this.#reader.read(this.#over && !this.#record ? Number.MAX_SAFE_INTEGER : this.#end);
    } catch {
      // A disk that does not give back what it was given: the step's end counts, the loss of output is counted.
      this.#spoilt = true;
      return [];
    }
  }

  #tell(message: Parameters<SupervisorLine["send"]>[0]): void {
    for (const line of this.#lines) line.send(message);
  }
}

export function exitOf(directory: string): ExitRecord | undefined {
  try {
    return ExitRecord.parse(JSON.parse(readFileSync(join(directory, EXIT_FILE), "utf8")));
  } catch {
    return undefined; // none, or one that a power cut has spoilt
  }
}

function describeLoss(directory: string): string {
  const started = startedOf(directory);
  if (started === undefined || (started !== "unreadable" && started.supervisor === null))
    return "the step had not begun when its agent was ended";
  if (started !== "unreadable" && isOfAnotherBoot(started.by))
    return "the host was restarted while the step ran, and how it ended is not known";
  return "the supervisor of the step ended without an exit record";
}
