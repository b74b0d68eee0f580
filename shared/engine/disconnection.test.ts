import { expect, test } from "vitest";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { StepSpec } from "../model/spec.ts";
import { type Input, owed, step } from "./engine.ts";
import { compile } from "./plan.ts";
import { initialState } from "./state.ts";

const AGENT = "site/a";

function cutOff(change: Partial<StepSpec>) {
  let state = initialState(compile(pipelineSpec("p", [stepSpec("a", change)])));
  const events: string[] = [];
  const feed = (input: Input) => {
    const decided = step(state, input);
    state = decided.state;
    events.push(...decided.events.map(({ kind }) => kind));
    return decided;
  };
  feed({ kind: "create", atMs: 0, runId: "r", version: "v", params: {}, by: "t" });
  const offer = { environment: "site", policyVersion: "v", expiresAtMs: 1_000 };
  feed({ kind: "offer", atMs: 0, step: "a", ...offer });
  const held = { step: "a", attempt: 1, epoch: 1, agent: AGENT };
  feed({ kind: "started", atMs: 1, ...held });
  feed({ kind: "lease-expired", atMs: 100, ...held });
  const finish = (atMs: number) =>
    feed({ kind: "finished", atMs, ...held, outcome: outcome(), random: 0 }).events.map(({ kind }) => kind);
  return { feed, finish, held, now: () => state, status: () => state.steps.get(0).status };
}

test("an agent that returns within its time finishes the same attempt under the same epoch", () => {
  const run = cutOff({ disconnect: { keepMs: 1_000, then: "reassign" } });
  expect(run.status()).toBe("disconnected");
  expect(owed(run.now())).toEqual([{ kind: "timer", timer: "disconnect", step: "a", atMs: 1_100 }]);
  const back = run.feed({ kind: "reconnected", atMs: 200, ...run.held });
  expect(back.effects).toMatchObject([{ kind: "lease.begin", epoch: 1 }]);
  expect(run.finish(300)).toEqual(["attempt.finished", "step.succeeded", "run.finished"]);
});

test("when its time is over another agent gets the attempt, and the late outcome is fenced", () => {
  const run = cutOff({ disconnect: { keepMs: 1_000, then: "reassign" } });
  run.feed({ kind: "timer", atMs: 1_100, timer: "disconnect", step: "a", dueAtMs: 1_100 });
  expect(run.status()).toBe("ready");
  expect(run.finish(1_200)).toEqual(["attempt.fenced"]);
});

test("with 'fail' the attempt has failed when the time is over, and its late outcome is fenced", () => {
  const run = cutOff({ disconnect: { keepMs: 1_000, then: "fail" } });
  run.feed({ kind: "timer", atMs: 1_100, timer: "disconnect", step: "a", dueAtMs: 1_100 });
  expect([run.status(), run.now().status]).toEqual(["failed", "failed"]);
  expect(run.finish(1_200)).toEqual(["attempt.fenced"]);
});

test("a step that is started once waits for its agent, a cancel included", () => {
  const run = cutOff({ once: true });
  run.feed({ kind: "cancel", atMs: 200, by: "me", reason: "why not" });
  expect([run.status(), owed(run.now())]).toEqual(["disconnected", []]);
  const back = run.feed({ kind: "reconnected", atMs: 300, ...run.held });
  expect(back.effects.map(({ kind }) => kind)).toEqual(["lease.begin", "cancel"]);
});

test("an operator may start it a second time only when they say so", () => {
  const run = cutOff({ once: true });
  const decided = { step: "a", epoch: 1, by: "me", reason: "looked", decision: "reassign" } as const;
  expect(run.feed({ kind: "resolve", atMs: 200, ...decided, evenIfItRan: false }).events).toEqual([]);
  const { effects } = run.feed({ kind: "resolve", atMs: 200, ...decided, evenIfItRan: true });
  expect(effects).toContainEqual({ kind: "place", step: "a" });
  expect(run.finish(300)).toEqual(["attempt.fenced"]);
});
