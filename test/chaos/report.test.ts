import { expect, test } from "vitest";
import type { Verdict } from "./chaos.ts";
import { waitedPercent } from "./pressure.ts";
import { recoveries } from "./recovery.ts";
import { reportOf } from "./report.ts";

const fault = { id: 1, target: "r1", atMs: 0, lengthMs: 5_000, pairs: [], amountMs: 0, lossPercent: 0 };
const faults: Verdict["faults"] = [
  { ...fault, kind: "kill replica", beganMs: 1_000, healedMs: 6_000, shards: [3] },
  { ...fault, id: 2, kind: "slow", target: "site a", beganMs: 2_000, healedMs: 7_000, shards: [] },
];
const seen = [
  { runId: "other", kind: "attempt.started", atMs: 1_500 },
  { runId: "three", kind: "run.taken-over", atMs: 3_500 },
  { runId: "three", kind: "run.finished", atMs: 8_000 },
  { runId: "other", kind: "run.finished", atMs: 9_000 },
];
const shardOf = (runId: string): number => (runId === "three" ? 3 : 4);

test("recovery counts from the heal to the next run that ended, and for a killed replica to the next decision of its shards", () => {
  expect(recoveries(faults, seen, shardOf)).toMatchObject([
    { kind: "kill replica", faults: 1, medianMs: 2_000, worstMs: 2_000, decisionMedianMs: 2_500 },
    { kind: "slow", faults: 1, medianMs: 1_000, decisionMedianMs: null },
  ]);
});

test("the report says what was found, plots it, and lets no text of others become markup", () => {
  const text = reportOf(
    {
      seed: 7,
      pressure: [97, 3, 50].map((waitedPercent) => ({ atMs: 1, waitedPercent })),
      network: "proxy",
      durationMs: 300_000,
      settledMs: 310_000,
      faults,
      skipped: [{ kind: "clock jump", reason: "libfaketime is not installed" }],
      history: { expected: {}, runs: [], listed: [], witness: [] },
      seen,
      violations: [{ kind: "run lost", runId: "r", message: "<script>" }],
      recoveries: recoveries(faults, seen, shardOf),
      ends: [{ name: "r1", how: "exit 8" }],
    },
    "chaos: seed 7, 5 min, 2 faults, 2 runs, 1 violations",
  );
  expect(text).toContain("npm run chaos -- --seed 7 --minutes 5");
  expect(text).toContain("run lost");
  expect(text).toContain("50 % of the time (median of ten seconds), 97 % at worst");
  expect(text).toContain("libfaketime is not installed");
  expect(text.match(/<svg/g)).toHaveLength(2);
  expect(text).not.toContain("<script>");
  expect(text).not.toMatch(/https?:/);
});

test("the kernel's word for waiting for a processor is read, and one that says nothing is not taken for calm", () => {
  expect(waitedPercent("some avg10=97.75 avg60=1.00 avg300=98.28 total=2674270435\nfull avg10=0.00")).toBe(
    97.75,
  );
  expect(waitedPercent(undefined)).toBeNull();
});
