/**
 * Whether the receipt of a report is its agent's, and of the attempt that the report is of.
 *
 * What is in the ledger, anybody can verify again; this keeps out of it what would never verify.
 */
import type { ReceiptTrust, VerifiedReceipt } from "../../shared/provenance/verify-receipt.ts";
import { receiptVerifier } from "../../shared/provenance/verify-receipt.ts";
import type { ReportPayload } from "../../shared/wire/attempt.ts";

export type ReceiptCheck = (agent: string, report: ReportPayload) => string | undefined;

/** Gives what is wrong with it; undefined for a receipt in order, and for none. `agent`: `environment/name`. */
export function receiptCheck(trust: ReceiptTrust): ReceiptCheck {
  const verify = receiptVerifier(trust);
  return (agent, report) => {
    if (report.kind !== "finished" || report.outcome.receipt === undefined) return undefined;
    const verified = verify(report.outcome.receipt);
    return verified.kind === "refused" ? verified.reason : mismatch(agent, report, verified);
  };
}

function mismatch(
  agent: string,
  { lease, outcome }: Extract<ReportPayload, { kind: "finished" }>,
  { receipt }: Extract<VerifiedReceipt, { kind: "verified" }>,
): string | undefined {
  const signer = `${receipt.agent.environment}/${receipt.agent.name}`;
  if (signer !== agent) return `it is of the agent ${signer}, not of ${agent}`;
  const { runId, stepId, attempt, epoch } = receipt.attempt;
  const isOfLease =
    runId === lease.runId && stepId === lease.stepId && attempt === lease.attempt && epoch === lease.epoch;
  if (!isOfLease) return "it is of another attempt than the report";
  if (receipt.result.status !== outcome.status)
    return `it says ${receipt.result.status}, and the report ${outcome.status}`;
  return undefined;
}
