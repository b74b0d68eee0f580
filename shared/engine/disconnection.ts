/** What becomes of an attempt whose agent is cut off, and what an operator may decide about it. Pure. */
import type { DisconnectSpec, StepSpec } from "../model/spec.ts";
import { isInDoubt, type RunState } from "./state.ts";

/** What an operator says became of a disconnected attempt; `reassign`: it did not run, or may run again. */
export const DECISIONS = ["succeeded", "failed", "reassign"] as const;
export type Decision = (typeof DECISIONS)[number];

const DEFAULT_DISCONNECT: DisconnectSpec = { keepMs: 0, then: "reassign" };

/**
 * The rule for an attempt of the step. `granted` is the default of the environment that holds it, as it was when
 * the attempt was offered: a later edit of the environment changes no grant that is out already.
 */
export function disconnectOf(spec: StepSpec, granted: DisconnectSpec | null): DisconnectSpec {
  const rule = spec.disconnect ?? (spec.once ? null : granted) ?? DEFAULT_DISCONNECT;
  // No document says both; nothing that reaches the engine by another way may start the step twice.
  return spec.once && rule.then === "reassign" ? { keepMs: rule.keepMs, then: "wait" } : rule;
}

/** Whether the lease of such an attempt may run out without the grant being over at once. */
export function outlivesItsLease({ keepMs, then }: DisconnectSpec): boolean {
  return keepMs > 0 || then !== "reassign";
}

export interface Resolution {
  step: string;
  decision: Decision;
  /** Said of a step with `once`: it may be started again though it may have run. */
  evenIfItRan: boolean;
}

/** Why an operator may not decide so; null when they may. In words for that operator. */
export function refuseResolution(
  state: RunState,
  { step, decision, evenIfItRan }: Resolution,
): string | null {
  const index = state.plan.indexOf.get(step);
  if (index === undefined) return `run ${state.runId} has no step ${step}`;
  const current = state.steps.get(index);
  if (current.status !== "disconnected" && !isInDoubt(current)) {
    return `step ${step} of run ${state.runId} is ${current.status}; only a disconnected step, or one in doubt after a restore, is resolved by hand`;
  }
  const spec = state.plan.steps[index]!;
  if (decision === "reassign" && spec.once && !evenIfItRan) {
    return `step ${step} is 'once' and an agent may have run it; say --even-if-it-ran to start it a second time`;
  }
  if (decision !== "succeeded") return null;
  const outputs = Object.keys(spec.outputs);
  const dependents = state.plan.dependents[index]!.map((at) => state.plan.steps[at]!.id);
  if (outputs.length === 0 || dependents.length === 0) return null;
  const missing = outputs.length === 1 ? `output ${outputs[0]}` : `outputs ${outputs.join(", ")}`;
  return `step ${step} cannot be taken as succeeded: its ${missing} never arrived, and ${dependents.join(", ")} ${
    dependents.length === 1 ? "needs" : "need"
  } them; say --as failed or --as reassign, or wait for the agent`;
}

const THEN = { reassign: "another agent gets the attempt", fail: "the attempt fails", wait: "" } as const;

/** What a disconnected step waits for and until when, in words. */
export function explainAway(
  agent: string,
  away: { sinceMs: number; untilMs: number | null; then: DisconnectSpec["then"] },
): string {
  const since = `${agent} is cut off since ${new Date(away.sinceMs).toISOString()}`;
  if (away.untilMs === null) return `${since}; the step waits until it returns`;
  return `${since}; unless it returns, ${THEN[away.then]} at ${new Date(away.untilMs).toISOString()}`;
}
