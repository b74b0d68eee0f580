/** Turns away reports whose receipt is not their agent's: what would never verify does not come into the ledger. */
import { InsituError } from "../../shared/errors.ts";
import type { ReceiptCheck } from "../evidence/receipt-check.ts";
import type { Fleet } from "../fleet/fleet-service.ts";
import type { PoisonSink } from "../poison/ports.ts";
import type { InboxItem } from "../shards/ports.ts";
import type { ReportSink } from "./ports.ts";

export function checkedReports(
  sink: ReportSink,
  options: { check: ReceiptCheck; poison: PoisonSink; fleet: Pick<Fleet, "refusedReport"> },
): ReportSink {
  const { check, poison, fleet } = options;
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
      fleet.refusedReport(agent, "report.forged");
      return { accepted: false, code: "report.forged", message };
    },
  };
}

/** The same for reports that went through the store. @throws report.forged, and as `verify` */
export function checkedItems(
  verify: (item: InboxItem) => Promise<void>,
  check: ReceiptCheck,
): (item: InboxItem) => Promise<void> {
  return async (item) => {
    await verify(item);
    const wrong = await check(item.agent, item.report);
    if (wrong !== undefined) throw new InsituError("report.forged", `its receipt is not in order: ${wrong}`);
  };
}
