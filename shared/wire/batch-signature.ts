/**
 * One signature for all that an agent sends in one batch: over the root of a Merkle tree (RFC 6962) of what is in it.
 *
 * Each thing keeps its place in the batch beside the signature, so that it can be verified alone, years later, by
 * somebody who has seen nothing else of the batch.
 */
import { type KeyObject, verify } from "node:crypto";
import { z } from "zod";
import { HASH_BYTES, nodeHash, rootByPath } from "../provenance/merkle.ts";

/**
 * Signed is: purpose, zero byte, SPIFFE id of the agent, zero byte, size of the batch in decimal, zero byte, root.
 * Ed25519 (RFC 8032). One purpose for each kind of thing, so that none can stand in for another.
 */
export type BatchPurpose = "insitu.reports.v1" | "insitu.logs.v1";

export const BATCH_MAX_ITEMS = 10_000;

/** Where in its batch a thing stands. */
export const BatchPlace = z.object({
  index: z.int().min(0).max(BATCH_MAX_ITEMS),
  size: z.int().min(1).max(BATCH_MAX_ITEMS),
  /** Base64 of the hashes of RFC 6962 section 2.1.1, from the leaf's sibling upwards, one after the other. */
  // 14 of them for the largest batch.
  path: z.string().max(1_024),
});
export type BatchPlace = z.infer<typeof BatchPlace>;

export interface Batch {
  size: number;
  root: Uint8Array;
}

/** The tree of a batch; `leaves` are hashes, one at least. */
export class BatchTree implements Batch {
  /** The leaves first, the root last. */
  readonly #levels: Uint8Array[][];

  constructor(leaves: readonly Uint8Array[]) {
    let level = [...leaves];
    this.#levels = [level];
    while (level.length > 1) {
      level = parentsOf(level);
      this.#levels.push(level);
    }
  }

  get size(): number {
    return this.#levels[0]!.length;
  }

  get root(): Uint8Array {
    return this.#levels.at(-1)![0]!;
  }

  placeOf(index: number): BatchPlace {
    const path: Uint8Array[] = [];
    let at = index;
    for (const level of this.#levels) {
      // The last one of a level without a sibling moves up as it is.
      const sibling = level[at % 2 === 0 ? at + 1 : at - 1];
      if (sibling) path.push(sibling);
      at = Math.floor(at / 2);
    }
    return { index, size: this.size, path: Buffer.concat(path).toString("base64") };
  }
}

function parentsOf(level: readonly Uint8Array[]): Uint8Array[] {
  const parents: Uint8Array[] = [];
  for (let at = 0; at < level.length; at += 2) {
    const [left, right] = [level[at]!, level[at + 1]];
    parents.push(right ? nodeHash(left, right) : left);
  }
  return parents;
}

/** The batch in which the leaf stands at that place; undefined when there is no such place. */
export function batchAt(leaf: Uint8Array, { index, size, path }: BatchPlace): Batch | undefined {
  const bytes = Buffer.from(path, "base64");
  if (bytes.length % HASH_BYTES !== 0) return undefined;
  const hashes = Array.from({ length: bytes.length / HASH_BYTES }, (_, i) =>
    bytes.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES),
  );
  const root = rootByPath({ leaf, index, size }, hashes);
  return root && { size, root };
}

export function signedBatch(purpose: BatchPurpose, agentUri: string, { size, root }: Batch): Uint8Array {
  return Buffer.concat([signedPrefix(purpose, agentUri), Buffer.from(`${size}\0`, "utf8"), root]);
}

export function verifyBatch(
  key: KeyObject,
  signed: { purpose: BatchPurpose; agentUri: string; batch: Batch },
  signature: Uint8Array,
): boolean {
  const { purpose, agentUri, batch } = signed;
  return signature.length === 64 && verify(null, signedBatch(purpose, agentUri, batch), key, signature);
}

/** What every message that is signed by an agent begins with. */
export function signedPrefix(purpose: string, agentUri: string): Buffer {
  return Buffer.from(`${purpose}\0${agentUri}\0`, "utf8");
}
