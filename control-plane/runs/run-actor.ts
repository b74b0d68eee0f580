/**
 * One run's single writer: inputs queue up, are decided together, appended as one batch, and only then take
 * effect. Under load the batches grow by themselves.
 */
import { type Effect, type Input, step } from "../../shared/engine/engine.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { evolve, type RunState } from "../../shared/engine/state.ts";
import { InsituError, InvariantError } from "../../shared/errors.ts";
import type { RunStore } from "./ports.ts";

/** Kept under the default `max_payload` of a NATS server (1 MiB). */
const BATCH_MAX_BYTES = 900_000;
const STORE_RETRY_MS = 250;
const START_GATHER_MS = 3;

export interface ActorWorld {
  store: RunStore;
  /** Answers a `place` effect at once; undefined when the step is to be left alone for now. */
  place(state: RunState, stepId: string, atMs: number): Input | undefined;
  perform(state: RunState, effect: Effect): void;
  /** `place` was asked of these steps while a batch was decided, which is durable now. */
  placed(state: RunState, stepIds: ReadonlySet<string>): void;
  nextMessageId(): string;
  pause(ms: number): Promise<void>;
  /** The run cannot go on: it is set aside for a person. */
  setAside(runId: string, error: Error): void;
  /** Under which the run's shard is owned here. */
  shardEpoch(): number;
  /** The run had moved on, and is still ours: effects of what was read may not have been performed. */
  caughtUp(runId: string): void;
  /** A later owner of the shard, under that epoch, has written to the run. */
  lost(runId: string, shardEpoch: number): void;
}

interface Waiting {
  input: Input;
  resolve(): void;
  reject(error: Error): void;
}

export class RunActor {
  state: RunState;
  seq: number;
  readonly runId: string;
  readonly #world: ActorWorld;
  #queue: Waiting[] = [];
  #pumping = false;
  /** Why it takes nothing any more. */
  #aside: Error | undefined;
  #idle: (() => void)[] = [];

  constructor(runId: string, state: RunState, seq: number, world: ActorWorld) {
    this.runId = runId;
    this.state = state;
    this.seq = seq;
    this.#world = world;
  }

  /** Resolves once everything that follows from the input is durable. */
  submit(input: Input): Promise<void> {
    if (this.#aside) return Promise.reject(this.#aside);
    return new Promise((resolve, reject) => {
      this.#queue.push({ input, resolve, reject });
      if (this.#pumping) return;
      if (input.kind === "started" && this.#queue.length === 1) this.#pumpSoon();
      else void this.#pump();
    });
  }

  /** Takes nothing any more. Resolves when what was on its way to the stream has arrived there or failed. */
  retire(why: Error): Promise<void> {
    this.#aside = why;
    for (const waiting of this.#queue.splice(0)) waiting.reject(why);
    if (!this.#pumping) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  /** Nothing waits for the news of a start: a short step's outcome comes along, and one append serves both. */
  #pumpSoon(): void {
    const pump = (): void => {
      if (!this.#pumping && this.#queue.length > 0) void this.#pump();
    };
    this.#world.pause(START_GATHER_MS).then(pump, pump);
  }

  async #pump(): Promise<void> {
    this.#pumping = true;
    // Inputs that arrive in the same turn of the event loop share a batch.
    await Promise.resolve();
    while (this.#queue.length > 0) {
      const taken = this.#queue;
      this.#queue = [];
      try {
        await this.#commit(taken.map((waiting) => waiting.input));
        for (const waiting of taken) waiting.resolve();
      } catch (thrown) {
        const error = thrown instanceof Error ? thrown : new Error(String(thrown));
        const lost = isElsewhere(error);
        if (error instanceof InvariantError || lost) this.#aside = error;
        for (const waiting of [...taken, ...(this.#aside ? this.#queue.splice(0) : [])])
          waiting.reject(error);
        if (lost) this.#world.lost(this.runId, this.state.shardEpoch);
        else if (error instanceof InvariantError) this.#world.setAside(this.runId, error);
      }
    }
    this.#pumping = false;
    for (const resolve of this.#idle.splice(0)) resolve();
  }

  /** Decides, appends, performs. When another writer came first, reads what it wrote and decides again. */
  async #commit(inputs: Input[]): Promise<void> {
    const asked = new Set<string>();
    for (;;) {
      // Also without a conflict: a run that was read again after it was lost is up to date, and not ours.
      if (this.state.shardEpoch > this.#world.shardEpoch()) throw elsewhere(this.runId);
      const decided = this.#decide(inputs, asked);
      const appended = await this.#append(decided.events);
      if (!appended) continue;
      this.state = decided.state;
      for (const effect of decided.effects) this.#world.perform(this.state, effect);
      if (asked.size > 0) this.#world.placed(this.state, asked);
      return;
    }
  }

  #decide(inputs: Input[], asked: Set<string>): { state: RunState; events: RunEvent[]; effects: Effect[] } {
    let { state } = this;
    const events: RunEvent[] = [];
    const effects: Effect[] = [];
    const apply = (input: Input): void => {
      const decided = step(state, input);
      state = decided.state;
      events.push(...decided.events);
      for (const effect of decided.effects) {
        if (effect.kind !== "place") {
          effects.push(effect);
          continue;
        }
        asked.add(effect.step);
        const answer = this.#world.place(state, effect.step, input.atMs);
        if (answer) apply(answer);
      }
    };
    for (const input of inputs) apply(input);
    return { state, events, effects };
  }

  /** False when the run's subject had moved on: the state here is then the newer one. */
  async #append(events: RunEvent[]): Promise<boolean> {
    const batches = [...split(events)];
    for (const batch of batches) {
      const messageId = this.#world.nextMessageId();
      // The same id again and again: if the first try did arrive, the stream answers with its sequence.
      const result = await this.#untilAnswered(() =>
        this.#world.store.append(this.runId, batch, this.seq, messageId),
      );
      if (result.kind === "conflict") {
        // The fence: whoever took the run over has written so before anything else.
        await this.#untilAnswered(() => this.#catchUp());
        return false;
      }
      this.seq = result.seq;
      // Only then is the state here what the stream says, should the next batch meet another writer's.
      if (batches.length > 1) for (const event of batch) this.state = evolve(this.state, event);
    }
    return true;
  }

  /** Inputs come once: while the store does not answer, they wait. */
  async #untilAnswered<T>(call: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await call();
      } catch (thrown) {
        const error = InsituError.from(thrown);
        if (!error.retryable) throw error;
        if (this.#aside) throw this.#aside;
        await this.#world.pause(STORE_RETRY_MS);
      }
    }
  }

  async #catchUp(): Promise<void> {
    const news = await this.#world.store.read(this.runId, this.seq);
    for (const batch of news) {
      for (const event of batch.events) this.state = evolve(this.state, event);
      this.seq = batch.seq;
    }
    if (this.state.shardEpoch > this.#world.shardEpoch()) return;
    if (news.length === 0) await this.#world.pause(STORE_RETRY_MS);
    else this.#world.caughtUp(this.runId);
  }
}

/** What a caller does about it: hands the message to the owner of the run's shard. */
export function elsewhere(runId: string): InsituError {
  return new InsituError("shard.elsewhere", `run ${runId} is decided by another replica`, {
    retryable: true,
  });
}

export function isElsewhere(error: unknown): boolean {
  return error instanceof InsituError && error.code === "shard.elsewhere";
}

const CONCLUDED_BY_NEXT: ReadonlySet<RunEvent["kind"]> = new Set([
  "attempt.finished",
  "attempt.lost",
  "attempt.resolved",
]);

/**
 * Cuts a list of events into batches that fit a message. The end of an attempt is never parted from what it
 * concludes; everything else can be completed from the state after a crash (`take-over`).
 */
function* split(events: RunEvent[]): Generator<RunEvent[]> {
  let batch: RunEvent[] = [];
  let bytes = 0;
  for (const event of events) {
    // As it is sent: outputs, messages and parameters are long, and their characters take up to three bytes.
    const size = Buffer.byteLength(JSON.stringify(event)) + 1;
    const last = batch.at(-1);
    if (last && bytes + size > BATCH_MAX_BYTES && !CONCLUDED_BY_NEXT.has(last.kind)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(event);
    bytes += size;
  }
  if (batch.length > 0) yield batch;
}
