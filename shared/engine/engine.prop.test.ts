import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { StepSpec } from "../model/spec.ts";
import { DECISIONS } from "./disconnection.ts";
import { type Effect, type Input, owed, step } from "./engine.ts";
import type { RunEvent } from "./events.ts";
import { compile } from "./plan.ts";
import {
  evolve,
  initialState,
  isInDoubt,
  isTerminalRun,
  isTerminalStep,
  type RunState,
  stepOf,
} from "./state.ts";

const AGENTS = ["site/a", "site/b"];

const disconnects = fc.record({
  keepMs: fc.constantFrom(0, 500),
  then: fc.constantFrom("reassign" as const, "wait" as const, "fail" as const),
});

/** A random acyclic pipeline: each step needs some of those before it. */
const pipelines = fc
  .array(
    fc.record({
      needs: fc.array(fc.nat(30), { maxLength: 3 }),
      retries: fc.nat(2),
      // No document says `once` and `reassign`; the engine has to hold for what comes by another way too.
      once: fc.boolean(),
      disconnect: fc.option(disconnects, { nil: undefined }),
    }),
    { minLength: 1, maxLength: 12 },
  )
  .map((shapes) =>
    shapes.map((shape, index): StepSpec => {
      const needs = index === 0 ? [] : [...new Set(shape.needs.map((need) => `s${need % index}`))];
      const retry = { max: shape.retries, backoffMs: 100, factor: 2, backoffMaxMs: 1_000, jitter: 0.2 };
      const { once, disconnect } = shape;
      const change = { needs, retry, unplaceableMs: 1_000, once };
      return stepSpec(`s${index}`, disconnect ? { ...change, disconnect } : change);
    }),
  );

type World = { state: RunState; events: RunEvent[]; effects: Effect[]; nowMs: number };

/** One thing that may happen, chosen by three numbers: messages come late, twice, out of order or not at all. */
function happen(world: World, [what, which, chance]: [number, number, number]): Input | undefined {
  const { state, nowMs: atMs } = world;
  const spec = state.plan.steps[which % state.plan.steps.length]!;
  const current = stepOf(state, spec.id)!;
  const epoch = Math.max(1, current.epoch - (chance % 3 === 0 ? 1 : 0));
  const agent = AGENTS[chance % 2]!;
  // Most of what the control plane notices by itself is about the holder.
  const holder = chance % 4 === 0 ? agent : (current.agent ?? agent);
  const about = { atMs, step: spec.id, attempt: Math.max(1, current.attempt), epoch, agent };
  switch (what % 11) {
    case 0:
    case 1:
      return { kind: "started", ...about };
    case 2:
      return { kind: "finished", ...about, outcome: outcome(), random: 0.5 };
    case 3: {
      const statuses = ["failed", "timed-out", "interrupted", "cancelled", "refused"] as const;
      const status = statuses[chance % statuses.length]!;
      return { kind: "finished", ...about, outcome: outcome({ status, exitCode: 1 }), random: 0.5 };
    }
    case 4:
      return { kind: "lease-expired", atMs, step: spec.id, epoch, agent: holder };
    case 5: {
      const timers = owed(state).filter((effect) => effect.kind === "timer");
      const due = timers[which % Math.max(1, timers.length)];
      if (!due) return undefined;
      world.nowMs = Math.max(atMs, due.atMs);
      return { kind: "timer", atMs: world.nowMs, timer: due.timer, step: due.step, dueAtMs: due.atMs };
    }
    case 6:
      return { kind: "hold", atMs, step: spec.id, reason: "unplaceable", message: `nowhere ${chance}` };
    case 7:
      return { kind: "take-over", atMs, shardEpoch: chance % 4, replica: `replica-${chance % 4}` };
    case 8:
      return { kind: "reconnected", atMs, step: spec.id, epoch, agent: holder };
    case 9: {
      const decision = DECISIONS[chance % DECISIONS.length]!;
      const said = { by: "me", reason: "looked", decision, evenIfItRan: chance % 2 === 0 };
      return { kind: "resolve", atMs, step: spec.id, epoch, ...said };
    }
    default:
      return chance % 20 === 0 ? { kind: "cancel", atMs, by: "me", reason: "why not" } : undefined;
  }
}

function feed(world: World, input: Input): void {
  const decided = step(world.state, input);
  world.state = decided.state;
  world.events.push(...decided.events);
  world.effects.push(...decided.effects);
  for (const effect of decided.effects) {
    if (effect.kind !== "place" || input.kind === "hold") continue;
    const expiresAtMs = world.nowMs + 1_000;
    feed(world, {
      kind: "offer",
      atMs: world.nowMs,
      step: effect.step,
      environment: "site",
      policyVersion: "v",
      expiresAtMs,
    });
  }
}

function newWorld(steps: StepSpec[]): World {
  const state = initialState(compile(pipelineSpec("p", steps)));
  const world: World = { state, events: [], effects: [], nowMs: 1_000 };
  feed(world, { kind: "create", atMs: world.nowMs, runId: "r", version: "v", params: {}, by: "t" });
  return world;
}

/** Everything works from now on: agents take what is offered and succeed, timers fire. */
function heal(world: World): void {
  for (let rounds = 0; !isTerminalRun(world.state.status) && rounds < 1_000; rounds++) {
    for (const effect of owed(world.state)) {
      const atMs = world.nowMs;
      if (effect.kind === "place") {
        const offer = { environment: "site", policyVersion: "v", expiresAtMs: atMs + 1_000 };
        feed(world, { kind: "offer", atMs, step: effect.step, ...offer });
      } else if (effect.kind === "offer") {
        const { step: id, attempt, epoch } = effect;
        feed(world, {
          kind: "finished",
          atMs,
          step: id,
          attempt,
          epoch,
          agent: "site/a",
          outcome: outcome(),
          random: 0,
        });
      } else if (effect.kind === "lease.begin") {
        const { step: id, attempt, epoch, agent } = effect;
        feed(world, {
          kind: "finished",
          atMs,
          step: id,
          attempt,
          epoch,
          agent,
          outcome: outcome(),
          random: 0,
        });
      } else if (effect.kind === "timer" && effect.timer === "retry") {
        world.nowMs = Math.max(world.nowMs, effect.atMs);
        const dueAtMs = effect.atMs;
        feed(world, { kind: "timer", atMs: world.nowMs, timer: "retry", step: effect.step, dueAtMs });
      }
    }
  }
}

/** Everything works, and an operator says of each step whose holder is not heard of that it may run again. */
function healWithOperator(world: World): void {
  const { steps } = world.state.plan;
  for (let round = 0; round <= steps.length; round++) {
    heal(world);
    for (const { id } of steps) {
      const { status, epoch } = stepOf(world.state, id)!;
      if (status !== "disconnected" && !isInDoubt(stepOf(world.state, id)!)) continue;
      const said = { by: "me", reason: "looked", decision: "reassign", evenIfItRan: true } as const;
      feed(world, { kind: "resolve", atMs: world.nowMs, step: id, epoch, ...said });
    }
  }
}

/** Without the bias for small numbers: it would leave most kinds of happening out of most histories. */
const choice = fc.noBias(fc.tuple(fc.nat(100), fc.nat(100), fc.nat(100)));
const histories = fc.tuple(pipelines, fc.array(choice, { maxLength: 120, size: "max" }));

function play(
  steps: StepSpec[],
  choices: [number, number, number][],
  check: (world: World, before: RunState) => void,
): World {
  const world = newWorld(steps);
  for (const choice of choices) {
    const before = world.state;
    const input = happen(world, choice);
    if (input) feed(world, input);
    check(world, before);
  }
  return world;
}

describe("whatever happens in whatever order", () => {
  test("no step starts before everything that it needs has succeeded", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const world = play(steps, choices, () => {});
        const done = new Set<string>();
        for (const event of world.events) {
          if (event.kind === "step.succeeded") done.add(event.step);
          if (event.kind !== "attempt.offered" && event.kind !== "attempt.started") continue;
          const { needs } = steps.find((item) => item.id === event.step)!;
          expect(needs.filter((need) => !done.has(need))).toEqual([]);
        }
      }),
    );
  });

  test("a terminal step stays as it is, and so does a terminal run", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        play(steps, choices, (world, before) => {
          for (const { id } of steps) {
            const was = stepOf(before, id)!.status;
            if (isTerminalStep(was)) expect(stepOf(world.state, id)!.status).toBe(was);
          }
          if (isTerminalRun(before.status)) expect(world.state.status).toBe(before.status);
        });
      }),
    );
  });

  test("every run ends once things work again and an operator has spoken", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const world = play(steps, choices, () => {});
        healWithOperator(world);
        expect(isTerminalRun(world.state.status)).toBe(true);
        expect([...world.state.steps].filter((item) => !isTerminalStep(item.status))).toEqual([]);
      }),
    );
  });

  test("the same events give the same state", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const world = play(steps, choices, () => {});
        let state = initialState(compile(pipelineSpec("p", steps)));
        // Through JSON, as the stream keeps them.
        for (const event of JSON.parse(JSON.stringify(world.events)) as RunEvent[])
          state = evolve(state, event);
        expect(plain(state)).toEqual(plain(world.state));
      }),
    );
  });

  test("at most one outcome of a step is accepted per epoch, and at most one success in all", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const { events } = play(steps, choices, () => {});
        for (const { id } of steps) {
          const accepted = events.filter((event) => event.kind === "attempt.finished" && event.step === id);
          const epochs = accepted.map((event) => event.kind === "attempt.finished" && event.epoch);
          expect(new Set(epochs).size).toBe(epochs.length);
          expect(
            events.filter((event) => event.kind === "step.succeeded" && event.step === id).length,
          ).toBeLessThanOrEqual(1);
        }
      }),
    );
  });

  test("a once step that has started is granted again only when an operator says so", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const world = play(steps, choices, () => {});
        healWithOperator(world);
        for (const { id, once } of steps) {
          if (!once) continue;
          let begun = false;
          for (const event of world.events) {
            if (!("step" in event) || event.step !== id) continue;
            if (event.kind === "attempt.offered") expect(begun).toBe(false);
            if (event.kind === "attempt.started") begun = true;
            if (event.kind === "attempt.resolved" && event.decision === "reassign") begun = false;
          }
        }
      }),
    );
  });

  test("an attempt stays its agent's for as long as its step says, and what follows is what the step says", () => {
    let kept = 0;
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const { events } = play(steps, choices, () => {});
        for (const event of events) {
          if (event.kind !== "attempt.disconnected") continue;
          kept += 1;
          const { once, disconnect } = steps.find(({ id }) => id === event.step)!;
          if (once) expect(event.then).not.toBe("reassign");
          else expect(event.then).toBe(disconnect!.then);
          const keepMs = event.then === "wait" ? null : disconnect!.keepMs;
          expect(event.untilMs).toBe(keepMs === null ? null : event.atMs + keepMs);
        }
        const lost = events.filter(
          (event) => event.kind === "attempt.lost" && event.reason === "disconnected",
        );
        for (const event of lost) {
          const away = events.find(
            (other) =>
              other.kind === "attempt.disconnected" &&
              event.kind === "attempt.lost" &&
              other.step === event.step &&
              other.epoch === event.epoch &&
              other.untilMs !== null &&
              other.untilMs <= event.atMs,
          );
          expect(away).toBeDefined();
        }
      }),
    );
    expect(kept).toBeGreaterThan(0);
  });

  test("epochs of a step only grow", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const { events } = play(steps, choices, () => {});
        for (const { id } of steps) {
          const epochs = events.flatMap((event) =>
            event.kind === "attempt.offered" && event.step === id ? [event.epoch] : [],
          );
          expect(epochs).toEqual(epochs.map((_, index) => index + 1));
        }
      }),
    );
  });
});

/** The run is restored from the moment after `choices`, and both futures go on. */
const restores = fc.record({
  history: histories,
  lost: fc.array(choice, { maxLength: 60, size: "max" }),
  later: fc.array(choice, { maxLength: 60, size: "max" }),
});
const FLOOR = 1_790_000_000;

function restoredRun(given: typeof restores extends fc.Arbitrary<infer T> ? T : never) {
  const [steps, choices] = given.history;
  const backup = play(steps, choices, () => {});
  const future = (): World => ({ ...backup, events: [], effects: [] });
  const go = (world: World, inputs: typeof choices): World => {
    for (const choice of inputs) {
      const input = happen(world, choice);
      if (input) feed(world, input);
    }
    return world;
  };
  const lost = go(future(), given.lost);
  const later = future();
  const takeOver = { kind: "take-over", shardEpoch: 9, replica: "new", epochFloor: FLOOR } as const;
  feed(later, { ...takeOver, atMs: later.nowMs });
  return { steps, backup, lost, later: go(later, given.later) };
}

const offers = ({ events }: World) => events.filter((event) => event.kind === "attempt.offered");

describe("after a restore from a backup of any moment", () => {
  test("no grant has an epoch of the lost time, and no once step is granted that nobody spoke for", () => {
    fc.assert(
      fc.property(restores, (given) => {
        const { steps, lost, later } = restoredRun(given);
        const ofLost = new Set(offers(lost).map(({ step: id, epoch }) => `${id}/${epoch}`));
        for (const { step: id, epoch } of offers(later)) {
          expect(ofLost.has(`${id}/${epoch}`)).toBe(false);
          const mayRunAgain = later.events.some(
            (event) =>
              event.kind === "attempt.resolved" && event.step === id && event.decision === "reassign",
          );
          if (steps.find((spec) => spec.id === id)!.once) expect(mayRunAgain).toBe(true);
        }
      }),
    );
  });

  test("every run ends once things work again and an operator has spoken; its events alone give its state", () => {
    fc.assert(
      fc.property(restores, (given) => {
        const { backup, later } = restoredRun(given);
        healWithOperator(later);
        expect(isTerminalRun(later.state.status)).toBe(true);
        const folded = later.events.reduce(evolve, backup.state);
        expect(plain(folded)).toEqual(plain(later.state));
      }),
    );
  });
});

function plain(state: RunState): unknown {
  const { plan: _, steps, ...rest } = state;
  return { ...rest, steps: [...steps] };
}
