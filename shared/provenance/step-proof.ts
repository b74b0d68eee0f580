/**
 * A proof of what the ledger holds about the attempts of one step: leaves, the way from each to the root, the signed
 * checkpoint with that root. Checked here with a key and roots that come from elsewhere; the server is not believed.
 */
import { openCheckpoint } from "./checkpoint.ts";
import { fromBase64 } from "./encoding.ts";
import { type LedgerEntry, parseEntry } from "./ledger-entry.ts";
import { leafHash, verifyInclusion } from "./merkle.ts";
import { parseVerifierKey } from "./signed-note.ts";
import { type ReceiptTrust, receiptVerifier, type VerifiedReceipt } from "./verify-receipt.ts";

export interface StepProof {
  run: string;
  step: string;
  /** C2SP signed note. */
  checkpoint: string;
  leaves: readonly { index: number; leaf: string; proof: readonly string[] }[];
}

export interface ProofTrust extends ReceiptTrust {
  /** Of the ledger: `name+id+key`, as C2SP signed notes have it. */
  verifierKey: string;
}

export interface CheckedLeaf {
  index: number;
  /** Undefined: of a kind that this release does not know. It is in the ledger all the same. */
  entry: LedgerEntry | undefined;
  /** Of a leaf that is a receipt. */
  receipt: Extract<VerifiedReceipt, { kind: "verified" }> | undefined;
}

export type CheckedProof =
  | { kind: "verified"; origin: string; size: number; leaves: CheckedLeaf[] }
  | { kind: "refused"; reason: string };

/** The first thing that is wrong, or all that the proof shows. */
export function checkStepProof(proof: StepProof, trust: ProofTrust): CheckedProof {
  const key = parseVerifierKey(trust.verifierKey);
  if (!key) return refused("the key of the ledger is no verifier key (name+id+key)");
  const opened = openCheckpoint(proof.checkpoint, key);
  if (opened.kind === "refused") return refused(`the checkpoint does not verify: ${opened.reason}`);
  const { origin, size, root } = opened.checkpoint;
  const verify = receiptVerifier(trust);
  const leaves: CheckedLeaf[] = [];
  for (const { index, leaf, proof: path } of proof.leaves) {
    const bytes = fromBase64(leaf);
    const hashes = path.map((hash) => fromBase64(hash) ?? new Uint8Array());
    if (!bytes || !verifyInclusion({ leaf: leafHash(bytes), index, size, root }, hashes))
      return refused(`leaf ${index} is not in the tree of the checkpoint`);
    const entry = parseEntry(bytes);
    const receipt = entry?.kind === "receipt" ? verify(entry.receipt) : undefined;
    if (receipt?.kind === "refused")
      return refused(`the receipt in leaf ${index} does not verify: ${receipt.reason}`);
    if (receipt && !isOf(proof, receipt.receipt.attempt))
      return refused(`the receipt in leaf ${index} is of another step`);
    leaves.push({ index, entry, receipt });
  }
  return { kind: "verified", origin, size, leaves };
}

function isOf({ run, step }: StepProof, attempt: { runId: string; stepId: string }): boolean {
  return attempt.runId === run && attempt.stepId === step;
}

function refused(reason: string): CheckedProof {
  return { kind: "refused", reason };
}
