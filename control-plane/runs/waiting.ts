/** Says of a step that is offered where nobody can take it what it waits for. No I/O. */
import type { RunDetail, StepView } from "../api/schemas.ts";

/** `agentsOf`: agents of an environment that are connected now. */
export function explainWaiting(run: RunDetail, agentsOf: (environment: string) => number): RunDetail {
  if (run.finishedAtMs !== null) return run;
  return {
    ...run,
    steps: run.steps.map((step) => ({ ...step, waiting: step.waiting ?? noAgent(step, agentsOf) })),
  };
}

function noAgent(step: StepView, agentsOf: (environment: string) => number): StepView["waiting"] {
  const { status, environment } = step;
  if (status !== "offered" || environment === null || agentsOf(environment) > 0) return null;
  return { reason: "no-agent", message: `no agent of ${environment} is connected` };
}
