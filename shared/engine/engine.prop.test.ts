import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { StepSpec } from "../model/spec.ts";
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

/** A random acyclic pipeline: each step needs some of those before it. */
const pipelines = fc
  .array(fc.record({ needs: fc.array(fc.nat(30), { maxLength: 3 }), retries: fc.nat(2) }), {
    minLength: 1,
    maxLength: 12,
  })
  .map((shapes) =>
    shapes.map((shape, index): StepSpec => {
      const needs = index === 0 ? [] : [...new Set(shape.needs.map((need) => `s${need % index}`))];
      const retry = { max: shape.retries, backoffMs: 100, factor: 2, backoffMaxMs: 1_000, jitter: 0.2 };
      return stepSpec(`s${index}`, { needs, retry, unplaceableMs: 1_000 });
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
  const about = { atMs, step: spec.id, attempt: Math.max(1, current.attempt), epoch, agent };
  switch (what % 9) {
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
      return { kind: "lease-expired", atMs, step: spec.id, epoch, agent };
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

const histories = fc.tuple(
  pipelines,
  fc.array(fc.tuple(fc.nat(100), fc.nat(100), fc.nat(100)), { maxLength: 120 }),
);

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

  test("every run ends once things work again", () => {
    fc.assert(
      fc.property(histories, ([steps, choices]) => {
        const world = play(steps, choices, () => {});
        heal(world);
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

/** Every third step is `once`; the run is restored from the moment after `choices`, and both futures go on. */
const restores = fc.record({
  history: histories,
  lost: fc.array(fc.tuple(fc.nat(100), fc.nat(100), fc.nat(100)), { maxLength: 60 }),
  later: fc.array(fc.tuple(fc.nat(100), fc.nat(100), fc.nat(100)), { maxLength: 60 }),
});
const FLOOR = 1_790_000_000;

function restoredRun(given: typeof restores extends fc.Arbitrary<infer T> ? T : never) {
  const [shapes, choices] = given.history;
  const steps = shapes.map((spec, at): StepSpec => (at % 3 === 0 ? { ...spec, once: true } : spec));
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
          expect(steps.find((spec) => spec.id === id)!.once).not.toBe(true);
        }
      }),
    );
  });

  test("every run ends once things work again and an operator has spoken; its events alone give its state", () => {
    fc.assert(
      fc.property(restores, (given) => {
        const { steps, backup, later } = restoredRun(given);
        for (let round = 0; round <= steps.length; round++) {
          heal(later);
          for (const { id } of steps) {
            const { status, epoch } = stepOf(later.state, id)!;
            if (status !== "disconnected" && !isInDoubt(stepOf(later.state, id)!)) continue;
            const said = { by: "me", reason: "looked", decision: "reassign", evenIfItRan: true } as const;
            feed(later, { kind: "resolve", atMs: later.nowMs, step: id, epoch, ...said });
          }
        }
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
