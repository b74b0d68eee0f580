/** How chunks of logs are signed: by the key that signs an agent's reports, once for all that go up in one batch. */
import { z } from "zod";
import { leafHash } from "../provenance/merkle.ts";
import { type Batch, BatchPlace, batchAt } from "./batch-signature.ts";

export const LOG_BATCH_PURPOSE = "insitu.logs.v1";

/** Kept beside a chunk, so that it can be verified alone. */
export const LogSignature = z.object({
  /** `environment/name`. */
  agent: z.string().regex(/^[a-z0-9-]{1,63}\/[a-z0-9-]{1,63}$/),
  keyId: z.string().regex(/^[0-9a-f]{64}$/),
  /** Base64. */
  signature: z.string().max(128),
  batch: BatchPlace,
});
export type LogSignature = z.infer<typeof LogSignature>;

/** What a chunk is, as far as its agent vouches for it. */
export interface SignedChunk {
  runId: string;
  stepId: string;
  attempt: number;
  epoch: number;
  firstEntry: number;
  entryCount: number;
  encoding: string;
  entries: Uint8Array;
}

/** The leaf of a chunk: a JSON array of where its entries belong, a zero byte, and the entries as sent. */
export function logLeaf(chunk: SignedChunk): Uint8Array {
  const { runId, stepId, attempt, epoch, firstEntry, entryCount, encoding, entries } = chunk;
  const place = JSON.stringify([runId, stepId, attempt, epoch, firstEntry, entryCount, encoding]);
  return leafHash(Buffer.concat([Buffer.from(`${place}\0`, "utf8"), entries]));
}

/** The batch that the signature has to be of; undefined when the chunk has no such place in any. */
export function logBatchAt(chunk: SignedChunk, { batch }: Pick<LogSignature, "batch">): Batch | undefined {
  return batchAt(logLeaf(chunk), batch);
}
