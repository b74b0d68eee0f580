import { expect, test } from "vitest";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { StepSpec } from "../model/spec.ts";
import { refuseResolution } from "./disconnection.ts";
import { type Input, step } from "./engine.ts";
import type { RunEvent } from "./events.ts";
import { compile } from "./plan.ts";
import { environmentOf, evolve, initialState, isDoubted, type RunState, stepOf } from "./state.ts";

const AGENT = "site/a";
const FLOOR = 1_790_000_000;

/** A run whose steps are placed as soon as they ask; `backup` gives another future from the same moment. */
class Run {
  state: RunState;
  readonly events: RunEvent[] = [];

  constructor(state: RunState) {
    this.state = state;
  }

  static of(steps: StepSpec[]): Run {
    const run = new Run(initialState(compile(pipelineSpec("p", steps))));
    run.feed({ kind: "create", atMs: 0, runId: "r", version: "v", params: {}, by: "t", shardEpoch: 1 });
    return run;
  }

  feed(input: Input): void {
    const decided = step(this.state, input);
    this.state = decided.state;
    this.events.push(...decided.events);
    for (const effect of decided.effects) if (effect.kind === "place") this.place(effect.step);
  }

  place(id: string): void {
    const to = { environment: "site", policyVersion: "v", expiresAtMs: 1_000 };
    this.feed({ kind: "offer", atMs: 0, step: id, ...to });
  }

  at(id: string) {
    return stepOf(this.state, id)!;
  }

  start(id: string): void {
    const { attempt, epoch } = this.at(id);
    this.feed({ kind: "started", atMs: 1, step: id, attempt, epoch, agent: AGENT });
  }

  finish(id: string, epoch = this.at(id).epoch): void {
    const { attempt } = this.at(id);
    const base = { step: id, attempt, epoch, agent: AGENT, outcome: outcome(), random: 0 };
    this.feed({ kind: "finished", atMs: 2, ...base });
  }

  restored(epochFloor = FLOOR, shardEpoch = 2): Run {
    const run = new Run(this.state);
    run.feed({ kind: "take-over", atMs: 3, shardEpoch, replica: "new", epochFloor });
    return run;
  }
}

test("a step that was running goes on under the grant that it has", () => {
  const run = Run.of([stepSpec("a"), stepSpec("b", { needs: ["a"] })]);
  run.start("a");
  const later = run.restored();
  later.finish("a");
  expect(later.at("a")).toMatchObject({ status: "succeeded", epoch: 1 });
  expect(later.at("b")).toMatchObject({ status: "offered", attempt: 1, epoch: FLOOR + 1 });
  expect(environmentOf(later.at("b"), FLOOR + 1)).toBe("site");
});

test("no grant after a restore has the epoch of one that was made after the backup", () => {
  const run = Run.of([stepSpec("a", { retry: { ...stepSpec("a").retry, max: 3 } })]);
  const backup = new Run(run.state);
  // What the backup does not know: the offer was taken, and the agent lost again and again.
  const lost: number[] = [];
  for (let i = 0; i < 4; i++) {
    run.start("a");
    lost.push(run.at("a").epoch);
    run.feed({ kind: "lease-expired", atMs: 5, step: "a", epoch: run.at("a").epoch, agent: AGENT });
  }
  const later = backup.restored();
  const { epoch } = later.at("a");
  expect(lost).toEqual([1, 2, 3, 4]);
  expect(later.at("a").status).toBe("offered");
  expect(epoch).toBeGreaterThan(Math.max(...lost));
  // Of those that it does know, a late outcome is evidence; the others were granted to nobody.
  later.finish("a", 1);
  expect(later.events.at(-1)).toMatchObject({ kind: "attempt.fenced", epoch: 1 });
  expect([2, 3, 4].map((other) => environmentOf(later.at("a"), other))).toEqual([
    undefined,
    undefined,
    undefined,
  ]);
  later.start("a");
  later.finish("a");
  expect(later.state.status).toBe("succeeded");
});

test("a second restore of the same backup grants nothing that the first one did", () => {
  const run = Run.of([stepSpec("a")]);
  const first = run.restored();
  const second = run.restored(FLOOR + 60);
  expect(second.at("a").epoch).toBeGreaterThan(first.at("a").epoch);
});

test("a once step that may have been started after the backup is offered to nobody until an operator says so", () => {
  const run = Run.of([stepSpec("a"), stepSpec("load", { needs: ["a"], once: true })]);
  run.start("a");
  const later = run.restored();
  expect(isDoubted(later.state, "load")).toBe(true);
  later.finish("a");
  expect(later.at("load")).toMatchObject({ status: "ready", epoch: 0, held: { reason: "restored" } });
  later.place("load");
  later.feed({ kind: "hold", atMs: 4, step: "load", reason: "unplaceable", message: "nowhere" });
  expect(later.at("load").held?.reason).toBe("restored");

  const again = { step: "load", decision: "reassign", evenIfItRan: false } as const;
  expect(refuseResolution(later.state, again)).toMatch(/--even-if-it-ran/);
  const said = { by: "me", reason: "it never began", epoch: 0 };
  later.feed({ kind: "resolve", atMs: 5, ...again, ...said, evenIfItRan: true });
  expect(later.at("load")).toMatchObject({ status: "offered", epoch: FLOOR + 1, held: null });
  later.start("load");
  later.finish("load");
  expect(later.state.status).toBe("succeeded");
});

test("a once step whose offer was out is in doubt too, and may be taken as done", () => {
  const later = Run.of([stepSpec("load", { once: true })]).restored();
  expect(later.events.map(({ kind }) => kind)).toEqual(["run.taken-over", "attempt.lost", "step.held"]);
  const done = { step: "load", decision: "succeeded", evenIfItRan: false } as const;
  later.feed({ kind: "resolve", atMs: 5, ...done, by: "me", reason: "the rows are there", epoch: 1 });
  expect(later.state.status).toBe("succeeded");
});

test("a once step that its agent held at the backup stays that agent's", () => {
  const run = Run.of([stepSpec("load", { once: true })]);
  run.start("load");
  const later = run.restored();
  expect(isDoubted(later.state, "load")).toBe(false);
  later.finish("load");
  expect(later.state.status).toBe("succeeded");
});

test("a run that was created after the restore is not concerned, however often it is taken over", () => {
  const run = new Run(initialState(compile(pipelineSpec("p", [stepSpec("load", { once: true })]))));
  const about = { runId: "r", version: "v", params: {}, by: "t", shardEpoch: 2, epochFloor: FLOOR };
  run.feed({ kind: "create", atMs: 0, ...about });
  const later = run.restored(FLOOR, 3);
  expect(later.at("load")).toMatchObject({ status: "offered", epoch: 1 });
});

test("a run whose id may have lived in the lost time is granted above it, and its once steps are in doubt", () => {
  const run = new Run(
    initialState(compile(pipelineSpec("p", [stepSpec("a"), stepSpec("load", { once: true })]))),
  );
  const about = { runId: "r", version: "v", params: {}, by: "t", shardEpoch: 2, epochFloor: FLOOR };
  run.feed({ kind: "create", atMs: 0, ...about, mayHaveLived: true });
  expect(run.at("a")).toMatchObject({ status: "offered", epoch: FLOOR + 1 });
  expect(run.at("load")).toMatchObject({ status: "ready", held: { reason: "restored" } });
  expect(run.restored(FLOOR, 3).at("a")).toMatchObject({ status: "offered", epoch: FLOOR + 1 });
});

test("the events alone give the state again", () => {
  const run = Run.of([stepSpec("a"), stepSpec("load", { needs: ["a"], once: true })]);
  run.start("a");
  const later = run.restored();
  later.finish("a");
  const folded = [...run.events, ...later.events].reduce(evolve, initialState(run.state.plan));
  expect(folded).toEqual(later.state);
});
