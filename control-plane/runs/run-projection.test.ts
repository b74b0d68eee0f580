import { describe, expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import { compile } from "../../shared/engine/plan.ts";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { RunProjection } from "./run-projection.ts";

const VERSION = `sha256:${"0".repeat(64)}`;
const at = { step: "load", attempt: 1, epoch: 1 };

function projectionOf(...batches: RunEvent[][]): RunProjection {
  const run = new RunProjection(compile(pipelineSpec("nightly", [stepSpec("load")])));
  const created: RunEvent = {
    kind: "run.created",
    atMs: 1,
    runId: "r1",
    pipeline: "nightly",
    version: VERSION,
    params: {},
    by: "ana",
  };
  for (const [n, events] of [[created], ...batches].entries()) run.apply(n + 1, events);
  return run;
}

const offered = (epoch = 1): RunEvent => ({
  kind: "attempt.offered",
  atMs: 2,
  ...at,
  epoch,
  environment: "site",
  policyVersion: "p1",
  expiresAtMs: 9,
});
const unclaimed = (epoch: number): RunEvent => {
  return { kind: "attempt.lost", atMs: 9, ...at, epoch, agent: null, reason: "offer-expired" };
};
const started: RunEvent = { kind: "attempt.started", atMs: 3, ...at, agent: "site/a" };
const expired: RunEvent = { kind: "attempt.lost", atMs: 5, ...at, agent: "site/a", reason: "lease-expired" };
const finished: RunEvent = {
  kind: "attempt.finished",
  atMs: 6,
  ...at,
  agent: "site/a",
  outcome: outcome({ exitCode: 0, logLastSeq: 4 }),
  retryAtMs: null,
};
const fencedOf = (agent: string): RunEvent => {
  return { kind: "attempt.fenced", atMs: 7, ...at, agent, outcome: outcome({ exitCode: 3 }) };
};

const attemptsOf = (run: RunProjection) =>
  run.step(0).attempts.map(({ epoch, agent, status, exitCode }) => ({ epoch, agent, status, exitCode }));

describe("the attempts of a step", () => {
  test("leave out offers that nobody took, but for the last", () => {
    const run = projectionOf([offered(1)], [unclaimed(1), offered(2)], [unclaimed(2), offered(3)]);
    expect(attemptsOf(run)).toEqual([{ epoch: 3, agent: null, status: "offered", exitCode: null }]);
  });

  test("show the late outcome of a grant that was lost as evidence", () => {
    const run = projectionOf([offered(), started], [expired], [offered(2)], [fencedOf("site/a")]);
    expect(attemptsOf(run)).toEqual([
      { epoch: 1, agent: "site/a", status: "fenced", exitCode: 3 },
      { epoch: 2, agent: null, status: "offered", exitCode: null },
    ]);
  });

  test("keep what the holder did when a second agent reports under the same grant, before or after", () => {
    const expected = [
      { epoch: 1, agent: "site/a", status: "succeeded", exitCode: 0 },
      { epoch: 1, agent: "site/b", status: "fenced", exitCode: 3 },
    ];
    const before = projectionOf([offered(), started], [fencedOf("site/b")], [finished]);
    expect(attemptsOf(before)).toEqual(expected);
    const after = projectionOf([offered(), started], [finished], [fencedOf("site/b")]);
    expect(attemptsOf(after)).toEqual(expected);
  });
});

test("a batch that was folded in already changes nothing", () => {
  const run = projectionOf([offered(), started]);
  const before = run.detail();
  run.apply(2, [offered(), started]);
  expect(run.detail()).toEqual(before);
  expect(run.detail().eventSeq).toBe(2);
});

test("an ended run tells who asked for it, when it ended and how many steps ended how", () => {
  const run = projectionOf(
    [offered(), started],
    [
      finished,
      { kind: "step.succeeded", atMs: 6, step: "load" },
      { kind: "run.finished", atMs: 8, status: "succeeded", reason: "" },
    ],
  );
  expect(run.terminal).toBe(true);
  expect(run.summary()).toMatchObject({
    id: "r1",
    pipeline: "nightly",
    version: VERSION,
    createdBy: "ana",
    createdAtMs: 1,
    finishedAtMs: 8,
    counts: { succeeded: 1 },
  });
  expect(run.step(0)).toMatchObject({ environment: "site", startedAtMs: 3, finishedAtMs: 6, error: null });
});
