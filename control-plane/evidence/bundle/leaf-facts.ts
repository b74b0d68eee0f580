/** What one leaf comes to by itself: its hash, and what it says when that verifies. The costly part of verifying a bundle. */
import { fromBase64 } from "../../../shared/provenance/encoding.ts";
import {
  type LedgerDecision,
  type LedgerEntry,
  parseEntry,
} from "../../../shared/provenance/ledger-entry.ts";
import { leafHash } from "../../../shared/provenance/merkle.ts";
import type { SignedReceipt } from "../../../shared/provenance/signed-receipt.ts";
import type { VerifiedReceipt } from "../../../shared/provenance/verify-receipt.ts";

export type Source = LedgerEntry["source"];

export type LeafFacts = { hash: Uint8Array } & (
  | { kind: "receipt"; source: Source; verified: VerifiedReceipt }
  | { kind: "decision"; source: Source; atMs: number; decision: LedgerDecision }
  | { kind: "opaque"; source: Source; reason: string }
  /** Of a kind that this release does not know. It is in the tree all the same. */
  | { kind: "unknown" }
);

/** Undefined when the text is not base64. */
export function readLeaf(
  leaf: string,
  verify: (receipt: SignedReceipt) => VerifiedReceipt,
): LeafFacts | undefined {
  const bytes = fromBase64(leaf);
  if (!bytes) return undefined;
  const hash = leafHash(bytes);
  const entry = parseEntry(bytes);
  if (!entry) return { hash, kind: "unknown" };
  const { source } = entry;
  if (entry.kind === "receipt") return { hash, kind: "receipt", source, verified: verify(entry.receipt) };
  if (entry.kind === "opaque") return { hash, kind: "opaque", source, reason: entry.reason };
  return { hash, kind: "decision", source, atMs: entry.atMs, decision: entry.decision };
}
