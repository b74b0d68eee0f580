/** Views and events for tests. */
import type { RunEvent } from "../../shared/engine/events.ts";
import type { Outcome } from "../../shared/wire/attempt.ts";
import type { RunDetail, StepView } from "../api/schemas.ts";

export function stepView(id: string, needs: string[] = [], change: Partial<StepView> = {}): StepView {
  return {
    id,
    status: "pending",
    needs,
    reads: [],
    writes: [],
    environment: null,
    agent: null,
    waiting: null,
    startedAtMs: null,
    finishedAtMs: null,
    retryAtMs: null,
    error: null,
    outputs: {},
    artifacts: [],
    attempts: [],
    ...change,
  };
}

export function runDetail(steps: StepView[], change: Partial<RunDetail> = {}): RunDetail {
  return {
    id: "01m85kzyz71kqjw0z19gdzynrg",
    pipeline: "penguins",
    version: `sha256:${"ab".repeat(32)}`,
    status: "running",
    reason: "",
    params: {},
    createdBy: "operator",
    createdAtMs: 1_000_000,
    finishedAtMs: null,
    counts: {} as RunDetail["counts"],
    steps,
    eventSeq: 1,
    ...change,
  };
}

export function outcome(change: Partial<Outcome> = {}): Outcome {
  return {
    status: "succeeded",
    exitCode: 0,
    signal: null,
    error: null,
    outputs: {},
    artifacts: [],
    egress: [],
    logLastSeq: 0,
    logBytes: 0,
    logDroppedBytes: 0,
    startedAtMs: 0,
    finishedAtMs: 0,
    ...change,
  };
}

export const offered = (step: string, environment: string, atMs = 1_000_100, attempt = 1): RunEvent => ({
  kind: "attempt.offered",
  atMs,
  step,
  attempt,
  epoch: attempt,
  environment,
  policyVersion: "p",
  expiresAtMs: atMs + 1_000,
});

export const started = (step: string, agent: string, atMs = 1_000_200, attempt = 1): RunEvent => ({
  kind: "attempt.started",
  atMs,
  step,
  attempt,
  epoch: attempt,
  agent,
});
