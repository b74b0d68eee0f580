/**
 * Whether the receipt of a report is its agent's, and of the attempt that the report is of.
 *
 * What is in the ledger, anybody can verify again; this keeps out of it what would never verify.
 */
import {
  type ReceiptTrust,
  receiptVerifier,
  type VerifiedReceipt,
} from "../../shared/provenance/verify-receipt.ts";
import type { ReportPayload } from "../../shared/wire/attempt.ts";

/** Gives what is wrong with it; undefined for a receipt in order, and for none. `agent`: `environment/name`. */
export type ReceiptCheck = (agent: string, report: ReportPayload) => Promise<string | undefined>;

/** Roots may come while this runs: before a receipt is found wrong, they are read again. */
export function receiptCheck(roots: { trust: ReceiptTrust; reload(): Promise<ReceiptTrust> }): ReceiptCheck {
  let { trust } = roots;
  let verify = receiptVerifier(trust);
  return async (agent, report) => {
    if (report.kind !== "finished" || report.outcome.receipt === undefined) return undefined;
    let verified = verify(report.outcome.receipt);
    if (verified.kind === "refused" && (await roots.reload()) !== trust) {
      trust = roots.trust;
      verify = receiptVerifier(trust);
      verified = verify(report.outcome.receipt);
    }
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
