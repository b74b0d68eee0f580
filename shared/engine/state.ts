/** A run as a fold over its events. */
import { assertNever, InvariantError, invariant } from "../errors.ts";
import type { DisconnectSpec, ParamValue, StepSpec } from "../model/spec.ts";
import type { ArtifactRef, Outcome, OutputValue } from "../wire/attempt.ts";
import type { Decision } from "./disconnection.ts";
import type { HoldReason, RunEvent, RunStatus, StepStatus } from "./events.ts";
import type { Plan } from "./plan.ts";
import { StepTable } from "./step-table.ts";

export interface StepState {
  readonly status: StepStatus;
  /** Needs that have not succeeded yet. */
  readonly openNeeds: number;
  /** The current or last attempt, from 1; 0 before the first. */
  readonly attempt: number;
  /** The attempt that the next offer is for: the same again when a grant was lost, one more after a failure. */
  readonly nextAttempt: number;
  /** Grows with each grant over all attempts of the step: the fencing token. */
  readonly epoch: number;
  /** In order of their epochs. */
  readonly grants: readonly { readonly epoch: number; readonly environment: string }[];
  readonly agent: string | null;
  readonly policyVersion: string;
  readonly offerExpiresAtMs: number;
  /** What the environment of the current grant says of attempts whose agent is cut off. */
  readonly disconnect: DisconnectSpec | null;
  /** While the agent is cut off: until when the attempt stays its own (null: without end), and what follows. */
  readonly away: { sinceMs: number; untilMs: number | null; then: DisconnectSpec["then"] } | null;
  /** The restores from backups, by their floors, of which an operator has said what became of the step meanwhile. */
  readonly clearedFloor: number;
  /** The last decision of an operator. */
  readonly resolved: { epoch: number; by: string; reason: string; decision: Decision } | null;
  readonly retryAtMs: number | null;
  readonly held: { reason: HoldReason; message: string; failsAtMs: number | null } | null;
  /** Grants of the current attempt that ended without an outcome while an agent held them. */
  readonly losses: number;
  /** `epoch:agent` of the outcomes on record, so that a repeat is known as one. */
  readonly recorded: readonly string[];
  readonly outputs: Readonly<Record<string, OutputValue>>;
  readonly artifacts: readonly ArtifactRef[];
  readonly error: { code: string; message: string } | null;
}

export interface RunState {
  readonly plan: Plan;
  /** Empty before `run.created`. */
  readonly runId: string;
  readonly version: string;
  readonly status: RunStatus;
  readonly createdAtMs: number;
  /** Of the latest owner of the shard that took the run over; 0 for none. */
  readonly shardEpoch: number;
  /** Grants come above it: those below were made after the backup that the run was restored from. 0: it was not. */
  readonly epochFloor: number;
  /** The floor of the last restore that the run knows of, also of one from before it was created. */
  readonly floorSeen: number;
  readonly params: Readonly<Record<string, ParamValue>>;
  readonly cancel: { by: string; reason: string } | null;
  readonly steps: StepTable<StepState>;
  /** Steps that are not terminal. */
  readonly open: number;
  readonly failed: number;
  readonly cancelled: number;
  /** The first step that failed. */
  readonly firstFailure: { step: string; message: string } | null;
}

export function isTerminalStep(status: StepStatus): boolean {
  return status === "succeeded" || status === "failed" || status === "skipped" || status === "cancelled";
}

export function isTerminalRun(status: RunStatus): boolean {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

/** An agent has the attempt, or may have it: nothing but word of it or a decision ends it, a cancel included. */
export function isHeld(status: StepStatus): boolean {
  return status === "running" || status === "disconnected";
}

export function holdsPools(status: StepStatus | undefined): boolean {
  return status === "offered" || (status !== undefined && isHeld(status));
}

/** Statuses from which a step may be offered. `backoff` only once its `retryAtMs` has come, which the decision checks. */
export function isPlaceable(status: StepStatus): boolean {
  return status === "ready" || status === "backoff";
}

/** Of the next grant of the step. */
export function nextEpoch(state: RunState, step: StepState): number {
  return Math.max(step.epoch, state.epochFloor) + 1;
}

/** The environment that the grant went to; undefined for an epoch that was never granted, as far as is known. */
export function environmentOf(step: StepState, epoch: number): string | undefined {
  return step.grants.find((grant) => grant.epoch === epoch)?.environment;
}

/** A `once` step of which nobody has said yet whether it ran between a backup and its restore. */
export function isDoubted(state: RunState, id: string): boolean {
  const index = state.plan.indexOf.get(id);
  if (index === undefined || !state.plan.steps[index]!.once) return false;
  const { clearedFloor, status } = state.steps.get(index);
  return state.epochFloor > clearedFloor && !isHeld(status) && !isTerminalStep(status);
}

/** Held until an operator says whether it ran between a backup and its restore. */
export function isInDoubt(step: StepState): boolean {
  return step.status === "ready" && step.held?.reason === "restored";
}

/** The state before the first event. */
export function initialState(plan: Plan): RunState {
  return {
    plan,
    runId: "",
    version: "",
    status: "running",
    createdAtMs: 0,
    shardEpoch: 0,
    epochFloor: 0,
    floorSeen: 0,
    params: {},
    cancel: null,
    steps: StepTable.from(plan.steps.map(initialStep)),
    open: plan.steps.length,
    failed: 0,
    cancelled: 0,
    firstFailure: null,
  };
}

function initialStep(spec: StepSpec): StepState {
  return {
    status: spec.needs.length === 0 ? "ready" : "pending",
    openNeeds: spec.needs.length,
    attempt: 0,
    nextAttempt: 1,
    epoch: 0,
    grants: [],
    agent: null,
    policyVersion: "",
    offerExpiresAtMs: 0,
    disconnect: null,
    away: null,
    clearedFloor: 0,
    resolved: null,
    retryAtMs: null,
    held: null,
    losses: 0,
    recorded: [],
    outputs: {},
    artifacts: [],
    error: null,
  };
}

/**
 * Folds one event into the state.
 *
 * @throws InvariantError for an event that cannot follow: the stream or the code is broken, and the run is
 * set aside for a person.
 */
export function evolve(state: RunState, event: RunEvent): RunState {
  if (event.kind === "run.created") {
    invariant(state.runId === "", `run ${state.runId} was created twice`);
    const { runId, version, params, atMs, shardEpoch = 0, epochFloor: floorSeen = 0 } = event;
    const epochFloor = event.mayHaveLived ? floorSeen : 0;
    return { ...state, runId, version, params, createdAtMs: atMs, shardEpoch, epochFloor, floorSeen };
  }
  invariant(state.runId !== "", `${event.kind} before run.created`);
  if (event.kind === "attempt.fenced") return evolveStep(state, event.step, record(event.epoch, event.agent));
  invariant(!isTerminalRun(state.status), `${event.kind} after run ${state.runId} ended`);
  switch (event.kind) {
    case "run.taken-over":
      return takenOver(state, event);
    case "run.cancel-requested":
      return { ...state, status: "cancelling", cancel: { by: event.by, reason: event.reason } };
    case "run.finished":
      invariant(state.open === 0, `run ${state.runId} finished with ${state.open} open steps`);
      return { ...state, status: event.status };
    case "step.succeeded":
      return releaseDependents(end(state, event.step, "succeeded"), event.step);
    case "step.failed": {
      const error = { code: event.code, message: event.message };
      const next = evolveStep(end(state, event.step, "failed"), event.step, (step) => ({ ...step, error }));
      const firstFailure = state.firstFailure ?? { step: event.step, message: event.message };
      return { ...next, failed: state.failed + 1, firstFailure };
    }
    case "step.skipped":
      return end(state, event.step, "skipped");
    case "step.cancelled":
      return { ...end(state, event.step, "cancelled"), cancelled: state.cancelled + 1 };
    case "step.held":
      return evolveStep(state, event.step, (step) => {
        expectPlaceable(event, step);
        return {
          ...step,
          status: "ready",
          retryAtMs: null,
          held: { reason: event.reason, message: event.message, failsAtMs: event.failsAtMs },
        };
      });
    case "attempt.offered":
      return evolveStep(state, event.step, (step) => {
        expectPlaceable(event, step);
        invariant(event.epoch === nextEpoch(state, step), `epoch ${event.epoch} follows ${step.epoch}`);
        return {
          ...step,
          status: "offered",
          attempt: event.attempt,
          epoch: event.epoch,
          grants: [...step.grants, { epoch: event.epoch, environment: event.environment }],
          agent: null,
          policyVersion: event.policyVersion,
          offerExpiresAtMs: event.expiresAtMs,
          disconnect: event.disconnect ?? null,
          retryAtMs: null,
          losses: event.attempt === step.attempt ? step.losses : 0,
          held: null,
        };
      });
    case "attempt.started":
      return evolveStep(state, event.step, (step) => {
        expectGrant(event, step, "offered");
        return { ...step, status: "running", agent: event.agent };
      });
    case "attempt.disconnected":
      return evolveStep(state, event.step, (step) => {
        expectGrant(event, step, "running");
        const away = { sinceMs: event.atMs, untilMs: event.untilMs, then: event.then };
        return { ...step, status: "disconnected", away };
      });
    case "attempt.reconnected":
      return evolveStep(state, event.step, (step) => {
        expectGrant(event, step, "disconnected");
        return { ...step, status: "running", away: null };
      });
    case "attempt.resolved":
      return evolveStep(state, event.step, (step) => {
        if (!isInDoubt(step)) expectGrant(event, step, "disconnected");
        const { epoch, by, reason, decision } = event;
        const resolved = { epoch, by, reason, decision };
        const decided = { ...step, resolved, clearedFloor: state.epochFloor, held: null };
        return decision === "reassign" ? { ...decided, status: "ready", agent: null, away: null } : decided;
      });
    case "attempt.finished":
      return evolveStep(state, event.step, (step) => finish(event, step));
    case "attempt.lost":
      return evolveStep(state, event.step, (step) => lose(event, step));
    default:
      return assertNever(event);
  }
}

function takenOver(state: RunState, event: Extract<RunEvent, { kind: "run.taken-over" }>): RunState {
  const shardEpoch = Math.max(state.shardEpoch, event.shardEpoch);
  const { epochFloor = 0 } = event;
  if (epochFloor <= state.floorSeen) return { ...state, shardEpoch };
  return { ...state, shardEpoch, epochFloor, floorSeen: epochFloor };
}

const HELD_UNTIL_LOST = {
  "offer-expired": "offered",
  "lease-expired": "running",
  interrupted: "running",
  disconnected: "disconnected",
  restored: "offered",
} as const;

function lose(event: Extract<RunEvent, { kind: "attempt.lost" }>, step: StepState): StepState {
  expectGrant(event, step, HELD_UNTIL_LOST[event.reason]);
  const recorded = event.outcome ? record(event.epoch, event.agent ?? "")(step).recorded : step.recorded;
  const losses = event.agent === null ? step.losses : step.losses + 1;
  const lost: StepState = { ...step, status: "ready", agent: null, away: null, losses, recorded };
  const { retryAtMs = null } = event;
  return retryAtMs === null ? lost : { ...lost, status: "backoff", nextAttempt: step.attempt + 1, retryAtMs };
}

function finish(event: Extract<RunEvent, { kind: "attempt.finished" }>, step: StepState): StepState {
  expectGrant(event, step, "running");
  const done = record(event.epoch, event.agent)(step);
  if (event.outcome.status === "succeeded") {
    return { ...done, outputs: event.outcome.outputs, artifacts: event.outcome.artifacts };
  }
  const error = event.outcome.error ?? { code: event.outcome.status, message: describe(event.outcome) };
  if (event.retryAtMs === null) return { ...done, error };
  return { ...done, error, status: "backoff", nextAttempt: step.attempt + 1, retryAtMs: event.retryAtMs };
}

/** An outcome in words. */
export function describe(outcome: Outcome): string {
  if (outcome.error) return outcome.error.message;
  if (outcome.signal !== null) return `ended by signal ${outcome.signal}`;
  if (outcome.exitCode !== null) return `exit code ${outcome.exitCode}`;
  return outcome.status;
}

export function stepOf(state: RunState, id: string): StepState | undefined {
  const index = state.plan.indexOf.get(id);
  return index === undefined ? undefined : state.steps.get(index);
}

function evolveStep(state: RunState, id: string, change: (step: StepState) => StepState): RunState {
  const index = state.plan.indexOf.get(id);
  if (index === undefined) throw new InvariantError(`run ${state.runId} has no step ${id}`);
  return { ...state, steps: state.steps.with(index, change(state.steps.get(index))) };
}

function end(state: RunState, id: string, status: StepStatus): RunState {
  const next = evolveStep(state, id, (step) => {
    invariant(!isTerminalStep(step.status), `step ${id} is ${step.status} and cannot become ${status}`);
    return { ...step, status, held: null, retryAtMs: null, away: null };
  });
  return { ...next, open: state.open - 1 };
}

function releaseDependents(state: RunState, id: string): RunState {
  let { steps } = state;
  for (const index of state.plan.dependents[state.plan.indexOf.get(id)!]!) {
    const step = steps.get(index);
    const openNeeds = step.openNeeds - 1;
    const status = step.status === "pending" && openNeeds === 0 ? "ready" : step.status;
    steps = steps.with(index, { ...step, openNeeds, status });
  }
  return { ...state, steps };
}

function record(epoch: number, agent: string): (step: StepState) => StepState {
  return (step) => ({ ...step, recorded: [...step.recorded, `${epoch}:${agent}`] });
}

function expectStatus(event: RunEvent & { step: string }, step: StepState, status: StepStatus): void {
  invariant(step.status === status, `${event.kind} of step ${event.step}, which is ${step.status}`);
}

function expectPlaceable(event: RunEvent & { step: string }, step: StepState): void {
  invariant(isPlaceable(step.status), `${event.kind} of step ${event.step}, which is ${step.status}`);
}

function expectGrant(
  event: RunEvent & { step: string; attempt: number; epoch: number },
  step: StepState,
  status: StepStatus,
): void {
  expectStatus(event, step, status);
  invariant(
    step.epoch === event.epoch && step.attempt === event.attempt,
    `${event.kind} of step ${event.step} under epoch ${event.epoch}, which is at ${step.epoch}`,
  );
}
