/** What a watcher knows of a run: begins as the server's view of it, and is carried on by the events. Pure. */
import { explainAway } from "../../shared/engine/disconnection.ts";
import type { RunEvent, RunStatus, StepStatus } from "../../shared/engine/events.ts";
import type { RunDetail } from "../api/schemas.ts";
import type { Hue } from "./text.ts";

export interface StepRow {
  id: string;
  status: StepStatus;
  needs: readonly string[];
  environment: string | null;
  agent: string | null;
  /** Of the attempts offered so far; 0 for none. */
  attempt: number;
  /** Since when it is in this status. */
  sinceMs: number;
  startedAtMs: number | null;
  finishedAtMs: number | null;
  /** Why it waits or how it ended, when a person would want to know. */
  note: string;
}

export interface RunView {
  id: string;
  pipeline: string;
  version: string;
  status: RunStatus;
  reason: string;
  createdAtMs: number;
  finishedAtMs: number | null;
  steps: readonly StepRow[];
  /** Sequence of the last batch that is in it. */
  seq: number;
}

export function viewOf(detail: RunDetail): RunView {
  const { id, pipeline, version, status, reason, createdAtMs, finishedAtMs, eventSeq } = detail;
  const steps = detail.steps.map((step): StepRow => {
    const last = step.attempts.at(-1);
    return {
      id: step.id,
      status: step.status,
      needs: step.needs,
      environment: step.environment,
      agent: step.agent ?? last?.agent ?? null,
      attempt: last?.attempt ?? 0,
      sinceMs: step.finishedAtMs ?? last?.startedAtMs ?? last?.offeredAtMs ?? createdAtMs,
      startedAtMs: last?.startedAtMs ?? step.startedAtMs,
      finishedAtMs: step.finishedAtMs,
      note: step.waiting?.message ?? step.error?.message ?? "",
    };
  });
  return { id, pipeline, version, status, reason, createdAtMs, finishedAtMs, steps, seq: eventSeq };
}

/** Batches that are in the view already change nothing. */
export function foldBatch(view: RunView, seq: number, events: readonly RunEvent[]): RunView {
  if (seq <= view.seq) return view;
  const next = { ...view, steps: [...view.steps], seq };
  const index = new Map(view.steps.map(({ id }, at) => [id, at]));
  for (const event of events) {
    if ("step" in event) {
      const at = index.get(event.step);
      if (at !== undefined) next.steps[at] = { ...next.steps[at]!, ...stepChange(event) };
    } else if (event.kind === "run.cancel-requested") {
      next.status = "cancelling";
      next.reason = event.reason;
    } else if (event.kind === "run.finished") {
      next.status = event.status;
      next.reason = event.reason || next.reason;
      next.finishedAtMs = event.atMs;
    }
  }
  return next;
}

const LOST = {
  "lease-expired": "its agent fell silent; it is offered again",
  "offer-expired": "nobody took the offer; it is offered again",
  interrupted: "its agent lost the process; it is offered again",
  disconnected: "its agent did not return in time",
  restored: "nobody knows who took the offer; it is made again",
};

function stepChange(event: Extract<RunEvent, { step: string }>): Partial<StepRow> {
  const at = event.atMs;
  switch (event.kind) {
    case "step.held":
      return { status: "ready", sinceMs: at, note: event.message };
    case "attempt.offered":
      return {
        status: "offered",
        sinceMs: at,
        environment: event.environment,
        agent: null,
        attempt: event.attempt,
        startedAtMs: null,
        note: "",
      };
    case "attempt.started":
      return { status: "running", sinceMs: at, agent: event.agent, startedAtMs: at, note: "" };
    case "attempt.finished":
      if (event.retryAtMs === null) return { note: event.outcome.error?.message ?? "" };
      return { status: "backoff", sinceMs: at, note: event.outcome.error?.message ?? event.outcome.status };
    case "attempt.disconnected":
      return {
        status: "disconnected",
        sinceMs: at,
        note: explainAway(event.agent, { ...event, sinceMs: at }),
      };
    case "attempt.reconnected":
      return { status: "running", sinceMs: at, note: "" };
    case "attempt.resolved":
      return { note: `${event.by} decided: ${event.decision}: ${event.reason}` };
    case "attempt.lost":
      return { status: "ready", sinceMs: at, agent: null, note: LOST[event.reason] };
    case "attempt.fenced":
      return {};
    case "step.succeeded":
      return { status: "succeeded", sinceMs: at, finishedAtMs: at, note: "" };
    case "step.failed":
      return { status: "failed", sinceMs: at, finishedAtMs: at, note: event.message };
    case "step.skipped":
      return { status: "skipped", sinceMs: at, finishedAtMs: at, note: event.message };
    case "step.cancelled":
      return { status: "cancelled", sinceMs: at, finishedAtMs: at, note: "" };
  }
}

export function isEnded(status: RunStatus): boolean {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

export function isStepEnded(status: StepStatus): boolean {
  return status === "succeeded" || status === "failed" || status === "skipped" || status === "cancelled";
}

/** A state by sign and colour; the word stands beside it. */
export function stepMark(status: StepStatus): { icon: string; hue: Hue } {
  return STEP_MARKS[status];
}

export function runMark(status: RunStatus): { icon: string; hue: Hue } {
  return status === "cancelling" ? { icon: "■", hue: "yellow" } : STEP_MARKS[status];
}

const STEP_MARKS: Record<StepStatus, { icon: string; hue: Hue }> = {
  pending: { icon: "·", hue: "dim" },
  ready: { icon: "○", hue: "yellow" },
  offered: { icon: "○", hue: "cyan" },
  disconnected: { icon: "◌", hue: "yellow" },
  running: { icon: "●", hue: "blue" },
  backoff: { icon: "↻", hue: "yellow" },
  succeeded: { icon: "✓", hue: "green" },
  failed: { icon: "✗", hue: "red" },
  skipped: { icon: "-", hue: "dim" },
  cancelled: { icon: "■", hue: "yellow" },
};
