/** The agent's side: finds its supervisors again, starts one when it needs one, and follows the steps they run. */
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret, type Timer } from "../../shared/system.ts";
import type { StopReason } from "../executors/executor.ts";
import {
  About,
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
const HELLO_WITHIN_MS = 2_000;
const ANSWER_WITHIN_MS = 5_000;
/** Of a supervisor that does not speak to us: between two looks at what its steps have left on disk. */
const LOOK_MS = 250;
/** `sun_path` of unix(7) holds 108 bytes with its zero. */
const SOCKET_PATH_MAX = 100;

export interface SupervisorsOptions {
  clock: Clock;
  /** Of the agent; holds `supervisors/`. */
  stateDir: string;
  software: string;
  /** Starts the program in the background; it listens on the path soon after. `failed`: it ended before it did. */
  launch(directory: string, socketPath: string, failed: (why: Error) => void): void;
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
  /** False when nobody is there to be asked: the caller has to end the processes itself. */
  stop(reason: StopReason, message: string): boolean;
}

export class Supervisors {
  readonly #options: SupervisorsOptions;
  readonly #lines = new Set<Line>();
  /** Directories of those that live and do not speak to us: they are stopped, overloaded, or of another release. */
  readonly #silent = new Set<string>();
  readonly #watches = new Set<() => void>();
  #current: Promise<Line> | undefined;

  constructor(options: SupervisorsOptions) {
    this.#options = options;
  }

  /** Finds those of an earlier process of this agent. */
  async find(): Promise<void> {
    const base = join(this.#options.stateDir, "supervisors");
    for (const name of entries(base)) {
      const directory = join(base, name);
      const about = aboutOf(directory);
      const line = about && (await Line.open(about.socketPath, this.#options.clock).catch(() => undefined));
      if (line) this.#add(line);
      // What its steps write and how they end lies on disk in any case.
      else if (isSupervisor(about?.pid, directory)) this.#silent.add(directory);
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
    let mute = this.#silent.size > 0;
    for (const line of this.#lines) {
      const answer = await line.knows(key, offset);
      if (answer === "yes") return new Step(key, directory, offset, sink, line);
      mute ||= answer === "silent";
    }
    if (!existsSync(directory)) return undefined;
    // Nobody runs it: what it wrote is there, and its end, if it came to one while we asked.
    const step = new Step(key, directory, offset, sink, undefined, exitOf(directory), mute);
    if (mute) this.#watch(step, directory);
    return step;
  }

  /** Of a step whose supervisor says nothing: its record ends it, or the death of every supervisor that may run it. */
  #watch(step: Step, directory: string): void {
    const { clock } = this.#options;
    const look = (): void => {
      const record = exitOf(directory);
      for (const silent of this.#silent)
        if (!isSupervisor(aboutOf(silent)?.pid, silent)) this.#silent.delete(silent);
      const mute = this.#silent.size > 0 || [...this.#lines].some((line) => line.isSilent);
      if (record || !mute) return step.ended(record);
      step.look();
      timer = clock.after(LOOK_MS, look);
    };
    let timer: Timer | undefined = clock.after(LOOK_MS, look);
    this.#watches.add(() => timer?.cancel());
  }

  /** Supervisors without a step end; the others go on without us. */
  close(): void {
    for (const end of this.#watches) end();
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
    let failure: Error | undefined;
    launch(directory, socketPath, (why) => {
      failure = why;
    });
    const untilMs = clock.monotonicMs() + START_WITHIN_MS;
    for (;;) {
      try {
        const line = await Line.open(socketPath, clock);
        this.#add(line);
        return line;
      } catch (err) {
        if (failure !== undefined || clock.monotonicMs() > untilMs) {
          rmSync(directory, { recursive: true, force: true });
          const why = failure?.message ?? `it does not answer within ${START_WITHIN_MS} ms`;
          throw new InsituError(
            "unavailable",
            `the supervisor of steps does not start: ${why}. When the agent's program or Node was replaced, restart the agent; see also supervisor.log in its state directory`,
            { retryable: true, cause: failure ?? err },
          );
        }
        await clock.sleep(CONNECT_RETRY_MS);
      }
    }
  }
}

type Answer = "yes" | "no" | "silent";

/** One connection to a supervisor. */
class Line {
  readonly software: string;
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #steps = new Map<string, Step>();
  readonly #asked = new Map<string, (answer: Answer) => void>();
  #gone = false;
  /** It has left a question without an answer, and has said nothing since. */
  isSilent = false;
  #onClose: () => void = () => undefined;

  private constructor(socket: Socket, software: string, clock: Clock) {
    this.#socket = socket;
    this.#clock = clock;
    this.software = software;
  }

  static open(path: string, clock: Clock): Promise<Line> {
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
        line = new Line(socket, message.software, clock);
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

  knows(key: string, offset: number): Promise<Answer> {
    if (this.#gone) return Promise.resolve("no");
    return new Promise((resolve) => {
      const late = this.#clock.after(ANSWER_WITHIN_MS, () => {
        this.isSilent = true;
        this.#asked.delete(key);
        resolve("silent");
      });
      this.#asked.set(key, (answer) => {
        late.cancel();
        resolve(answer);
      });
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
    this.isSilent = false;
    this.#asked.get(key)?.(message.say === "unknown" ? "no" : "yes");
    this.#asked.delete(key);
    const step = this.#steps.get(key);
    if (message.say === "output") step?.written(message.end);
    else if (message.say === "exit") step?.ended();
  }

  closed(): void {
    this.#gone = true;
    for (const answer of this.#asked.values()) answer("no");
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
    /** Somebody who does not speak to us may run it: nothing is concluded yet. */
    mute = false,
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
    if (mute && !record) this.look();
    else if (!line || line.gone) this.ended(record);
    // What came before this object is asked for once more.
    else line.send({ op: "attach", key, offset });
  }

  stop(reason: StopReason, message: string): boolean {
    this.#line?.send({ op: "stop", key: this.#key, stop: { reason, message } });
    return this.#line !== undefined;
  }

  /** Nobody tells how far it is: all whole frames on disk. */
  look(): void {
    this.written(this.#reader.size());
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

function aboutOf(directory: string): About | undefined {
  try {
    return About.parse(JSON.parse(readFileSync(join(directory, "about.json"), "utf8")));
  } catch {
    return undefined;
  }
}

/** Whether that process is the supervisor of that directory, and not one that got its number later. */
function isSupervisor(pid: number | undefined, directory: string): boolean {
  if (pid === undefined) return false;
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").includes(directory);
  } catch {
    return false; // it has ended
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
