/** Small builders of valid specs for tests. */
import type { PipelineSpec, StepSpec } from "../../shared/model/spec.ts";
import type { Outcome } from "../../shared/wire/attempt.ts";

export function stepSpec(id: string, change: Partial<StepSpec> = {}): StepSpec {
  return {
    id,
    needs: [],
    executor: { kind: "noop" },
    env: {},
    files: [],
    reads: [],
    writes: [],
    environments: [],
    outputs: {},
    artifacts: {},
    retry: { max: 0, backoffMs: 1_000, factor: 2, backoffMaxMs: 60_000, jitter: 0.2 },
    timeoutMs: 3_600_000,
    unplaceableMs: 300_000,
    pools: [],
    ...change,
  };
}

export function pipelineSpec(
  name: string,
  steps: StepSpec[],
  change: Partial<PipelineSpec> = {},
): PipelineSpec {
  return { name, params: {}, timeoutMs: null, files: {}, steps, ...change };
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
