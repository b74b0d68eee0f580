/** Histories that released versions have recorded mean today what they meant then. */
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { owed, step } from "../../shared/engine/engine.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { isTerminalRun, isTerminalStep, stepOf } from "../../shared/engine/state.ts";
import { leafHash } from "../../shared/provenance/merkle.ts";
import type { ReportPayload } from "../../shared/wire/attempt.ts";
import { batchAt } from "../../shared/wire/batch-signature.ts";
import { type ReportSignature, reportBytes } from "../../shared/wire/report-signature.ts";
import { endOf, eventsOf, type History, readHistory, statesOf, writeHistory } from "./history.ts";

const ROOT = fileURLToPath(new URL("histories/", import.meta.url));

const histories = readdirSync(ROOT, { recursive: true, encoding: "utf8" })
  .filter((file) => file.endsWith(".jsonl"))
  .sort()
  .map((file): [string, History] => [file, readHistory(readFileSync(ROOT + file, "utf8"))]);

/** Every kind there is: a new one does not compile until it is named here, and fails until it is recorded. */
const KINDS: Record<RunEvent["kind"], true> = {
  "run.created": true,
  "run.taken-over": true,
  "run.cancel-requested": true,
  "run.finished": true,
  "step.held": true,
  "step.succeeded": true,
  "step.failed": true,
  "step.skipped": true,
  "step.cancelled": true,
  "attempt.offered": true,
  "attempt.started": true,
  "attempt.finished": true,
  "attempt.disconnected": true,
  "attempt.reconnected": true,
  "attempt.resolved": true,
  "attempt.lost": true,
  "attempt.fenced": true,
};

test("every kind of event is in a recorded history", () => {
  const recorded = new Set(histories.flatMap(([, history]) => eventsOf(history)).map(({ kind }) => kind));
  expect([...recorded].sort()).toEqual(Object.keys(KINDS).sort());
});

test("what agents signed is written again from the events, and stands in its batch where it says", () => {
  const roots = new Map<string, Set<string>>();
  let placed = 0;
  for (const [, history] of histories) {
    const { runId } = history.end.run;
    for (const event of eventsOf(history)) {
      const report = reportOf(event, runId);
      const { signed } = event as { signed?: ReportSignature };
      if (!report || signed?.batch === undefined) continue;
      const batch = batchAt(leafHash(reportBytes(report)), signed.batch);
      const found = roots.get(signed.signature) ?? new Set();
      roots.set(signed.signature, found.add(Buffer.from(batch!.root).toString("hex")));
      placed += 1;
    }
  }
  expect(placed).toBeGreaterThan(roots.size);
  expect([...roots.values()].map((found) => found.size)).toEqual([...roots.values()].map(() => 1));
});

function reportOf(event: RunEvent, runId: string): ReportPayload | undefined {
  if (event.kind !== "attempt.started" && event.kind !== "attempt.finished") return undefined;
  const { step: stepId, attempt, epoch } = event;
  const lease = { runId, stepId, attempt, epoch };
  if (event.kind === "attempt.finished") return { kind: "finished", lease, outcome: event.outcome };
  return event.reportedAtMs === undefined ? undefined : { kind: "started", lease, atMs: event.reportedAtMs };
}

describe.each(histories)("%s", (_, history) => {
  const states = statesOf(history);

  test("folds to the end that was recorded with it", () => {
    expect(JSON.parse(JSON.stringify(endOf(states.at(-1)!)))).toEqual(history.end);
    expect(isTerminalRun(states.at(-1)!.status)).toBe(true);
  });

  test("can be taken over after each of its batches, and what has ended stays as it is", () => {
    for (const state of states.slice(1)) {
      const takeOver = {
        shardEpoch: state.shardEpoch + 1,
        replica: "next",
        atMs: state.createdAtMs,
      } as const;
      const taken = step(state, { kind: "take-over", ...takeOver }).state;
      for (const { id } of state.plan.steps) {
        const { status } = stepOf(state, id)!;
        if (isTerminalStep(status)) expect(stepOf(taken, id)!.status).toBe(status);
      }
      if (isTerminalRun(state.status)) expect(taken).toBe(state);
      else expect(taken.shardEpoch).toBe(state.shardEpoch + 1);
      expect(owed(taken).some(({ kind }) => kind === "finished")).toBe(isTerminalRun(taken.status));
    }
  });
});

test("a history that is changed by one word does not fold to its end", () => {
  const [, history] = histories.find(([, { end }]) =>
    end.steps.some(({ status }) => status === "succeeded"),
  )!;
  const changed = writeHistory(history).replaceAll('"kind":"step.succeeded"', '"kind":"step.skipped"');
  const read = readHistory(changed);
  expect(JSON.parse(JSON.stringify(endOf(statesOf(read).at(-1)!)))).not.toEqual(read.end);
});
