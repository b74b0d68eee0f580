/**
 * The run state machine: decides what follows from what happened.
 *
 * `step(state, input)` gives the next state, the events to append, and the effects to perform once they are
 * durable. It sees no clock and no chance but what the input carries. The events alone rebuild the state
 * (`evolve`), and `owed(state)` the effects, so a crash between append and effect is a delay and not a loss.
 */
import { assertNever, invariant } from "../errors.ts";
import type { RetrySpec, StepSpec } from "../model/spec.ts";
import type { Outcome } from "../wire/attempt.ts";
import type { ReportSignature } from "../wire/report-signature.ts";
import { disconnectOf, outlivesItsLease, refuseResolution } from "./disconnection.ts";
import type { RunEvent } from "./events.ts";
import type { Effect, Input } from "./inputs.ts";
import {
  describe,
  environmentOf,
  evolve,
  isDoubted,
  isHeld,
  isInDoubt,
  isPlaceable,
  isTerminalRun,
  isTerminalStep,
  nextEpoch,
  type RunState,
  type StepState,
  stepOf,
} from "./state.ts";

export type { Effect, Input, TimerKind } from "./inputs.ts";

/** Grants of one attempt that may be lost to dying agents before the step fails: a step may be what kills them. */
export const LOSSES_MAX = 5;

export interface Step {
  state: RunState;
  events: RunEvent[];
  effects: Effect[];
}

/** @throws InvariantError when the input cannot be true: the run is set aside for a person. */
export function step(state: RunState, input: Input): Step {
  const draft = new Draft(state);
  decide(draft, input);
  return { state: draft.state, events: draft.events, effects: draft.effects };
}

class Draft {
  state: RunState;
  readonly events: RunEvent[] = [];
  readonly effects: Effect[] = [];

  constructor(state: RunState) {
    this.state = state;
  }

  emit(event: RunEvent): void {
    this.state = evolve(this.state, event);
    this.events.push(event);
  }

  spec(id: string): StepSpec {
    return this.state.plan.steps[this.state.plan.indexOf.get(id)!]!;
  }

  step(id: string): StepState {
    const found = stepOf(this.state, id);
    invariant(found, `run ${this.state.runId} has no step ${id}`);
    return found;
  }
}

function decide(draft: Draft, input: Input): void {
  switch (input.kind) {
    case "create":
      return create(draft, input);
    case "place":
      if (mayBePlaced(draft.state, draft.step(input.step), input.atMs))
        draft.effects.push({ kind: "place", step: input.step });
      return;
    case "offer":
      return offer(draft, input);
    case "hold":
      return hold(draft, input);
    case "started":
      return started(draft, input);
    case "finished":
      return finished(draft, input);
    case "lease-expired":
      return leaseExpired(draft, input);
    case "reconnected":
      return reconnected(draft, input);
    case "resolve":
      return resolve(draft, input);
    case "timer":
      return timer(draft, input);
    case "cancel":
      return cancel(draft, input);
    case "take-over":
      return takeOver(draft, input);
    default:
      return assertNever(input);
  }
}

type InputOf<K extends Input["kind"]> = Extract<Input, { kind: K }>;

function create(draft: Draft, input: InputOf<"create">): void {
  const { atMs, runId, version, params, by } = input;
  if (draft.state.runId === runId) return; // a repeat: the answer to the first try was lost
  const { spec } = draft.state.plan;
  const owned = input.shardEpoch === undefined ? {} : { shardEpoch: input.shardEpoch };
  const { epochFloor, mayHaveLived } = input;
  const seen = { ...(epochFloor ? { epochFloor } : {}), ...(mayHaveLived ? { mayHaveLived } : {}) };
  draft.emit({
    kind: "run.created",
    atMs,
    runId,
    pipeline: spec.name,
    version,
    params,
    by,
    ...owned,
    ...seen,
  });
  draft.state.plan.steps.forEach((item) => {
    if (item.needs.length === 0) draft.effects.push({ kind: "place", step: item.id });
  });
  if (spec.timeoutMs !== null) {
    draft.effects.push({ kind: "timer", timer: "deadline", step: null, atMs: atMs + spec.timeoutMs });
  }
}

function takeOver(draft: Draft, input: InputOf<"take-over">): void {
  const { atMs, shardEpoch, replica, epochFloor = 0 } = input;
  if (draft.state.runId === "" || isTerminalRun(draft.state.status)) return;
  const isRestored = epochFloor > draft.state.floorSeen;
  if (isRestored || shardEpoch > draft.state.shardEpoch) {
    const floor = isRestored ? { epochFloor } : {};
    draft.emit({ kind: "run.taken-over", atMs, shardEpoch, replica, ...floor });
  }
  if (isRestored) doubtOffers(draft, atMs);
  settle(draft, atMs);
}

/** Somebody may have taken them after the backup. Whoever did is fenced off; those that nobody took are made again. */
function doubtOffers(draft: Draft, atMs: number): void {
  for (const { id } of draft.state.plan.steps) {
    const { status, attempt, epoch } = draft.step(id);
    if (status !== "offered") continue;
    draft.emit({ kind: "attempt.lost", atMs, step: id, attempt, epoch, agent: null, reason: "restored" });
    draft.effects.push({ kind: "release", step: id });
    if (draft.state.cancel === null) draft.effects.push({ kind: "place", step: id });
  }
}

const IN_DOUBT =
  "the run was restored from a backup, and this `once` step may have been started after that backup; look at its site, then say what became of it with `insitu runs resolve`";

function offer(draft: Draft, input: InputOf<"offer">): void {
  const current = draft.step(input.step);
  if (!mayBePlaced(draft.state, current, input.atMs)) return;
  const { atMs, environment, policyVersion, expiresAtMs, disconnect } = input;
  if (isDoubted(draft.state, input.step)) {
    if (!isInDoubt(current)) {
      const held = { reason: "restored", message: IN_DOUBT, failsAtMs: null } as const;
      draft.emit({ kind: "step.held", atMs, step: input.step, ...held });
    }
    draft.effects.push({ kind: "release", step: input.step });
    return;
  }
  const [attempt, epoch] = [current.nextAttempt, nextEpoch(draft.state, current)];
  draft.emit({
    kind: "attempt.offered",
    atMs,
    step: input.step,
    attempt,
    epoch,
    environment,
    policyVersion,
    expiresAtMs,
    ...(disconnect ? { disconnect } : {}),
  });
  draft.effects.push({ kind: "offer", step: input.step, attempt, epoch, environment });
  draft.effects.push({ kind: "timer", timer: "offer", step: input.step, atMs: expiresAtMs });
}

function hold(draft: Draft, input: InputOf<"hold">): void {
  const current = draft.step(input.step);
  if (!mayBePlaced(draft.state, current, input.atMs) || isInDoubt(current)) return;
  const { atMs, reason, message } = input;
  if (current.held?.reason === reason && current.held.message === message) return;
  const waits = draft.spec(input.step).unplaceableMs;
  const since = current.held?.reason === "unplaceable" ? current.held.failsAtMs : null;
  const failsAtMs = reason === "unplaceable" ? (since ?? atMs + waits) : null;
  draft.emit({ kind: "step.held", atMs, step: input.step, reason, message, failsAtMs });
  if (failsAtMs !== null) {
    draft.effects.push({ kind: "timer", timer: "unplaceable", step: input.step, atMs: failsAtMs });
  }
}

function started(draft: Draft, input: InputOf<"started">): void {
  const current = draft.step(input.step);
  const { atMs, attempt, epoch, agent } = input;
  if (current.status === "running" && current.epoch === epoch && current.agent === agent) return;
  if (current.recorded.includes(`${epoch}:${agent}`)) return;
  if (isAway(current, epoch, agent)) return reconnected(draft, { ...input, kind: "reconnected" });
  if (current.status !== "offered" || current.epoch !== epoch || isTerminalRun(draft.state.status)) {
    draft.effects.push({ kind: "supersede", step: input.step, attempt, epoch, agent });
    return;
  }
  const about = { step: input.step, attempt: current.attempt, epoch, agent };
  draft.emit({ kind: "attempt.started", atMs, ...about, ...input.said });
  draft.effects.push({ kind: "lease.begin", ...about });
}

function finished(draft: Draft, input: InputOf<"finished">): void {
  const { atMs, epoch, agent, outcome } = input;
  const before = draft.step(input.step);
  if (before.recorded.includes(`${epoch}:${agent}`)) return;
  // Never granted: not evidence of anything.
  if (epoch > before.epoch) return;
  // The outcome may overtake the report of the start.
  if (before.status === "offered" && before.epoch === epoch) {
    draft.emit({ kind: "attempt.started", atMs, step: input.step, attempt: before.attempt, epoch, agent });
  }
  if (isAway(before, epoch, agent)) {
    const { attempt } = before;
    draft.emit({ kind: "attempt.reconnected", atMs, step: input.step, attempt, epoch, agent });
  }
  const current = draft.step(input.step);
  if (current.status !== "running" || current.epoch !== epoch || current.agent !== agent) {
    const { attempt } = input;
    draft.emit({
      kind: "attempt.fenced",
      atMs,
      step: input.step,
      attempt,
      epoch,
      agent,
      outcome,
      ...signatureOf(input),
    });
    return;
  }
  draft.effects.push(
    { kind: "lease.end", step: input.step, epoch, agent },
    { kind: "release", step: input.step },
  );
  // What is started once is not offered again after that; a run that is cancelled offers nothing again.
  const again = !draft.spec(input.step).once || draft.state.cancel !== null;
  if (outcome.status === "interrupted" && again) {
    lose(draft, input, current, "interrupted", { outcome, ...signatureOf(input) });
    return;
  }
  conclude(draft, input, current);
}

function conclude(draft: Draft, input: InputOf<"finished">, current: StepState): void {
  const { atMs, epoch, agent, outcome, random } = input;
  const { attempt } = current;
  const about = { atMs, step: input.step, attempt, epoch, agent, outcome };
  const base = { kind: "attempt.finished", ...about, ...signatureOf(input) } as const;
  if (outcome.status === "succeeded") {
    draft.emit({ ...base, retryAtMs: null });
    draft.emit({ kind: "step.succeeded", atMs, step: input.step });
    placeReadyDependents(draft, input.step);
    return finishRunIfDone(draft, atMs);
  }
  const retryAtMs = nextRetryAtMs(draft, input.step, atMs, random);
  if (retryAtMs !== null) {
    draft.emit({ ...base, retryAtMs });
    draft.effects.push({ kind: "timer", timer: "retry", step: input.step, atMs: retryAtMs });
    return;
  }
  draft.emit({ ...base, retryAtMs: null });
  if (draft.state.cancel !== null && outcome.status === "cancelled") {
    draft.emit({ kind: "step.cancelled", atMs, step: input.step });
    return finishRunIfDone(draft, atMs);
  }
  failStep(draft, atMs, input.step, outcome.error?.code ?? outcome.status, describe(outcome));
}

function signatureOf({ signed }: InputOf<"finished">): { signed?: ReportSignature } {
  return signed === undefined ? {} : { signed };
}

/** When another attempt follows the current one, which has failed; null: none does. */
function nextRetryAtMs(draft: Draft, id: string, atMs: number, random: number): number | null {
  const { retry, once } = draft.spec(id);
  const { attempt } = draft.step(id);
  if (draft.state.cancel !== null || once || attempt > retry.max) return null;
  return atMs + retryDelayMs(retry, attempt, random);
}

/**
 * Milliseconds until the next attempt: exponential, capped, the last `jitter` share drawn by chance.
 * `failures` counts from 1, `random` lies in [0, 1).
 */
export function retryDelayMs(retry: RetrySpec, failures: number, random: number): number {
  const full = Math.min(retry.backoffMaxMs, retry.backoffMs * retry.factor ** (failures - 1));
  return Math.round(full * (1 - retry.jitter + retry.jitter * random));
}

function leaseExpired(draft: Draft, input: InputOf<"lease-expired">): void {
  const current = draft.step(input.step);
  if (current.status !== "running" || current.epoch !== input.epoch || current.agent !== input.agent) return;
  const { atMs, epoch, agent } = input;
  draft.effects.push({ kind: "lease.end", step: input.step, epoch, agent });
  const rule = disconnectOf(draft.spec(input.step), current.disconnect);
  if (!outlivesItsLease(rule)) {
    draft.effects.push({ kind: "release", step: input.step });
    return lose(draft, input, current, "lease-expired");
  }
  const { attempt } = current;
  const untilMs = rule.then === "wait" ? null : atMs + rule.keepMs;
  const base = { atMs, step: input.step, attempt, epoch, agent };
  draft.emit({ kind: "attempt.disconnected", ...base, untilMs, then: rule.then });
  if (untilMs !== null) {
    draft.effects.push({ kind: "timer", timer: "disconnect", step: input.step, atMs: untilMs });
  }
}

function isAway(current: StepState, epoch: number, agent: string): boolean {
  return current.status === "disconnected" && current.epoch === epoch && current.agent === agent;
}

function reconnected(draft: Draft, input: InputOf<"reconnected">): void {
  const { atMs, epoch, agent } = input;
  const current = draft.step(input.step);
  if (!isAway(current, epoch, agent)) return;
  const { attempt } = current;
  draft.emit({ kind: "attempt.reconnected", atMs, step: input.step, attempt, epoch, agent });
  draft.effects.push({ kind: "lease.begin", step: input.step, attempt, epoch, agent });
  // It could not hear of it while it was away.
  for (const owing of cancelsOwed(draft.state)) {
    if (owing.kind === "cancel" && owing.step === input.step) draft.effects.push(owing);
  }
}

/** The time for which the attempt stayed its agent's is over. */
function giveUp(draft: Draft, input: InputOf<"timer">, current: StepState, id: string): void {
  const { atMs, random = 0.5 } = input;
  draft.effects.push({ kind: "release", step: id });
  if (current.away?.then !== "fail" || draft.state.cancel !== null) {
    return lose(draft, { atMs, step: id }, current, "disconnected");
  }
  const { attempt, epoch, agent } = current;
  const retryAtMs = nextRetryAtMs(draft, id, atMs, random);
  draft.emit({
    kind: "attempt.lost",
    atMs,
    step: id,
    attempt,
    epoch,
    agent,
    reason: "disconnected",
    retryAtMs,
  });
  if (retryAtMs !== null) {
    draft.effects.push({ kind: "timer", timer: "retry", step: id, atMs: retryAtMs });
    return;
  }
  failStep(draft, atMs, id, "disconnected", `agent ${agent} was cut off and did not return in time`);
}

function resolve(draft: Draft, input: InputOf<"resolve">): void {
  const { atMs, epoch, by, reason, decision } = input;
  if (isTerminalRun(draft.state.status) || refuseResolution(draft.state, input) !== null) return;
  const { attempt, agent, ...current } = draft.step(input.step);
  if (current.epoch !== epoch) return;
  const base = { atMs, step: input.step, attempt, epoch, agent };
  draft.emit({ kind: "attempt.resolved", ...base, by, reason, decision });
  // It also ends the timer of the time that the attempt stayed its agent's.
  if (agent !== null) draft.effects.push({ kind: "lease.end", step: input.step, epoch, agent });
  draft.effects.push({ kind: "release", step: input.step });
  switch (decision) {
    case "succeeded":
      draft.emit({ kind: "step.succeeded", atMs, step: input.step });
      placeReadyDependents(draft, input.step);
      return finishRunIfDone(draft, atMs);
    case "failed":
      return failStep(draft, atMs, input.step, "resolved", `${by} decided that it failed: ${reason}`);
    case "reassign":
      if (draft.state.cancel === null) {
        draft.effects.push({ kind: "place", step: input.step });
        return;
      }
      draft.emit({ kind: "step.cancelled", atMs, step: input.step });
      return finishRunIfDone(draft, atMs);
    default:
      return assertNever(decision);
  }
}

/** A grant ended without an outcome that counts: the same attempt is offered again under a higher epoch. */
function lose(
  draft: Draft,
  input: { atMs: number; step: string },
  current: StepState,
  reason: "lease-expired" | "interrupted" | "disconnected",
  detail: { outcome?: Outcome; signed?: ReportSignature } = {},
): void {
  const { atMs } = input;
  const { attempt, epoch, agent } = current;
  draft.emit({ kind: "attempt.lost", atMs, step: input.step, attempt, epoch, agent, reason, ...detail });
  if (draft.state.cancel !== null) {
    draft.emit({ kind: "step.cancelled", atMs, step: input.step });
    return finishRunIfDone(draft, atMs);
  }
  const { losses } = draft.step(input.step);
  if (losses >= LOSSES_MAX) {
    const message = `${losses} agents were lost while they ran it, the last ${agent} (${reason})`;
    return failStep(draft, atMs, input.step, "lost", message);
  }
  draft.effects.push({ kind: "place", step: input.step });
}

function timer(draft: Draft, input: InputOf<"timer">): void {
  const { atMs, dueAtMs } = input;
  if (input.timer === "deadline") {
    if (!isTerminalRun(draft.state.status)) {
      cancel(draft, { kind: "cancel", atMs, by: "insitu", reason: "the run's deadline has passed" });
    }
    return;
  }
  invariant(input.step !== null, `timer ${input.timer} names no step`);
  const current = draft.step(input.step);
  switch (input.timer) {
    case "retry":
      if (current.status === "backoff" && current.retryAtMs === dueAtMs) {
        draft.effects.push({ kind: "place", step: input.step });
      }
      return;
    case "offer": {
      if (current.status !== "offered" || current.offerExpiresAtMs !== dueAtMs) return;
      const { attempt, epoch } = current;
      draft.emit({
        kind: "attempt.lost",
        atMs,
        step: input.step,
        attempt,
        epoch,
        agent: null,
        reason: "offer-expired",
      });
      draft.effects.push({ kind: "release", step: input.step }, { kind: "place", step: input.step });
      return;
    }
    case "disconnect":
      if (current.away?.untilMs === dueAtMs) giveUp(draft, input, current, input.step);
      return;
    case "unplaceable":
      if (current.held?.reason === "unplaceable" && current.held.failsAtMs === dueAtMs) {
        failStep(draft, atMs, input.step, "unplaceable", current.held.message);
      }
      return;
    default:
      return assertNever(input.timer);
  }
}

function cancel(draft: Draft, input: InputOf<"cancel">): void {
  if (isTerminalRun(draft.state.status) || draft.state.cancel !== null) return;
  draft.emit({ kind: "run.cancel-requested", atMs: input.atMs, by: input.by, reason: input.reason });
  for (const effect of cancelsOwed(draft.state)) draft.effects.push(effect);
  settle(draft, input.atMs);
}

/** Completes what follows from the state itself: idempotent, and all that a crash can have cut off. */
function settle(draft: Draft, atMs: number): void {
  const { plan } = draft.state;
  if (draft.state.runId === "" || isTerminalRun(draft.state.status)) return;
  plan.steps.forEach(({ id }) => {
    const { status } = draft.step(id);
    if (draft.state.cancel !== null && !isTerminalStep(status) && !isHeld(status)) {
      draft.emit({ kind: "step.cancelled", atMs, step: id });
      if (status === "offered") draft.effects.push({ kind: "release", step: id });
    } else if (status === "failed" || status === "skipped") {
      skipDependents(draft, atMs, id);
    }
  });
  finishRunIfDone(draft, atMs);
}

function failStep(draft: Draft, atMs: number, id: string, code: string, message: string): void {
  draft.emit({ kind: "step.failed", atMs, step: id, code, message });
  skipDependents(draft, atMs, id);
  finishRunIfDone(draft, atMs);
}

function skipDependents(draft: Draft, atMs: number, id: string): void {
  const { plan } = draft.state;
  const queue = [id];
  for (let upstream = queue.pop(); upstream !== undefined; upstream = queue.pop()) {
    for (const index of plan.dependents[plan.indexOf.get(upstream)!]!) {
      const dependent = plan.steps[index]!.id;
      if (draft.step(dependent).status !== "pending") continue;
      draft.emit({ kind: "step.skipped", atMs, step: dependent, message: `step ${id} did not succeed` });
      queue.push(dependent);
    }
  }
}

function placeReadyDependents(draft: Draft, id: string): void {
  if (draft.state.cancel !== null) return;
  const { plan } = draft.state;
  for (const index of plan.dependents[plan.indexOf.get(id)!]!) {
    if (draft.state.steps.get(index).status === "ready") {
      draft.effects.push({ kind: "place", step: plan.steps[index]!.id });
    }
  }
}

function finishRunIfDone(draft: Draft, atMs: number): void {
  const { state } = draft;
  if (state.open > 0 || isTerminalRun(state.status)) return;
  draft.emit({ kind: "run.finished", atMs, ...verdict(state) });
  draft.effects.push({ kind: "finished" });
}

function verdict(state: RunState): { status: "succeeded" | "failed" | "cancelled"; reason: string } {
  // A cancel that came when everything was done already changes nothing.
  if (state.cancel !== null && state.cancelled > 0) {
    return { status: "cancelled", reason: `cancelled by ${state.cancel.by}: ${state.cancel.reason}` };
  }
  if (state.firstFailure) {
    const others = state.failed > 1 ? ` (and ${state.failed - 1} more)` : "";
    return {
      status: "failed",
      reason: `step ${state.firstFailure.step}: ${state.firstFailure.message}${others}`,
    };
  }
  return { status: "succeeded", reason: "" };
}

function mayBePlaced(state: RunState, current: StepState, atMs: number): boolean {
  if (state.cancel !== null || isTerminalRun(state.status) || !isPlaceable(current.status)) return false;
  return current.status === "ready" || current.retryAtMs! <= atMs;
}

/** The effects that a state asks for, whatever was performed before: performed again after a restart. */
export function owed(state: RunState): Effect[] {
  if (state.runId === "") return [];
  if (isTerminalRun(state.status)) return [{ kind: "finished" }];
  const effects: Effect[] = [];
  const { timeoutMs } = state.plan.spec;
  if (timeoutMs !== null) {
    effects.push({ kind: "timer", timer: "deadline", step: null, atMs: state.createdAtMs + timeoutMs });
  }
  state.plan.steps.forEach(({ id }, index) => {
    effects.push(...owedForStep(id, state.steps.get(index)));
  });
  effects.push(...cancelsOwed(state));
  return effects;
}

function owedForStep(id: string, current: StepState): Effect[] {
  const { attempt, epoch, agent } = current;
  switch (current.status) {
    case "ready": {
      const failsAtMs = current.held?.failsAtMs ?? null;
      const place: Effect = { kind: "place", step: id };
      return failsAtMs === null
        ? [place]
        : [place, { kind: "timer", timer: "unplaceable", step: id, atMs: failsAtMs }];
    }
    case "backoff":
      return [{ kind: "timer", timer: "retry", step: id, atMs: current.retryAtMs! }];
    case "offered":
      return [
        { kind: "offer", step: id, attempt, epoch, environment: environmentOf(current, epoch)! },
        { kind: "timer", timer: "offer", step: id, atMs: current.offerExpiresAtMs },
      ];
    case "running":
      return [{ kind: "lease.begin", step: id, attempt, epoch, agent: agent! }];
    case "disconnected": {
      const untilMs = current.away?.untilMs ?? null;
      return untilMs === null ? [] : [{ kind: "timer", timer: "disconnect", step: id, atMs: untilMs }];
    }
    default:
      return [];
  }
}

function cancelsOwed(state: RunState): Effect[] {
  if (state.cancel === null) return [];
  const { reason } = state.cancel;
  return state.plan.steps.flatMap(({ id }, index): Effect[] => {
    const { status, attempt, epoch, agent } = state.steps.get(index);
    return status === "running" ? [{ kind: "cancel", step: id, attempt, epoch, agent: agent!, reason }] : [];
  });
}
