import { describe, expect, test } from "vitest";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { InvariantError } from "../errors.ts";
import type { StepSpec } from "../model/spec.ts";
import type { Outcome } from "../wire/attempt.ts";
import { type Input, LOSSES_MAX, owed, retryDelayMs, step } from "./engine.ts";
import type { RunEvent } from "./events.ts";
import { compile } from "./plan.ts";
import { evolve, initialState, type RunState, stepOf } from "./state.ts";

const AGENT = "site/a";

/** Drives one run by hand; offers every step that asks for a place. */
class Driver {
  state: RunState;
  readonly events: RunEvent[] = [];
  readonly effects: { kind: string; step?: string | null }[] = [];
  now = 1_000;

  constructor(steps: StepSpec[], timeoutMs: number | null = null) {
    this.state = initialState(compile(pipelineSpec("p", steps, { timeoutMs })));
    this.feed({ kind: "create", runId: "r1", version: "sha256:0", params: {}, by: "t" });
  }

  feed(input: Omit<Extract<Input, { kind: "create" }>, "atMs"> | DistributiveOmit<Input, "atMs">): void {
    const decided = step(this.state, { ...input, atMs: this.now } as Input);
    this.state = decided.state;
    this.events.push(...decided.events);
    for (const effect of decided.effects) {
      this.effects.push(effect);
      if (effect.kind === "place") {
        const expiresAtMs = this.now + 60_000;
        this.feed({ kind: "offer", step: effect.step, environment: "site", policyVersion: "v", expiresAtMs });
      }
    }
  }

  start(id: string, agent = AGENT): void {
    const { attempt, epoch } = stepOf(this.state, id)!;
    this.feed({ kind: "started", step: id, attempt, epoch, agent });
  }

  finish(id: string, change: Partial<Outcome> = {}, at: { epoch?: number; agent?: string } = {}): void {
    const { attempt, epoch } = stepOf(this.state, id)!;
    const agent = at.agent ?? AGENT;
    this.feed({
      kind: "finished",
      step: id,
      attempt,
      epoch: at.epoch ?? epoch,
      agent,
      outcome: outcome(change),
      random: 0.5,
    });
  }

  run(id: string, change: Partial<Outcome> = {}): void {
    this.start(id);
    this.finish(id, change);
  }

  status(id: string): string {
    return stepOf(this.state, id)!.status;
  }

  kinds(): string[] {
    return this.events.map((event) => event.kind);
  }
}

type DistributiveOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;
const failed = { status: "failed", exitCode: 1 } as const;

test("what its agent signed of a start is kept once, with the time that it names", () => {
  const run = new Driver([stepSpec("a")]);
  const { attempt, epoch } = stepOf(run.state, "a")!;
  const said = { signed: { keyId: "0".repeat(64), signature: "c2ln" }, reportedAtMs: 77 };
  const start = { kind: "started", step: "a", attempt, epoch, agent: AGENT } as const;
  run.feed({ ...start, said });
  run.feed({ ...start, said });
  expect(run.events.filter(({ kind }) => kind === "attempt.started")).toEqual([
    { kind: "attempt.started", atMs: 1_000, step: "a", attempt, epoch, agent: AGENT, ...said },
  ]);
});

describe("a run", () => {
  test("a step is offered when all that it needs has succeeded, and gets their outputs' state", () => {
    const run = new Driver([stepSpec("a"), stepSpec("b"), stepSpec("c", { needs: ["a", "b"] })]);
    expect(run.status("c")).toBe("pending");
    run.run("a");
    expect(run.status("c")).toBe("pending");
    run.run("b");
    expect(run.status("c")).toBe("offered");
    run.run("c");
    expect(run.state.status).toBe("succeeded");
    expect(run.events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  });

  test("a failure skips everything downstream, lets the other branches end, and fails the run with its reason", () => {
    const run = new Driver([
      stepSpec("a"),
      stepSpec("b", { needs: ["a"] }),
      stepSpec("c", { needs: ["b"] }),
      stepSpec("other"),
    ]);
    run.run("a", failed);
    expect([run.status("b"), run.status("c"), run.status("other")]).toEqual([
      "skipped",
      "skipped",
      "offered",
    ]);
    expect(run.state.status).toBe("running");
    run.run("other");
    expect(run.events.at(-1)).toMatchObject({
      kind: "run.finished",
      status: "failed",
      reason: "step a: exit code 1",
    });
  });

  test("a failed attempt is tried again after its delay, as often as the step allows", () => {
    const retry = { max: 1, backoffMs: 1_000, factor: 2, backoffMaxMs: 60_000, jitter: 0 };
    const run = new Driver([stepSpec("a", { retry })]);
    run.run("a", failed);
    expect(run.status("a")).toBe("backoff");
    const dueAtMs = stepOf(run.state, "a")!.retryAtMs!;
    expect(dueAtMs).toBe(run.now + 1_000);
    run.now = dueAtMs;
    run.feed({ kind: "timer", timer: "retry", step: "a", dueAtMs });
    expect(stepOf(run.state, "a")).toMatchObject({ status: "offered", attempt: 2, epoch: 2 });
    run.run("a", failed);
    expect(run.status("a")).toBe("failed");
  });

  test("a lease its holder outlives is offered again under a higher epoch, as the same attempt", () => {
    const run = new Driver([stepSpec("a")]);
    run.start("a");
    run.feed({ kind: "lease-expired", step: "a", epoch: 1, agent: AGENT });
    expect(stepOf(run.state, "a")).toMatchObject({ status: "offered", attempt: 1, epoch: 2 });
    run.start("a", "site/b");
    run.finish("a", {}, { agent: "site/b" });
    expect(run.state.status).toBe("succeeded");
  });

  test("an outcome under a superseded epoch is kept as evidence and changes nothing, also after the end", () => {
    const run = new Driver([stepSpec("a")]);
    run.start("a");
    run.feed({ kind: "lease-expired", step: "a", epoch: 1, agent: AGENT });
    run.finish("a", failed, { epoch: 1 });
    expect(run.events.at(-1)).toMatchObject({ kind: "attempt.fenced", epoch: 1 });
    expect(run.status("a")).toBe("offered");
    run.start("a", "site/b");
    run.finish("a", {}, { agent: "site/b" });
    run.finish("a", failed, { epoch: 2, agent: "site/c" });
    expect(run.events.at(-1)).toMatchObject({ kind: "attempt.fenced", agent: "site/c" });
    expect(run.state.status).toBe("succeeded");
  });

  test("the same outcome twice, and a start that comes after it, leave no second trace", () => {
    const run = new Driver([stepSpec("a"), stepSpec("b")]);
    run.finish("a");
    const before = run.events.length;
    run.finish("a");
    run.feed({ kind: "started", step: "a", attempt: 1, epoch: 1, agent: AGENT });
    expect(run.events.length).toBe(before);
    expect(run.kinds().filter((kind) => kind === "attempt.started")).toHaveLength(1);
  });

  test("a second agent that starts the same grant is told that it is superseded", () => {
    const run = new Driver([stepSpec("a")]);
    run.start("a");
    run.start("a", "site/b");
    expect(run.effects.at(-1)).toMatchObject({ kind: "supersede", step: "a", agent: "site/b" });
  });

  test("a step that agents die under fails after a fixed number of losses", () => {
    const run = new Driver([stepSpec("a")]);
    for (let i = 1; i <= LOSSES_MAX; i++) {
      run.start("a");
      run.feed({ kind: "lease-expired", step: "a", epoch: i, agent: AGENT });
    }
    expect(run.status("a")).toBe("failed");
    expect(run.events.at(-1)).toMatchObject({ kind: "run.finished", status: "failed" });
  });

  test("an interrupted grant is offered again and keeps what the agent said of it", () => {
    const run = new Driver([stepSpec("a")]);
    run.start("a");
    run.finish("a", { status: "interrupted", exitCode: null });
    expect(run.kinds()).toContain("attempt.lost");
    expect(stepOf(run.state, "a")).toMatchObject({ status: "offered", attempt: 1, epoch: 2 });
  });

  test("an offer that nobody takes in time is offered again, and is not counted as a loss", () => {
    const run = new Driver([stepSpec("a")]);
    const dueAtMs = stepOf(run.state, "a")!.offerExpiresAtMs;
    run.now = dueAtMs;
    run.feed({ kind: "timer", timer: "offer", step: "a", dueAtMs });
    expect(stepOf(run.state, "a")).toMatchObject({ status: "offered", epoch: 2, losses: 0 });
  });

  test("a cancelled run ends what waits at once, tells the agents that run, and is cancelled when they answer", () => {
    const run = new Driver([stepSpec("a"), stepSpec("b"), stepSpec("c", { needs: ["a"] })]);
    run.start("a");
    run.feed({ kind: "cancel", by: "me", reason: "wrong day" });
    expect([run.status("a"), run.status("b"), run.status("c")]).toEqual([
      "running",
      "cancelled",
      "cancelled",
    ]);
    expect(run.effects.some((effect) => effect.kind === "cancel" && effect.step === "a")).toBe(true);
    run.finish("a", { status: "cancelled", exitCode: null, signal: "SIGTERM" });
    expect(run.events.at(-1)).toMatchObject({ kind: "run.finished", status: "cancelled" });
  });

  test("a step that no environment may run fails at its deadline with the reason that was shown", () => {
    const spec = stepSpec("a", { unplaceableMs: 5_000 });
    let state = initialState(compile(pipelineSpec("p", [spec])));
    const feed = (input: Input) => {
      const decided = step(state, input);
      state = decided.state;
      return decided;
    };
    feed({ kind: "create", atMs: 0, runId: "r", version: "v", params: {}, by: "t" });
    const held = feed({ kind: "hold", atMs: 0, step: "a", reason: "unplaceable", message: "nowhere" });
    expect(held.effects).toContainEqual({ kind: "timer", timer: "unplaceable", step: "a", atMs: 5_000 });
    // The reason may change meanwhile; the deadline does not move.
    feed({ kind: "hold", atMs: 3_000, step: "a", reason: "unplaceable", message: "still nowhere" });
    feed({ kind: "timer", atMs: 5_000, timer: "unplaceable", step: "a", dueAtMs: 5_000 });
    expect(stepOf(state, "a")).toMatchObject({ status: "failed", error: { message: "still nowhere" } });
  });

  test("a run past its deadline is cancelled", () => {
    const run = new Driver([stepSpec("a")], 10_000);
    expect(run.effects).toContainEqual({ kind: "timer", timer: "deadline", step: null, atMs: 11_000 });
    run.feed({ kind: "timer", timer: "deadline", step: null, dueAtMs: 11_000 });
    expect(run.state.status).toBe("cancelled");
  });

  test("what a crash cut off between two batches is completed when the run is taken over", () => {
    const run = new Driver([stepSpec("a"), stepSpec("b", { needs: ["a"] })]);
    run.start("a");
    const full = [...run.events];
    run.finish("a", failed);
    // Only the failure itself was appended; the skip and the end of the run were not.
    const upToFailure = run.events.slice(0, full.length + 2);
    let state = initialState(run.state.plan);
    for (const event of upToFailure) state = evolve(state, event);
    const resumed = step(state, { kind: "take-over", atMs: 2_000, shardEpoch: 2, replica: "r2" });
    const kinds = resumed.events.map((event) => event.kind);
    expect(kinds).toEqual(["run.taken-over", "step.skipped", "run.finished"]);
    expect(resumed.state.shardEpoch).toBe(2);
  });

  test("the effects that a state is owed name every offer, lease, cancel and timer again", () => {
    const run = new Driver([stepSpec("a"), stepSpec("b")], 60_000);
    run.start("a");
    expect(
      owed(run.state)
        .map((effect) => effect.kind)
        .sort(),
    ).toEqual(["lease.begin", "offer", "timer", "timer"]);
    run.feed({ kind: "cancel", by: "me", reason: "r" });
    expect(
      owed(run.state)
        .map((effect) => effect.kind)
        .sort(),
    ).toEqual(["cancel", "lease.begin", "timer"]);
  });

  test("events that cannot follow stop the run instead of bending it", () => {
    const run = new Driver([stepSpec("a")]);
    run.run("a");
    const finished = run.events.find((event) => event.kind === "attempt.finished")!;
    expect(() => evolve(run.state, finished)).toThrow(InvariantError);
  });
});

describe("the delay before a retry", () => {
  const retry = { max: 9, backoffMs: 1_000, factor: 2, backoffMaxMs: 5_000, jitter: 0.5 };
  test("doubles, is capped, and takes at most its jitter off", () => {
    expect([1, 2, 3, 4].map((n) => retryDelayMs(retry, n, 0.999999))).toEqual([1_000, 2_000, 4_000, 5_000]);
    expect(retryDelayMs(retry, 2, 0)).toBe(1_000);
  });
});
