/**
 * The leaves of the ledger: what agents have signed, and what the control plane decided about data-bound steps.
 *
 * A leaf is the canonical JSON (RFC 8785) of an entry. It says from which message of which stream it was made, and is
 * made from that alone, so that anybody who has the streams can make it again and compare.
 */
import { z } from "zod";
import { DECISIONS } from "../engine/disconnection.ts";
import { canonicalJson, digestOf } from "../model/canonical.ts";
import { Digest, Name } from "../model/names.ts";
import { KINDS } from "../model/spec.ts";
import { LeaseKey, OutcomeStatus } from "../wire/attempt.ts";
import { utf8Bytes } from "./encoding.ts";
import { SignedReceipt } from "./signed-receipt.ts";
import { ENTRY_MAX_BYTES } from "./tiles.ts";

const run = { runId: z.string() };

export const LedgerDecision = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("run.started"), ...run, pipeline: Name, version: Digest, by: z.string() }),
  z.strictObject({ kind: z.literal("run.cancelled"), ...run, by: z.string(), reason: z.string() }),
  z.strictObject({
    kind: z.literal("attempt.placed"),
    attempt: LeaseKey,
    pipeline: Name,
    version: Digest,
    environment: Name,
    policyVersion: z.string(),
    reads: z.array(Name),
    writes: z.array(Name),
  }),
  z.strictObject({ kind: z.literal("attempt.taken"), attempt: LeaseKey, agent: z.string() }),
  /** `counted`: it is the attempt's outcome. Otherwise it came under a superseded epoch, and is evidence alone. */
  z.strictObject({
    kind: z.literal("attempt.ended"),
    attempt: LeaseKey,
    agent: z.string(),
    status: OutcomeStatus,
    counted: z.boolean(),
    /** Whether a receipt came with it: it is the leaf before this one. */
    receipt: z.boolean(),
  }),
  /** No outcome of it counts: nobody took it, or nobody knows what became of it. */
  z.strictObject({
    kind: z.literal("attempt.lost"),
    attempt: LeaseKey,
    agent: z.string().nullable(),
    reason: z.string(),
    receipt: z.boolean(),
  }),
  /** An operator said what became of it, in place of its agent. */
  z.strictObject({
    kind: z.literal("attempt.resolved"),
    attempt: LeaseKey,
    agent: z.string().nullable(),
    decision: z.enum(DECISIONS),
    by: z.string(),
    reason: z.string(),
  }),
  z.strictObject({
    kind: z.literal("resources.applied"),
    by: z.string(),
    changes: z.array(
      z.strictObject({
        kind: z.enum(KINDS),
        name: Name,
        /** Of the resource as it is now (a pipeline's version); null when it was deleted. */
        digest: Digest.nullable(),
      }),
    ),
  }),
]);
export type LedgerDecision = z.infer<typeof LedgerDecision>;

/** A message of a stream, and which of its leaves this is. */
const Source = z.strictObject({ stream: z.string(), seq: z.int().min(1), part: z.int().min(0) });

export const LedgerEntry = z.discriminatedUnion("kind", [
  /** As its agent sent it. Whether it verifies, whoever reads the ledger sees. */
  z.strictObject({ v: z.literal(1), kind: z.literal("receipt"), source: Source, receipt: SignedReceipt }),
  z.strictObject({
    v: z.literal(1),
    kind: z.literal("decision"),
    source: Source,
    atMs: z.int().min(0),
    decision: LedgerDecision,
  }),
  /** The message could not be made sense of, or what it says is larger than a leaf. `digest`: of its bytes. */
  z.strictObject({
    v: z.literal(1),
    kind: z.literal("opaque"),
    source: Source,
    reason: z.enum(["unreadable", "too-large"]),
    digest: Digest,
  }),
]);
export type LedgerEntry = z.infer<typeof LedgerEntry>;

/** The leaf. What is too large for one is there by its digest. */
export function entryBytes(entry: LedgerEntry): Uint8Array {
  const bytes = utf8Bytes(canonicalJson(entry));
  if (bytes.length <= ENTRY_MAX_BYTES) return bytes;
  const { v, source } = entry;
  return entryBytes({ v, kind: "opaque", source, reason: "too-large", digest: digestOf(entry) });
}

/** Undefined for bytes that are not the canonical JSON of an entry. */
export function parseEntry(bytes: Uint8Array): LedgerEntry | undefined {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    const parsed = LedgerEntry.safeParse(JSON.parse(text));
    return parsed.success && canonicalJson(parsed.data) === text ? parsed.data : undefined;
  } catch {
    return undefined; // not UTF-8, or not JSON
  }
}
