/**
 * Receipts: what an agent states of one attempt of a data-bound step.
 *
 * An in-toto Statement v1 (github.com/in-toto/attestation, spec/v1/statement.md) with a predicate of our own, sealed in a
 * DSSE envelope (`signed-receipt.ts`). Readers pass over fields that they do not know, as in-toto asks: v1 may grow.
 */
import { z } from "zod";
import { canonicalJson, digestOf } from "../model/canonical.ts";
import { Digest, FieldName, Name } from "../model/names.ts";
import { Classification, type StepSpec } from "../model/spec.ts";
import { BoxRecord, EgressRecord, LeaseKey, OutcomeStatus } from "../wire/attempt.ts";
import { utf8Bytes } from "./encoding.ts";
import { RECEIPT_MAX_BYTES } from "./signed-receipt.ts";

export const STATEMENT_TYPE = "https://in-toto.io/Statement/v1";
export const RECEIPT_TYPE = "https://insitu.dev/attestation/receipt/v1";

/** Whether a step has anything to do with data: its attempts have receipts, and are in the ledger. */
export function isDataBound({ reads, writes }: Pick<StepSpec, "reads" | "writes">): boolean {
  return reads.length > 0 || writes.length > 0;
}

const Dataset = z.object({
  dataset: Name,
  /** As the control plane said it in the offer; null when it said nothing, which is treated as the most secret one. */
  classification: Classification.nullable(),
});
const Counted = { digest: Digest, bytes: z.int().min(0) };
const FOLDABLE = ["inputs", "outputs", "artifacts", "egress", "reads", "writes"] as const;

export const Receipt = z.object({
  attempt: LeaseKey.meta({ description: "Which grant of which attempt; the epoch is the fencing token" }),
  pipeline: z.object({ name: Name, version: Digest }),
  step: z.object({
    /** Of the canonical JSON (RFC 8785) of the step as it was offered. */
    digest: Digest,
    executor: z.string(),
    /** Of the canonical JSON of its executor alone: the command, or the image with its command. */
    command: Digest,
  }),
  /** SHA-256 of the offer's bytes, as the control plane signed them; null when an older release took it. */
  offer: Digest.nullable(),
  agent: z.object({ environment: Name, name: Name, software: z.string() }),
  host: z.object({
    /** What steps run in on this host, in words; `boxed` is false when they are plain processes. */
    sandbox: z.string(),
    boxed: z.boolean(),
    /** No host says more of itself yet. */
    attestation: z.literal("none"),
  }),
  /** What the attempt's process ran in, and what held its limits; null: no process was started. */
  sandbox: BoxRecord.nullable(),
  reads: z.array(Dataset),
  writes: z.array(Dataset),
  inputs: z.array(z.object({ step: Name, output: FieldName, ...Counted })),
  outputs: z.array(z.object({ name: FieldName, ...Counted })),
  artifacts: z.array(z.object({ name: FieldName, ...Counted })),
  /** Everything that could leave the site, with the verdict on it and what left. */
  egress: z.array(EgressRecord),
  /** Lists that would be too long: empty above, and here how many they were and the digest of their canonical JSON. */
  folded: z.array(z.object({ list: z.enum(FOLDABLE), count: z.int().min(1), digest: Digest })),
  policy: z.object({
    /** Under which the centre placed the step here. */
    centre: z.object({ version: z.string() }),
    /** Of the site, and what it said; null when the site has none. */
    site: z.object({ version: Digest, decision: z.enum(["allow", "veto"]) }).nullable(),
  }),
  log: z.object({ entries: z.int().min(0), bytes: z.int().min(0), droppedBytes: z.int().min(0) }),
  time: z.object({
    startedAtMs: z.int().min(0),
    finishedAtMs: z.int().min(0),
    /** Both are of the agent's host. */
    clock: z.literal("agent"),
    /** How much that clock was ahead of the control plane's at the end, as the agent last heard; null: never. */
    aheadOfCentreMs: z.int().nullable(),
    /** Whether the agent had a connection to the control plane when the attempt ended. */
    connected: z.boolean(),
  }),
  result: z.object({
    status: OutcomeStatus,
    exitCode: z.int().nullable(),
    signal: z.string().nullable(),
    /** The code of the error; its text is one of the things that may have to stay at the site. */
    error: z.string().nullable(),
  }),
});
export type Receipt = z.infer<typeof Receipt>;

export const ReceiptStatement = z.object({
  _type: z.literal(STATEMENT_TYPE),
  /** The attempt first, then what it produced. */
  subject: z
    .array(
      z.object({
        name: z.string().min(1),
        digest: z.object({ sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
      }),
    )
    .min(1),
  predicateType: z.literal(RECEIPT_TYPE),
  predicate: Receipt,
});
type ReceiptStatement = z.infer<typeof ReceiptStatement>;

/** Name of the first subject of a receipt. */
export function attemptName({ runId, stepId, attempt, epoch }: LeaseKey): string {
  return `attempt/${runId}/${stepId}/${attempt}/${epoch}`;
}

export function statementOf(receipt: Receipt): ReceiptStatement {
  const products = [...receipt.outputs, ...receipt.artifacts];
  return {
    _type: STATEMENT_TYPE,
    subject: [
      { name: attemptName(receipt.attempt), digest: sha256Of(digestOf(receipt.attempt)) },
      ...products.map(({ name, digest }) => ({ name, digest: sha256Of(digest) })),
    ],
    predicateType: RECEIPT_TYPE,
    predicate: receipt,
  };
}

/** The bytes that are sealed: canonical JSON. Lists are folded, the longest first, until it fits in a leaf. */
export function statementBytes(receipt: Receipt): Uint8Array {
  let kept = receipt;
  for (;;) {
    const bytes = utf8Bytes(canonicalJson(statementOf(kept)));
    if (bytes.length <= RECEIPT_MAX_BYTES) return bytes;
    const [list] = [...FOLDABLE].sort((a, b) => kept[b].length - kept[a].length);
    const folded = kept[list!];
    if (folded.length === 0) throw new RangeError(`a receipt of ${bytes.length} bytes has nothing to fold`);
    const entry = { list: list!, count: folded.length, digest: digestOf(folded) };
    kept = { ...kept, [list!]: [], folded: [...kept.folded, entry] };
  }
}

export type ReadReceipt = { kind: "receipt"; receipt: Receipt } | { kind: "malformed"; reason: string };

/** What a sealed payload says, when it is a whole receipt whose subjects are those of its predicate. */
export function readReceipt(payload: Uint8Array): ReadReceipt {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
  } catch {
    return { kind: "malformed", reason: "it is not JSON" };
  }
  const parsed = ReceiptStatement.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    return { kind: "malformed", reason: `${issue?.path.join(".")}: ${issue?.message}` };
  }
  const receipt = parsed.data.predicate;
  try {
    if (canonicalJson(parsed.data.subject) === canonicalJson(statementOf(receipt).subject))
      return { kind: "receipt", receipt };
  } catch {
    return { kind: "malformed", reason: "it holds text that has no canonical JSON" };
  }
  return { kind: "malformed", reason: "its subjects are not those of its predicate" };
}

function sha256Of(digest: string): { sha256: string } {
  return { sha256: digest.slice("sha256:".length) };
}
