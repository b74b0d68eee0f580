import { expect, test } from "vitest";
import type { AttemptView } from "../api/schemas.ts";
import { reportLines } from "./run-report.ts";
import { runDetail, stepView } from "./run-view.fixture.ts";

test("an outcome under a superseded grant is shown as evidence, and is not taken for the step's own", () => {
  const attempt = (epoch: number, agent: string, status: AttemptView["status"]): AttemptView => ({
    attempt: epoch,
    epoch,
    environment: "site",
    agent,
    status,
    startedAtMs: 1,
    finishedAtMs: 2,
    exitCode: status === "fenced" ? 3 : 0,
    signal: null,
    error: null,
    egress: [],
    logLastSeq: 0,
    policyVersion: "p1",
    offeredAtMs: 1,
    logDroppedBytes: 0,
  });
  const attempts = [attempt(2, "site/b", "succeeded"), attempt(1, "site/a", "fenced")];
  const run = runDetail([stepView("fit", [], { status: "succeeded", attempts })]);
  const text = reportLines(run, { nowMs: 10, width: 200, paint: (_, part) => part });
  expect(text.find((line) => line.startsWith("fit") && line.includes("✓"))).toMatch(/\bb\b.*\b2\b/);
  expect(text.find((line) => line.includes("fenced"))).toMatch(
    /site\/a\s+fenced, exit 3\s+its grant was superseded: kept as evidence, counts for nothing/,
  );
});
