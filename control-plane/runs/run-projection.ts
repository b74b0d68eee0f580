/** A run as readers see it: the engine's state, plus the history of its attempts. A fold over events; no I/O. */

import { explainAway } from "../../shared/engine/disconnection.ts";
import type { RunEvent, StepStatus } from "../../shared/engine/events.ts";
import type { Plan } from "../../shared/engine/plan.ts";
import {
  evolve,
  initialState,
  isTerminalRun,
  type RunState,
  type StepState,
} from "../../shared/engine/state.ts";
import type { AttemptView, RunDetail, RunSummary, StepView } from "../api/schemas.ts";

export class RunProjection {
  state: RunState;
  /** Sequence of the last batch that was folded in. */
  seq = 0;
  #summary: { pipeline: string; createdBy: string; finishedAtMs: number | null; reason: string };
  readonly #attempts = new Map<string, AttemptView[]>();
  readonly #times = new Map<string, { startedAtMs: number | null; finishedAtMs: number | null }>();

  constructor(plan: Plan) {
    this.state = initialState(plan);
    this.#summary = { pipeline: plan.spec.name, createdBy: "", finishedAtMs: null, reason: "" };
  }

  get terminal(): boolean {
    return isTerminalRun(this.state.status);
  }

  /** Batches up to `seq` were folded in already and are ignored. */
  apply(seq: number, events: readonly RunEvent[]): void {
    if (seq <= this.seq) return;
    for (const event of events) {
      this.state = evolve(this.state, event);
      this.#note(event);
    }
    this.seq = seq;
  }

  #note(event: RunEvent): void {
    switch (event.kind) {
      case "run.created":
        this.#summary.createdBy = event.by;
        return;
      case "run.finished":
        this.#summary.finishedAtMs = event.atMs;
        this.#summary.reason = event.reason;
        return;
      case "attempt.offered":
        this.#attempts.set(event.step, [...this.#taken(event.step), offered(event)]);
        return;
      case "attempt.started":
        this.#change(event, { status: "running", agent: event.agent, startedAtMs: event.atMs });
        this.#times.set(event.step, {
          startedAtMs: this.#times.get(event.step)?.startedAtMs ?? event.atMs,
          finishedAtMs: null,
        });
        return;
      case "attempt.finished":
        this.#change(event, { ...ended(event), status: event.outcome.status });
        return;
      case "attempt.fenced":
        this.#noteFenced(event);
        return;
      case "attempt.disconnected":
        this.#change(event, { status: "disconnected" });
        return;
      case "attempt.reconnected":
        this.#change(event, { status: "running" });
        return;
      case "attempt.resolved": {
        const message = `${event.by} decided: ${event.decision}: ${event.reason}`;
        this.#change(event, {
          status: "resolved",
          finishedAtMs: event.atMs,
          error: { code: "resolved", message },
        });
        return;
      }
      case "attempt.lost":
        this.#change(event, {
          ...(event.outcome ? ended({ atMs: event.atMs, outcome: event.outcome }) : {}),
          status: "lost",
          finishedAtMs: event.atMs,
          error: { code: event.reason, message: LOST[event.reason] },
        });
        return;
      case "step.succeeded":
      case "step.failed":
      case "step.cancelled":
      case "step.skipped": {
        const startedAtMs = this.#times.get(event.step)?.startedAtMs ?? null;
        this.#times.set(event.step, { startedAtMs, finishedAtMs: event.atMs });
        return;
      }
      default:
        return;
    }
  }

  /** A row of its own when another agent's outcome, or one on its way, is the grant's: evidence hides no fact. */
  #noteFenced(event: Extract<RunEvent, { kind: "attempt.fenced" }>): void {
    const change: Partial<AttemptView> = { ...ended(event), agent: event.agent, status: "fenced" };
    const attempts = this.#attempts.get(event.step) ?? [];
    const granted = attempts.find((attempt) => attempt.epoch === event.epoch && attempt.status !== "fenced");
    if (!granted || granted.status === "lost") return this.#change(event, change);
    this.#attempts.set(event.step, [...attempts, { ...granted, startedAtMs: null, ...change }]);
  }

  /** Without offers that nobody took: a site that is away for a day would leave hundreds. */
  #taken(step: string): AttemptView[] {
    const attempts = this.#attempts.get(step) ?? [];
    return attempts.filter((attempt) => attempt.agent !== null || attempt.status !== "lost");
  }

  #change(at: { step: string; epoch: number }, change: Partial<AttemptView>): void {
    const attempts = this.#attempts.get(at.step) ?? [];
    this.#attempts.set(
      at.step,
      attempts.map((attempt) =>
        attempt.epoch === at.epoch && attempt.status !== "fenced" ? { ...attempt, ...change } : attempt,
      ),
    );
  }

  summary(): RunSummary {
    const { state } = this;
    const counts: Partial<Record<StepStatus, number>> = {};
    for (const { status } of state.steps) counts[status] = (counts[status] ?? 0) + 1;
    return {
      id: state.runId,
      pipeline: this.#summary.pipeline,
      version: state.version,
      status: state.status,
      reason: this.#summary.reason || (state.cancel ? state.cancel.reason : ""),
      params: { ...state.params },
      createdBy: this.#summary.createdBy,
      createdAtMs: state.createdAtMs,
      finishedAtMs: this.#summary.finishedAtMs,
      counts: counts as RunSummary["counts"],
    };
  }

  step(index: number): StepView {
    const spec = this.state.plan.steps[index]!;
    const current = this.state.steps.get(index);
    const times = this.#times.get(spec.id);
    return {
      id: spec.id,
      status: current.status,
      needs: [...spec.needs],
      reads: [...spec.reads],
      writes: [...spec.writes],
      environment: current.grants.at(-1)?.environment ?? null,
      agent: current.agent,
      waiting: waitingFor(current),
      startedAtMs: times?.startedAtMs ?? null,
      finishedAtMs: times?.finishedAtMs ?? null,
      retryAtMs: current.retryAtMs,
      error: current.status === "succeeded" ? null : current.error,
      outputs: { ...current.outputs },
      artifacts: [...current.artifacts],
      attempts: this.#attempts.get(spec.id) ?? [],
    };
  }

  detail(): RunDetail {
    return {
      ...this.summary(),
      steps: this.state.plan.steps.map((_, index) => this.step(index)),
      eventSeq: this.seq,
    };
  }
}

const LOST = {
  "lease-expired": "the agent stopped renewing its lease",
  "offer-expired": "no agent took the offer in time",
  disconnected: "the agent was cut off and did not return in time",
  restored: "offered before the backup that the run was restored from; nobody knows who took it",
  interrupted: "the agent lost the process, for example because it was restarted",
};

function waitingFor(step: StepState): StepView["waiting"] {
  if (step.status === "disconnected" && step.away) {
    return { reason: "disconnected", message: explainAway(step.agent ?? "its agent", step.away) };
  }
  if (step.status === "ready" && step.held) return { reason: step.held.reason, message: step.held.message };
  return null;
}

function offered(event: Extract<RunEvent, { kind: "attempt.offered" }>): AttemptView {
  return {
    attempt: event.attempt,
    epoch: event.epoch,
    environment: event.environment,
    agent: null,
    status: "offered",
    policyVersion: event.policyVersion,
    offeredAtMs: event.atMs,
    startedAtMs: null,
    finishedAtMs: null,
    exitCode: null,
    signal: null,
    error: null,
    egress: [],
    logLastSeq: 0,
    logDroppedBytes: 0,
  };
}

function ended(
  event: Pick<Extract<RunEvent, { kind: "attempt.finished" }>, "atMs" | "outcome">,
): Partial<AttemptView> {
  const { outcome } = event;
  return {
    finishedAtMs: event.atMs,
    exitCode: outcome.exitCode,
    signal: outcome.signal,
    error: outcome.error,
    egress: outcome.egress,
    ...(outcome.sandbox ? { sandbox: outcome.sandbox } : {}),
    logLastSeq: outcome.logLastSeq,
    logDroppedBytes: outcome.logDroppedBytes,
  };
}
