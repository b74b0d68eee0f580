/** Steps one after the other, and what lies between them. */
import type { RunEvent } from "../../shared/engine/events.ts";

export const CHAIN = 40;

export function chain(name: string, step: object) {
  const steps = Array.from({ length: CHAIN }, (_, i) => ({
    id: `s${i}`,
    environment: "bench",
    ...(i > 0 ? { needs: [`s${i - 1}`] } : {}),
    ...step,
  }));
  return { kind: "pipeline", name, steps };
}

/** Milliseconds from the end of each step, on the agent's clock, to the start of the one that needs it. */
export function hops(events: readonly RunEvent[]): number[] {
  const outcomes = events.flatMap((event) => (event.kind === "attempt.finished" ? [event.outcome] : []));
  const sorted = outcomes.sort((a, b) => a.startedAtMs - b.startedAtMs);
  return sorted.slice(1).map((outcome, i) => outcome.startedAtMs - sorted[i]!.finishedAtMs);
}
