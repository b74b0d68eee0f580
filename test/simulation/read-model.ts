/** What a replica knows of the runs from following the stream, which may be behind. */
import type { StoredBatch } from "../../control-plane/runs/ports.ts";
import type { RecoveredRun } from "../../control-plane/runs/run-service.ts";
import type { Plan } from "../../shared/engine/plan.ts";
import { evolve, initialState, isTerminalRun } from "../../shared/engine/state.ts";

export class ReadModel {
  readonly #planOf: (version: string) => Plan;
  readonly #runs = new Map<string, RecoveredRun>();
  #seq = 0;
  #waiters: { seq: number; resolve: () => void }[] = [];

  constructor(planOf: (version: string) => Plan) {
    this.#planOf = planOf;
  }

  apply({ runId, events, seq }: StoredBatch, onCreated: (run: RecoveredRun) => void): void {
    const known = this.#runs.get(runId);
    const [first] = events;
    let state = first?.kind === "run.created" ? initialState(this.#planOf(first.version)) : known!.state;
    for (const event of events) state = evolve(state, event);
    const run = { runId, state, seq };
    this.#runs.set(runId, run);
    this.#seq = seq;
    if (!known) onCreated(run);
    const due = this.#waiters.filter((waiter) => waiter.seq <= seq);
    this.#waiters = this.#waiters.filter((waiter) => waiter.seq > seq);
    for (const { resolve } of due) resolve();
  }

  isOver(runId: string): boolean {
    const run = this.#runs.get(runId);
    return run !== undefined && isTerminalRun(run.state.status);
  }

  unfinished(): RecoveredRun[] {
    return [...this.#runs.values()].filter(({ state }) => !isTerminalRun(state.status));
  }

  waitFor(seq: number): Promise<void> {
    if (this.#seq >= seq) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push({ seq, resolve }));
  }
}
