/** Turns away reports whose receipt is not their agent's: what would never verify does not come into the ledger. */
import type { ReceiptCheck } from "../evidence/receipt-check.ts";
import type { PoisonSink } from "../poison/ports.ts";
import type { ReportSink } from "./ports.ts";

export function checkedReports(
  sink: ReportSink,
  options: { check: ReceiptCheck; poison: PoisonSink; onRefused(agent: string, code: "report.forged"): void },
): ReportSink {
  const { check, poison, onRefused } = options;
  return {
    async accept(agent, report, signed) {
      const wrong = await check(agent, report);
      if (wrong === undefined) return await sink.accept(agent, report, signed);
      const message = `the receipt in the report is not in order: ${wrong}`;
      const data = Buffer.from(JSON.stringify(report));
      await poison.put({
        source: "gateway",
        subject: "report",
        seq: null,
        from: agent,
        reason: message,
        data,
      });
      onRefused(agent, "report.forged");
      return { accepted: false, code: "report.forged", message };
    },
  };
}
