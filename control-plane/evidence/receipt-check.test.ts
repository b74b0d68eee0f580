import { beforeAll, expect, test } from "vitest";
import type { ReportPayload } from "../../shared/wire/attempt.ts";
import { Authority, offerOf, type Sealer } from "../../test/support/receipts.ts";
import { outcome, stepSpec } from "../../test/support/specs.ts";
import { type ReceiptCheck, receiptCheck } from "./receipt-check.ts";

let agent: Sealer;
let check: ReceiptCheck;
let authority: Authority;
beforeAll(async () => {
  authority = await Authority.open();
  agent = await authority.agent("dream", "a1");
  const { trust } = authority;
  check = receiptCheck({ trust, reload: async () => trust });
});

const offer = offerOf({ step: stepSpec("fit", { reads: ["patients"] }) });
function reported(
  change: Partial<ReportPayload & { kind: "finished" }> = {},
): ReportPayload & { kind: "finished" } {
  const receipt = agent.seal(offer, outcome());
  return { kind: "finished", lease: offer.lease, outcome: outcome({ receipt }), ...change };
}

test("a receipt of the agent that reports, of that attempt, is in order; so is a report without one", async () => {
  expect(await check("dream/a1", reported())).toBeUndefined();
  expect(await check("dream/a1", reported({ outcome: outcome() }))).toBeUndefined();
  expect(await check("dream/a1", { kind: "started", lease: offer.lease, atMs: 1 })).toBeUndefined();
});

test.each<[string, () => [string, ReportPayload], RegExp]>([
  ["another agent's", () => ["dream/a2", reported()], /of the agent dream\/a1, not of dream\/a2/],
  [
    "of another attempt",
    () => ["dream/a1", reported({ lease: { ...offer.lease, epoch: 2 } })],
    /another attempt/,
  ],
  [
    "of another end",
    () => ["dream/a1", reported({ outcome: { ...reported().outcome, status: "failed" } })],
    /says succeeded, and the report failed/,
  ],
  [
    "not as it was signed",
    () => {
      const report = reported();
      const receipt = report.outcome.receipt!;
      const envelope = { ...receipt.envelope, payloadType: "text/plain" };
      return ["dream/a1", { ...report, outcome: { ...report.outcome, receipt: { ...receipt, envelope } } }];
    },
    /not signed/,
  ],
])("a receipt that is %s is found out", async (_, make, reason) => {
  expect(await check(...make())).toMatch(reason);
});

test("a root that came since is read before a receipt is found wrong", async () => {
  const elsewhere = await Authority.open();
  const stranger = await elsewhere.agent("dream", "a1");
  const report = reported({ outcome: outcome({ receipt: stranger.seal(offer, outcome()) }) });
  const { trust } = authority;
  expect(await check("dream/a1", report)).toMatch(/not issued by a trusted root/);
  const both = { ...trust, rootsPem: [...trust.rootsPem, ...elsewhere.trust.rootsPem] };
  const roots = { trust, reload: async () => (roots.trust = both) };
  const following = receiptCheck(roots);
  expect(await following("dream/a1", report)).toBeUndefined();
  expect(await following("dream/a1", reported())).toBeUndefined();
});
