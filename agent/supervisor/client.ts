/** The agent's side: finds its supervisors again, starts one when it needs one, and follows the steps they run. */
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import type { StopReason } from "../executors/executor.ts";
import {
  ExitRecord,
  FromSupervisor,
  onMessages,
  type StepSpec,
  SUPERVISOR_PROTOCOL,
  type ToSupervisor,
  tell,
} from "./protocol.ts";
import { type Frame, SpoolReader } from "./spool.ts";
import { EXIT_FILE, FRAMES } from "./supervisor.ts";

const CONNECT_RETRY_MS = 5;
const START_WITHIN_MS = 10_000;
const HELLO_WITHIN_MS = 5_000;
/** `sun_path` of unix(7) holds 108 bytes with its zero. */
const SOCKET_PATH_MAX = 100;

export interface SupervisorsOptions {
  clock: Clock;
  /** Of the agent; holds `supervisors/`. */
  stateDir: string;
  software: string;
  /** Starts the program in the background; it listens on the path soon after. */
  launch(directory: string, socketPath: string): void;
}

/** Takes what a step wrote. False: wait for `onDrain`. */
export interface FrameSink {
  /** What lies before it is not needed in the spool any more. */
  readonly storedOffset: number;
  frame(frame: Frame): boolean;
  onDrain(resume: () => void): void;
}

/** One step of a supervisor, as the agent follows it. */
export interface Followed {
  /** Resolves after all output was given to the sink; undefined when the supervisor has gone without a record. */
  readonly exit: Promise<ExitRecord | undefined>;
  stop(reason: StopReason, message: string): void;
}

export class Supervisors {
  readonly #options: SupervisorsOptions;
  readonly #lines = new Set<Line>();
  #current: Promise<Line> | undefined;

  constructor(options: SupervisorsOptions) {
    this.#options = options;
  }

  /** Finds those of an earlier process of this agent. */
  async find(): Promise<void> {
    const base = join(this.#options.stateDir, "supervisors");
    for (const name of entries(base)) {
      const directory = join(base, name);
      const socketPath = aboutOf(directory);
      const line = socketPath === undefined ? undefined : await Line.open(socketPath).catch(() => undefined);
      if (line) this.#add(line);
      else rmSync(directory, { recursive: true, force: true });
    }
    const fresh = [...this.#lines].find(({ software }) => software === this.#options.software);
    if (fresh) this.#current = Promise.resolve(fresh);
  }

  /** @throws InsituError `unavailable` when no supervisor can be started */
  async start(spec: StepSpec, sink: FrameSink): Promise<Followed> {
    this.#current ??= this.#launch();
    let line: Line;
    try {
      line = await this.#current;
    } catch (err) {
      this.#current = undefined;
      throw err;
    }
    const step = new Step(spec.key, spec.directory, 0, sink, line);
    line.send({ op: "start", spec });
    return step;
  }

  /** Takes a step up again. Undefined when it never began. */
  async resume(
    key: string,
    directory: string,
    offset: number,
    sink: FrameSink,
  ): Promise<Followed | undefined> {
    const record = exitOf(directory);
    if (record) return new Step(key, directory, offset, sink, undefined, record);
    for (const line of this.#lines) {
      if (!(await line.knows(key, offset))) continue;
      return new Step(key, directory, offset, sink, line);
    }
    // Nobody runs it: what it wrote is there, and its end, if it came to one while we asked.
    if (!existsSync(directory)) return undefined;
    return new Step(key, directory, offset, sink, undefined, exitOf(directory));
  }

  /** Supervisors without a step end; the others go on without us. */
  close(): void {
    for (const line of this.#lines) {
      line.send({ op: "leave" });
      line.end();
    }
  }

  #add(line: Line): void {
    this.#lines.add(line);
    line.onClose(() => {
      this.#lines.delete(line);
      this.#current = undefined;
    });
  }

  async #launch(): Promise<Line> {
    const { clock, stateDir, launch } = this.#options;
    const id = newSecret(6);
    const directory = join(stateDir, "supervisors", id);
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const socketPath = socketPathOf(directory, id);
    launch(directory, socketPath);
    const untilMs = clock.monotonicMs() + START_WITHIN_MS;
    for (;;) {
      try {
        const line = await Line.open(socketPath);
        this.#add(line);
        return line;
      } catch (err) {
        if (clock.monotonicMs() > untilMs) {
          throw new InsituError(
            "unavailable",
            "the supervisor of steps does not start; see the agent's log",
            {
              cause: err,
            },
          );
        }
        await clock.sleep(CONNECT_RETRY_MS);
      }
    }
  }
}

/** One connection to a supervisor. */
class Line {
  readonly software: string;
  readonly #socket: Socket;
  readonly #steps = new Map<string, Step>();
  readonly #asked = new Map<string, (known: boolean) => void>();
  #gone = false;
  #onClose: () => void = () => undefined;

  private constructor(socket: Socket, software: string) {
    this.#socket = socket;
    this.software = software;
  }

  static open(path: string): Promise<Line> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      let line: Line | undefined;
      socket.setTimeout(HELLO_WITHIN_MS, () => socket.destroy(new Error("no hello")));
      socket.on("error", reject);
      socket.on("close", () => {
        reject(new Error("closed"));
        line?.closed();
      });
      onMessages(socket, FromSupervisor, (message) => {
        if (line) return line.receive(message);
        if (message.say !== "hello" || message.protocol !== SUPERVISOR_PROTOCOL) {
          socket.destroy(new Error("another protocol"));
          return;
        }
        socket.setTimeout(0);
        line = new Line(socket, message.software);
        resolve(line);
      });
    });
  }

  get gone(): boolean {
    return this.#gone;
  }

  onClose(listener: () => void): void {
    this.#onClose = listener;
  }

  send(message: ToSupervisor): void {
    tell(this.#socket, message);
  }

  follow(key: string, step: Step): void {
    this.#steps.set(key, step);
  }

  forget(key: string): void {
    this.#steps.delete(key);
  }

  knows(key: string, offset: number): Promise<boolean> {
    if (this.#gone) return Promise.resolve(false);
    return new Promise((resolve) => {
      this.#asked.set(key, resolve);
      this.send({ op: "attach", key, offset });
    });
  }

  /** Of our own will: the steps go on, and nothing is concluded from our not hearing of them. */
  end(): void {
    this.#steps.clear();
    this.#socket.end();
  }

  receive(message: FromSupervisor): void {
    if (message.say === "hello") return;
    const { key } = message;
    this.#asked.get(key)?.(message.say !== "unknown");
    this.#asked.delete(key);
    const step = this.#steps.get(key);
    if (message.say === "output") step?.written(message.end);
    else if (message.say === "exit") step?.ended();
  }

  closed(): void {
    this.#gone = true;
    for (const resolve of this.#asked.values()) resolve(false);
    this.#asked.clear();
    for (const step of [...this.#steps.values()]) step.ended();
    this.#onClose();
  }
}

class Step implements Followed {
  readonly exit: Promise<ExitRecord | undefined>;
  readonly #key: string;
  readonly #directory: string;
  readonly #sink: FrameSink;
  readonly #line: Line | undefined;
  readonly #reader: SpoolReader;
  #resolve!: (record: ExitRecord | undefined) => void;
  #end: number;
  #record: ExitRecord | undefined;
  #over = false;
  #pumping = false;
  #done = false;

  constructor(
    key: string,
    directory: string,
    offset: number,
    sink: FrameSink,
    line: Line | undefined,
    record?: ExitRecord,
  ) {
    this.#key = key;
    this.#directory = directory;
    this.#sink = sink;
    this.#line = line;
    this.#reader = new SpoolReader(join(directory, FRAMES), offset);
    this.#end = offset;
    this.exit = new Promise((resolve) => {
      this.#resolve = resolve;
    });
    line?.follow(key, this);
    if (!line || line.gone) this.ended(record);
    // What came before this object is asked for once more.
    else line.send({ op: "attach", key, offset });
  }

  stop(reason: StopReason, message: string): void {
    this.#line?.send({ op: "stop", key: this.#key, stop: { reason, message } });
  }

  written(end: number): void {
    this.#end = Math.max(this.#end, end);
    void this.#pump();
  }

  /** The supervisor says so, or has gone. */
  ended(record = exitOf(this.#directory)): void {
    this.#record = record;
    this.#over = true;
    if (record) this.#end = record.end;
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
      const { offset } = this.#reader;
      this.#line?.send({ op: "read", key: this.#key, offset });
      this.#reader.forget(this.#sink.storedOffset);
    }
    this.#pumping = false;
    if (!this.#over || this.#done) return;
    this.#done = true;
    this.#line?.forget(this.#key);
    this.#resolve(this.#record);
  }

  /** Without a record nobody knows the end: all that is on disk. */
  #next(): Frame[] {
    return this.#reader.read(this.#over && !this.#record ? Number.MAX_SAFE_INTEGER : this.#end);
  }
}

export function exitOf(directory: string): ExitRecord | undefined {
  try {
    return ExitRecord.parse(JSON.parse(readFileSync(join(directory, EXIT_FILE), "utf8")));
  } catch {
    return undefined; // none, or one that a power cut has spoilt
  }
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function aboutOf(directory: string): string | undefined {
  try {
    const about = JSON.parse(readFileSync(join(directory, "about.json"), "utf8")) as { socketPath?: string };
    return about.socketPath;
  } catch {
    return undefined;
  }
}

function socketPathOf(directory: string, id: string): string {
  const near = join(directory, "socket");
  if (Buffer.byteLength(near) <= SOCKET_PATH_MAX) return near;
  const short = createHash("sha256").update(directory).digest("hex").slice(0, 16);
  const far = join(tmpdir(), `insitu-${short}-${id}`);
  mkdirSync(far, { mode: 0o700 });
  chmodSync(far, 0o700);
  return join(far, "socket");
}
