/**
 * A recorded history: a run of a release as its stream keeps it, and what that release made of it. One JSON value a
 * line: what it is of, then each batch as it was stored, then the end.
 */
import type { RunEvent, RunEventBatch } from "../../shared/engine/events.ts";
import { compile } from "../../shared/engine/plan.ts";
import { evolve, initialState, type RunState } from "../../shared/engine/state.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";

export interface History {
  about: string;
  spec: PipelineSpec;
  batches: RunEventBatch[];
  end: End;
}

/** What must never be read otherwise by a later release. */
export type End = ReturnType<typeof endOf>;

export function endOf({ runId, status, params, cancel, firstFailure, plan, steps, ...rest }: RunState) {
  const { createdAtMs, shardEpoch, epochFloor, open, failed, cancelled } = rest;
  return {
    run: { runId, status, params, cancel, firstFailure, createdAtMs },
    owner: { shardEpoch, epochFloor },
    counts: { open, failed, cancelled },
    steps: plan.steps.map(({ id }, index) => {
      const { attempt, epoch, grants, agent, outputs, artifacts, error, resolved, recorded, ...step } =
        steps.get(index);
      const ended = { outputs, artifacts, error, resolved };
      return {
        id,
        status: step.status,
        attempt,
        epoch,
        grants,
        agent,
        losses: step.losses,
        recorded,
        ...ended,
      };
    }),
  };
}

/** The states before the first batch and after each. Through JSON: the end has to be what is written down of it. */
export function statesOf({ spec, batches }: Pick<History, "spec" | "batches">): RunState[] {
  const states = [initialState(compile(spec))];
  for (const { events } of batches) states.push(events.reduce(evolve, states.at(-1)!));
  return states;
}

export function eventsOf({ batches }: Pick<History, "batches">): RunEvent[] {
  return batches.flatMap(({ events }) => events);
}

export function writeHistory({ about, spec, batches, end }: History): string {
  return [{ about, spec }, ...batches, { end }].map((line) => `${JSON.stringify(line)}\n`).join("");
}

export function readHistory(text: string): History {
  const lines = text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as unknown);
  const { about, spec } = lines[0] as Pick<History, "about" | "spec">;
  const { end } = lines.at(-1) as Pick<History, "end">;
  return { about, spec, batches: lines.slice(1, -1) as RunEventBatch[], end };
}
