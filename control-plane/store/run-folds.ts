/** The runs that go on, folded from the messages of `RUNS` as they arrive. */
import type { RunEvent } from "../../shared/engine/events.ts";
import { InsituError } from "../../shared/errors.ts";
import type { PlanSource, RunStore, StoredBatch } from "../runs/ports.ts";
import { RunProjection } from "../runs/run-projection.ts";
import { toBatch } from "./jetstream-run-store.ts";
import type { StreamMessage } from "./stream-reader.ts";

const EXPECTED_HEADER = "Nats-Expected-Last-Subject-Sequence";

export interface Folded {
  runId: string;
  seq: number;
  events: readonly RunEvent[];
  run: RunProjection;
}

export interface RunFoldsOptions {
  store: RunStore;
  plans: PlanSource;
  /** The version of a run that had ended, and is not held here any more. */
  versionOf(runId: string): string | undefined;
}

export class RunFolds {
  readonly #options: RunFoldsOptions;
  readonly #runs = new Map<string, RunProjection>();
  /** Their history cannot be folded to its end: they stay where they are, and nobody decides by them. */
  readonly #stuck = new Set<string>();

  constructor(options: RunFoldsOptions) {
    this.#options = options;
  }

  get(runId: string): RunProjection | undefined {
    return this.#runs.get(runId);
  }

  set(runId: string, run: RunProjection): void {
    this.#runs.set(runId, run);
  }

  forget(runId: string): void {
    this.#runs.delete(runId);
    this.#stuck.delete(runId);
  }

  /** Those that somebody may decide by. */
  *whole(): Iterable<RunProjection> {
    for (const [runId, run] of this.#runs) if (!this.#stuck.has(runId)) yield run;
  }

  stop(runId: string): void {
    this.#stuck.add(runId);
  }

  /**
   * What arrived may not be what is stored, or something may be missing before it: when it makes no sense, the whole run
   * is read again from the stream, and that counts. Undefined for a run whose history was found impossible before.
   *
   * @throws InsituError retryable when the store is away; otherwise the message makes no sense as it is stored either
   */
  async take(message: StreamMessage): Promise<Folded | undefined> {
    const runId = message.subject.slice(message.subject.lastIndexOf(".") + 1);
    if (this.#stuck.has(runId)) return undefined;
    try {
      const batch = toBatch(message);
      if (batch.foreign !== undefined) throw new InsituError("internal", batch.foreign);
      return await this.#fold(batch, message.header(EXPECTED_HEADER));
    } catch (thrown) {
      const err = InsituError.from(thrown);
      if (err.retryable) throw err;
      return await this.#foldAgain(runId, message.seq, err);
    }
  }

  /** @param expected where its writer had seen the run's history end; empty for what was not written by us */
  async #fold(batch: StoredBatch, expected: string): Promise<Folded> {
    const { runId, seq, events } = batch;
    let run = this.#runs.get(runId);
    if (!run) {
      const [first] = events;
      run =
        first?.kind === "run.created"
          ? new RunProjection(await this.#options.plans.load(first.version))
          : await this.#reopened(batch);
      this.#runs.set(runId, run);
    }
    if (expected !== "" && seq > run.seq && Number(expected) !== run.seq)
      throw new InsituError("internal", `message ${expected} of run ${runId} did not arrive before ${seq}`);
    run.apply(seq, events);
    return { runId, seq, events, run };
  }

  /** Events of a run that had ended: a fenced outcome that came late. */
  async #reopened({ runId, seq }: StoredBatch): Promise<RunProjection> {
    const version = this.#options.versionOf(runId);
    if (version === undefined) throw new InsituError("internal", `events of run ${runId} before run.created`);
    const run = new RunProjection(await this.#options.plans.load(version));
    for (const earlier of await this.#options.store.read(runId, 0))
      if (earlier.seq < seq) run.apply(earlier.seq, earlier.events);
    return run;
  }

  async #foldAgain(runId: string, seq: number, reason: InsituError): Promise<Folded> {
    const batches = (await this.#options.store.read(runId, 0)).filter((batch) => batch.seq <= seq);
    const first = batches[0]?.events[0];
    const last = batches.at(-1);
    if (first?.kind !== "run.created" || last?.seq !== seq) throw reason;
    const run = new RunProjection(await this.#options.plans.load(first.version));
    try {
      for (const batch of batches) run.apply(batch.seq, batch.events);
    } catch {
      // A fold that leaves one message out and takes the next would be of a run that never was.
      this.#stuck.add(runId);
      throw reason;
    }
    this.#runs.set(runId, run);
    // As stored it is not one of ours: nothing came of it, and whoever reads the history steps over it as well.
    if (last.events.length === 0) throw reason;
    return { runId, seq, events: last.events, run };
  }
}
