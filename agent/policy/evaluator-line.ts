/** One process that evaluates Cedar policies, and what it was asked. */
import type { ChildProcessWithoutNullStreams } from "node:child_process";
import type { Clock, Timer } from "../../shared/system.ts";
import { CedarReply, type CedarRequest, onLines } from "./cedar-messages.ts";

/** Of what it complains about. */
const COMPLAINT_MAX_CHARS = 500;

interface Waiting {
  resolve(reply: CedarReply): void;
  reject(why: Error): void;
  limit: Timer;
}

export class EvaluatorLine {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #clock: Clock;
  readonly #waiting: Waiting[] = [];
  #complaint = "";
  #gone: Error | undefined;

  constructor(child: ChildProcessWithoutNullStreams, clock: Clock) {
    this.#child = child;
    this.#clock = clock;
    child.on("error", (err) => this.#fail(err));
    child.once("exit", (code, signal) => {
      const complaint = this.#complaint === "" ? "" : `: ${this.#complaint}`;
      this.#fail(new Error(`it ended with ${signal ?? `exit code ${code}`}${complaint}`));
    });
    child.stdin.on("error", () => undefined); // that it has gone, its exit says
    child.stderr.on("data", (data: Buffer) => {
      this.#complaint = `${this.#complaint}${data}`.slice(-COMPLAINT_MAX_CHARS);
    });
    onLines(child.stdout, (line) => this.#receive(line));
  }

  get usable(): boolean {
    return this.#gone === undefined;
  }

  /** Rejects when the process ends, or has not answered after `withinMs`: then it is killed. */
  ask(request: CedarRequest, withinMs: number): Promise<CedarReply> {
    if (this.#gone) return Promise.reject(this.#gone);
    return new Promise((resolve, reject) => {
      const late = (): void => this.#fail(new Error(`it has not answered within ${withinMs} ms`));
      this.#waiting.push({ resolve, reject, limit: this.#clock.after(withinMs, late) });
      this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    });
  }

  /** Returns the reason as an error. */
  kill(reason: string): Error {
    const why = new Error(reason);
    this.#fail(why);
    return why;
  }

  /** It ends by itself, with nothing left to answer; one that has not after `withinMs` is killed. */
  end(withinMs: number): void {
    this.#gone ??= new Error("it was ended");
    this.#child.stdin.end();
    const limit = this.#clock.after(withinMs, () => this.#child.kill("SIGKILL"));
    this.#child.once("exit", () => limit.cancel());
  }

  #receive(text: string): void {
    const first = this.#waiting[0];
    let reply: CedarReply;
    try {
      reply = CedarReply.parse(JSON.parse(text));
      if (first === undefined) throw new Error("nothing was asked");
    } catch (err) {
      return this.#fail(new Error("it gave no answer that makes sense", { cause: err }));
    }
    this.#waiting.shift();
    first.limit.cancel();
    first.resolve(reply);
  }

  #fail(why: Error): void {
    this.#gone ??= why;
    this.#child.kill("SIGKILL");
    for (const { reject, limit } of this.#waiting.splice(0)) {
      limit.cancel();
      reject(why);
    }
  }
}
