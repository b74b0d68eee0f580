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

test("what a step ran in, and where it was let out to, is shown with bytes of all its attempts", () => {
  const network = (name: string, figures: object) => ({
    kind: "network" as const,
    name,
    verdict: "allow" as const,
    sentBytes: 0,
    keptBytes: 0,
    ...figures,
  });
  const attempt = (number: number): AttemptView => ({
    attempt: number,
    epoch: number,
    environment: "site",
    agent: "site/a",
    status: "succeeded",
    startedAtMs: 1,
    finishedAtMs: 2,
    exitCode: 0,
    signal: null,
    error: null,
    egress: [
      network("db.test:5432", { connections: 2, sentBytes: 1_000, receivedBytes: 5_000 }),
      network("others", { verdict: "withhold", connections: 0, failures: 3 }),
    ],
    sandbox: {
      kind: "bubblewrap",
      version: "0.8.0",
      network: "allow-list",
      limits: { memory: "cgroup v2", openFiles: "rlimit" },
    },
    logLastSeq: 0,
    policyVersion: "p1",
    offeredAtMs: 1,
    logDroppedBytes: 0,
  });
  const run = runDetail([stepView("load", [], { status: "succeeded", attempts: [attempt(1), attempt(2)] })]);
  const text = reportLines(run, { nowMs: 10, width: 200, paint: (_, part) => part });
  expect(text.find((line) => line.includes("db.test:5432"))).toMatch(
    /load +site +db\.test:5432 +4 +0 +2\.0 KiB +9\.8 KiB/,
  );
  expect(text.find((line) => line.includes("not on its list"))).toMatch(/load +site +not on its list +0 +6 /);
  expect(text).toContain("  load: bubblewrap 0.8.0, network allow-list, limits memory, openFiles");
});

test("what a step waits for is told whole, below the table where it does not fit", () => {
  const message = "all connected agents of site are cordoned by ana: the disks are changed";
  const waiting = { reason: "cordoned", message };
  const run = runDetail([stepView("fit", [], { status: "offered", waiting })]);
  const at = (width: number): string[] =>
    reportLines(run, { nowMs: 10, width, paint: (_, part) => part }).filter((line) => line.includes(message));
  expect(at(80)).toEqual([`  fit: ${message}`]);
  expect(at(300)).toEqual([expect.stringMatching(/^fit +○ offered/)]);
});
