/**
 * What whoever remembers a checkpoint makes of another one that it is shown: does the ledger extend what it was?
 *
 * Decides; no I/O. The key is taken from the first that is shown and never changes after that.
 */
import { type Checkpoint, openCheckpoint } from "./checkpoint.ts";
import { equalBytes } from "./encoding.ts";
import { verifyConsistency } from "./merkle.ts";
import { parseVerifierKey } from "./signed-note.ts";

export interface HeldCheckpoint {
  /** Of the ledger: `name+id+key`. */
  verifierKey: string;
  /** C2SP signed note. */
  note: string;
}

export interface ShownCheckpoint extends HeldCheckpoint {
  /** RFC 6962 consistency proof from the size of the held one. */
  proof: readonly Uint8Array[];
}

export type Looked =
  /** To be held from now on. */
  | { kind: "extends"; size: number }
  | { kind: "same" }
  /** Shorter than what is held. It may be late; or the ledger was put back. */
  | { kind: "behind"; size: number }
  | { kind: "forked"; what: string };

export function lookAt(held: HeldCheckpoint | undefined, shown: ShownCheckpoint): Looked {
  const key = held?.verifierKey ?? shown.verifierKey;
  if (shown.verifierKey !== key)
    return { kind: "forked", what: "the key of the ledger is another one than before" };
  const next = open(shown.note, key);
  if (typeof next === "string") return { kind: "forked", what: `the checkpoint does not verify: ${next}` };
  if (held === undefined) return { kind: "extends", size: next.size };
  const before = open(held.note, key);
  if (typeof before === "string")
    return { kind: "forked", what: `the checkpoint that is held does not verify: ${before}` };
  if (next.size < before.size) return { kind: "behind", size: next.size };
  if (next.size === before.size) {
    if (equalBytes(next.root, before.root)) return { kind: "same" };
    return { kind: "forked", what: `there are two ledgers of ${next.size} leaves` };
  }
  const claim = { from: before.size, to: next.size, fromRoot: before.root, toRoot: next.root };
  if (verifyConsistency(claim, shown.proof)) return { kind: "extends", size: next.size };
  return {
    kind: "forked",
    what: `the ledger of ${next.size} leaves does not begin with the ${before.size} that were there`,
  };
}

/** Of a checkpoint that verifies; 0 for any other. */
export function sizeOf({ verifierKey, note }: HeldCheckpoint): number {
  const opened = open(note, verifierKey);
  return typeof opened === "string" ? 0 : opened.size;
}

function open(note: string, verifierKey: string): Checkpoint | string {
  const key = parseVerifierKey(verifierKey);
  if (!key) return "the key is no verifier key";
  const opened = openCheckpoint(note, key);
  return opened.kind === "verified" ? opened.checkpoint : opened.reason;
}
