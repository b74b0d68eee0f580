/**
 * The agent's line to one supervisor, held for as long as that process lives.
 *
 * That it does not answer proves nothing: it may be halted, its host overloaded, or it may speak another protocol. Its
 * steps go on meanwhile, and what they write lies on disk. Only when nobody listens on its socket and its process has
 * gone, it has ended.
 */
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import type { Clock, Timer } from "../../shared/system.ts";
import { isAlive, isOfAnotherBoot } from "./process-identity.ts";
import {
  type About,
  FromSupervisor,
  onMessages,
  SUPERVISOR_PROTOCOL,
  type ToSupervisor,
  tell,
} from "./protocol.ts";

const HELLO_WITHIN_MS = 2_000;
const CONNECT_RETRY_MS = 5;
const CONNECT_RETRY_MAX_MS = 1_000;
/** While it does not speak to us: between two looks at what its steps have left on disk. */
const LOOK_MS = 250;

/** `silent`: it lives and says nothing. `foreign`: it speaks, and not our protocol. */
type LineState = "connecting" | "open" | "silent" | "foreign" | "gone";

/** A step as its line knows it. */
export interface LineStep {
  readonly key: string;
  /** The line speaks (again): what it is asked about the step. */
  readonly offset: number;
  /** It runs there. */
  known(line: SupervisorLine): void;
  /** It does not run there, or not any more. */
  unknown(line: SupervisorLine): void;
  written(end: number): void;
  exited(trouble: { code: string; message: string } | undefined): void;
  /** Nobody tells how far it is: what is on disk. */
  look(): void;
}

export interface SupervisorLineOptions {
  clock: Clock;
  directory: string;
  about: About;
  /** While true, nobody listening means that it is about to. */
  starting?: () => boolean;
  onGone(line: SupervisorLine): void;
}

export class SupervisorLine {
  readonly #options: SupervisorLineOptions;
  readonly #steps = new Map<string, LineStep>();
  #state: LineState = "connecting";
  #socket: Socket | undefined;
  #retry: Timer | undefined;
  #retryMs = CONNECT_RETRY_MS;
  #looking: Timer | undefined;
  #ended = false;
  #waiting: (() => void)[] = [];
  software = "";
  /** 0 until it has said it. */
  revision = 0;

  constructor(options: SupervisorLineOptions) {
    this.#options = options;
    // The ids of processes mean nothing after a restart of the host, and neither does a socket's file.
    if (isOfAnotherBoot({ bootId: options.about.process?.bootId ?? null })) this.#state = "gone";
    else this.#connect();
  }

  get directory(): string {
    return this.#options.directory;
  }

  get socketPath(): string {
    return this.#options.about.socketPath;
  }

  get state(): LineState {
    return this.#state;
  }

  /** Whether it writes `started.json` before a step begins; unknown of one that has left no word of its own. */
  get marksStarts(): boolean {
    return (this.#options.about.revision ?? 1) >= 2;
  }

  /** Resolves once it is known what state it is in. */
  async settled(): Promise<LineState> {
    while (this.#state === "connecting") await this.#changed();
    return this.#state;
  }

  /** Waits for a slow one too. False when it has gone, cannot be spoken to, or takes longer than that. */
  async opened(withinMs: number): Promise<boolean> {
    let isLate = false;
    const late = this.#options.clock.after(withinMs, () => {
      isLate = true;
      this.#wake();
    });
    while (!isLate && (this.#state === "connecting" || this.#state === "silent")) await this.#changed();
    late.cancel();
    return this.#state === "open";
  }

  #changed(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** False when it cannot be told now. */
  send(message: ToSupervisor): boolean {
    if (this.#state !== "open" || !this.#socket) return false;
    tell(this.#socket, message);
    return true;
  }

  follow(step: LineStep): void {
    this.#steps.set(step.key, step);
    if (this.#state === "gone") step.unknown(this);
    else this.send({ op: "attach", key: step.key, offset: step.offset });
  }

  forget(key: string): void {
    this.#steps.delete(key);
  }

  get isFollowing(): boolean {
    return this.#steps.size > 0;
  }

  /** Of our own will: its steps go on, and nothing is concluded from our not hearing of them. */
  end(): void {
    this.#ended = true;
    this.#steps.clear();
    this.#retry?.cancel();
    this.#looking?.cancel();
    if (this.#state === "open") this.#socket?.end();
    else this.#socket?.destroy();
  }

  #connect(): void {
    const { clock, about } = this.#options;
    const socket = connect(about.socketPath);
    this.#socket = socket;
    let reached = false;
    let heard: "nothing" | "hello" | "foreign" = "nothing";
    const late = clock.after(HELLO_WITHIN_MS, () => this.#become("silent"));
    socket.once("connect", () => {
      reached = true;
    });
    socket.on("error", () => undefined); // "close" follows
    socket.once("close", () => {
      late.cancel();
      if (this.#ended) return;
      if (!reached) return this.#unreached();
      // It answered, and not as one of ours does; or it was about to end, which the next try finds out.
      if (heard !== "hello") this.#become("foreign");
      else this.#become("connecting");
      this.#again();
    });
    onMessages(socket, FromSupervisor, (message) => {
      if (heard === "hello") return this.#receive(message);
      if (message.say !== "hello" || message.protocol !== SUPERVISOR_PROTOCOL) {
        heard = "foreign";
        socket.destroy();
        return;
      }
      late.cancel();
      heard = "hello";
      this.software = message.software;
      this.revision = message.revision ?? 1;
      this.#become("open");
    });
  }

  #unreached(): void {
    const { starting } = this.#options;
    // Its socket's file may have been swept away while it lives: not one that can be spoken to, and not dead.
    if (this.#isThere()) this.#become("silent");
    else if (!starting?.()) return this.#become("gone");
    this.#again();
  }

  #again(): void {
    this.#retry = this.#options.clock.after(this.#retryMs, () => this.#connect());
    this.#retryMs = Math.min(this.#retryMs * 2, this.#options.starting?.() ? 20 : CONNECT_RETRY_MAX_MS);
  }

  #isThere(): boolean {
    const { about, directory } = this.#options;
    if (about.process) return isAlive(about.process);
    if (about.pid === undefined) return false;
    try {
      // Of the first revision, which did not say when it began: its directory is among its arguments.
      return readFileSync(`/proc/${about.pid}/cmdline`, "utf8").split("\0").includes(directory);
    } catch {
      return false;
    }
  }

  #become(state: LineState): void {
    this.#state = state;
    this.#looking?.cancel();
    if (state === "silent" || state === "foreign") {
      this.#looking = this.#options.clock.every(LOOK_MS, () => {
        for (const step of [...this.#steps.values()]) step.look();
      });
    }
    if (state === "open") {
      for (const { key, offset } of this.#steps.values()) this.send({ op: "attach", key, offset });
    }
    if (state === "gone") {
      for (const step of [...this.#steps.values()]) step.unknown(this);
      this.#options.onGone(this);
    }
    this.#wake();
  }

  #receive(message: FromSupervisor): void {
    if (message.say === "hello") return;
    this.#retryMs = CONNECT_RETRY_MS;
    const step = this.#steps.get(message.key);
    if (!step) return;
    switch (message.say) {
      case "output":
        step.known(this);
        return step.written(message.end);
      case "exit":
        return step.exited(message.error);
      case "unknown":
        return step.unknown(this);
    }
  }
}
