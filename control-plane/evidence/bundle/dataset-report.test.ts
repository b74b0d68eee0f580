import { beforeEach, expect, test } from "vitest";
import { systemClock } from "../../../shared/system.ts";
import { SampleLedger, verified } from "./bundle.fixture.ts";
import { type DatasetReport, datasetReport } from "./dataset-report.ts";
import { reportHtml } from "./report-html.ts";

let ledger: SampleLedger;
beforeEach(async () => {
  ledger = await SampleLedger.open(systemClock.wallMs());
});

const reportNow = (): DatasetReport => datasetReport(verified(ledger.records(), ledger.trust));

test("it says where each attempt ran, who let it, what left, and what the statement rests on", () => {
  const log = { kind: "log" as const, name: "log", verdict: "allow" as const, sentBytes: 12, keptBytes: 3 };
  ledger.run({ runId: "run-2", atMs: ledger.startMs + 90_000, outcome: { egress: [log] } });
  const report = reportNow();
  expect(report).toMatchObject({
    dataset: "patients",
    verified: true,
    coverage: { ended: 2, withReceipt: 2, percent: 100 },
    leftBytes: { sent: 12, kept: 3 },
    exceptions: [],
    statement: {
      environments: [{ name: "dream", attempts: 2, receipts: 2 }],
      text: "In the leaves shown, no step that reads or writes patients ran outside dream.",
    },
    policies: [{ attempts: 2, inBundle: true }],
  });
  expect(report.changes.map(({ what, by }) => [what, by])).toEqual([
    ["environment/dream", "anna"],
    ["dataset/patients", "anna"],
  ]);
  expect(report.attempts[1]).toMatchObject({
    environment: "dream",
    startedBy: "anna",
    agent: "dream/a1",
    result: "succeeded",
    receipt: { left: [log] },
  });
  expect(report.statement.restsOn).toContain("every leaf of the ledger up to its checkpoint, none left out");
});

test("attempts without a receipt lower the coverage, and the statement says on whose word it rests then", () => {
  ledger.run({ runId: "run-2", atMs: ledger.startMs + 90_000, receipt: () => undefined });
  const { coverage, statement, attempts } = reportNow();
  expect(coverage).toEqual({ ended: 2, withReceipt: 1, percent: 50 });
  expect(attempts[1]?.receipt).toBeNull();
  expect(statement.restsOn).toContain("the control plane's word alone for 1 attempts without a receipt");
});

test("a bundle that does not verify says nothing about where steps ran", () => {
  const records = ledger.records();
  const { verified: is, statement } = datasetReport(verified(records.toSpliced(4, 1), ledger.trust));
  expect(is).toBe(false);
  expect(statement.text).toMatch(/nothing can be said/);
});

test("the page has nothing but text in it, whatever names people give", () => {
  const said = { by: '<script>alert("x")</script>', reason: "&" };
  ledger.message("RUNS", [
    {
      atMs: ledger.startMs + 90_000,
      decision: {
        kind: "attempt.resolved",
        attempt: { runId: "run-1", stepId: "fit", attempt: 1, epoch: 1 },
        agent: null,
        decision: "succeeded",
        ...said,
      },
    },
  ]);
  const html = reportHtml(reportNow());
  expect(html).toContain("resolved by &#60;script&#62;alert(&#34;x&#34;)");
  expect(html).not.toContain("<script");
  expect(html).toMatch(/dream, dream\/a1/);
});
