/**
 * Cedar policies in a process of their own, which is there while offers come and ends when none do: its memory is given
 * back to the host then, which that of a thread is not.
 */
import type { ChildProcessWithoutNullStreams } from "node:child_process";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import type { CedarAnswer, CedarPolicies, CedarQuestion } from "./cedar-question.ts";
import { EvaluatorLine } from "./evaluator-line.ts";

/** Until an answer. Twice as much, for a second process, is less than the queue waits for an acknowledgement. */
const ANSWER_WITHIN_MS = 10_000;
/** After the last answer, the process ends. */
const IDLE_MS = 60_000;
const TRIES = 2;

export interface CedarProcessOptions {
  clock: Clock;
  log: Logger;
  /** Starts the program `evaluator.ts`. */
  launch(): ChildProcessWithoutNullStreams;
  answerWithinMs?: number;
  idleMs?: number;
}

export class CedarProcess implements CedarPolicies {
  readonly #options: CedarProcessOptions;
  readonly #file: string;
  readonly #text: string;
  #line: { line: EvaluatorLine; loaded: Promise<void> } | undefined;
  #idle: Timer | undefined;
  #using = 0;
  #closed = false;

  private constructor(options: CedarProcessOptions, file: string, text: string) {
    this.#options = options;
    this.#file = file;
    this.#text = text;
  }

  /** @throws request.invalid when the policies are not valid, or cannot be checked now */
  static async open(options: CedarProcessOptions, file: string, text: string): Promise<CedarProcess> {
    const policies = new CedarProcess(options, file, text);
    try {
      await policies.#ready();
    } catch (err) {
      policies.close();
      if (err instanceof InsituError) throw err;
      const { message } = InsituError.from(err);
      throw new InsituError(
        "request.invalid",
        `${file}: the process that evaluates Cedar policies failed: ${message}`,
        { cause: err },
      );
    }
    policies.#rest();
    return policies;
  }

  async answer(question: CedarQuestion): Promise<CedarAnswer> {
    this.#using++;
    try {
      return await this.#answer(question);
    } finally {
      this.#using--;
      this.#rest();
    }
  }

  async #answer(question: CedarQuestion): Promise<CedarAnswer> {
    const { log, answerWithinMs = ANSWER_WITHIN_MS } = this.#options;
    for (let tried = 1; tried <= TRIES; tried++) {
      try {
        const line = await this.#ready();
        const reply = await line.ask({ kind: "ask", question }, answerWithinMs);
        if (reply.kind === "answer") return reply.answer;
        throw line.kill(`it answered with ${reply.kind}`);
      } catch (err) {
        log.error({ err, file: this.#file, tried }, "Cedar policies of the site not evaluated");
      }
    }
    return { allowed: false, message: "its Cedar policies could not be evaluated" };
  }

  close(): void {
    this.#closed = true;
    this.#rest();
  }

  /** A process that has the policies. */
  async #ready(): Promise<EvaluatorLine> {
    this.#idle?.cancel();
    if (!this.#line?.line.usable) {
      const line = new EvaluatorLine(this.#options.launch(), this.#options.clock);
      this.#line = { line, loaded: this.#load(line) };
    }
    const { line, loaded } = this.#line;
    await loaded;
    return line;
  }

  async #load(line: EvaluatorLine): Promise<void> {
    const { answerWithinMs = ANSWER_WITHIN_MS } = this.#options;
    const request = { kind: "load", file: this.#file, text: this.#text } as const;
    const reply = await line.ask(request, answerWithinMs);
    if (reply.kind === "invalid") throw new InsituError("request.invalid", reply.message);
    if (reply.kind !== "loaded") throw line.kill(`it answered with ${reply.kind}`);
  }

  #rest(): void {
    const { clock, idleMs = IDLE_MS, answerWithinMs = ANSWER_WITHIN_MS } = this.#options;
    this.#idle?.cancel();
    const end = (): void => {
      if (this.#using > 0) return; // its end comes here again
      this.#line?.line.end(answerWithinMs);
      this.#line = undefined;
    };
    if (this.#closed) end();
    else this.#idle = clock.after(idleMs, end);
  }
}
