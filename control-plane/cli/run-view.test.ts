import { expect, test } from "vitest";
import { offered, outcome, runDetail, started, stepView } from "./run-view.fixture.ts";
import { foldBatch, viewOf } from "./run-view.ts";

const detail = runDetail([stepView("one"), stepView("two", ["one"])]);

test("a step goes from offered over running to succeeded, with its agent and times", () => {
  let view = foldBatch(viewOf(detail), 2, [offered("one", "dream")]);
  expect(view.steps[0]).toMatchObject({ status: "offered", environment: "dream", agent: null });
  view = foldBatch(view, 3, [started("one", "dream/a")]);
  expect(view.steps[0]).toMatchObject({ status: "running", agent: "dream/a", startedAtMs: 1_000_200 });
  view = foldBatch(view, 4, [{ kind: "step.succeeded", atMs: 1_000_900, step: "one" }]);
  expect(view.steps[0]).toMatchObject({ status: "succeeded", finishedAtMs: 1_000_900 });
  expect(view.steps[1]?.status).toBe("pending");
});

test("a batch that is in the view already changes nothing", () => {
  const view = foldBatch(viewOf(detail), 5, [offered("one", "dream")]);
  expect(foldBatch(view, 5, [started("one", "dream/a")])).toBe(view);
  expect(foldBatch(view, 4, [started("one", "dream/a")])).toBe(view);
});

test("the view before a batch is left as it was", () => {
  const before = viewOf(detail);
  foldBatch(before, 2, [offered("one", "dream")]);
  expect(before.steps[0]?.status).toBe("pending");
});

test("a failed attempt that is tried again waits, and says how it failed", () => {
  const failed = outcome({ status: "failed", exitCode: 3, error: { code: "exit", message: "exit code 3" } });
  const lease = { step: "one", attempt: 1, epoch: 1, agent: "dream/a" };
  const view = foldBatch(viewOf(detail), 2, [
    offered("one", "dream"),
    started("one", "dream/a"),
    { kind: "attempt.finished", atMs: 1_000_300, ...lease, outcome: failed, retryAtMs: 1_001_000 },
  ]);
  expect(view.steps[0]).toMatchObject({ status: "backoff", note: "exit code 3" });
});

test("a lost lease puts the step back, a late outcome changes nothing", () => {
  const lease = { step: "one", attempt: 1, epoch: 1, agent: "dream/a" };
  let view = foldBatch(viewOf(detail), 2, [
    offered("one", "dream"),
    started("one", "dream/a"),
    { kind: "attempt.lost", atMs: 1_030_000, ...lease, reason: "lease-expired" },
  ]);
  expect(view.steps[0]).toMatchObject({ status: "ready", agent: null });
  expect(view.steps[0]?.note).toContain("fell silent");
  view = foldBatch(view, 3, [{ kind: "attempt.fenced", atMs: 1_040_000, ...lease, outcome: outcome() }]);
  expect(view.steps[0]?.status).toBe("ready");
});

test("the end of a run and a cancellation show in its status", () => {
  let view = foldBatch(viewOf(detail), 2, [
    { kind: "run.cancel-requested", atMs: 1_000_500, by: "operator", reason: "wrong month" },
  ]);
  expect(view).toMatchObject({ status: "cancelling", reason: "wrong month" });
  view = foldBatch(view, 3, [{ kind: "run.finished", atMs: 1_000_900, status: "cancelled", reason: "" }]);
  expect(view).toMatchObject({ status: "cancelled", reason: "wrong month", finishedAtMs: 1_000_900 });
});
