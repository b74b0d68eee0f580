/**
 * How reports are signed: by a key of the agent's host, over the exact bytes of the payload and whose report it is.
 *
 * Each kind of signed message has a purpose of its own in front, so that none can stand in for another.
 */
import { createHash, createPublicKey, type KeyObject, verify } from "node:crypto";
import { z } from "zod";
import { leafHash } from "../provenance/merkle.ts";
import { ReportPayload } from "./attempt.ts";
import { BatchPlace, batchAt, signedPrefix, verifyBatch } from "./batch-signature.ts";

/** Of one report alone. Signed is: purpose, zero byte, SPIFFE id of the agent, zero byte, payload as sent. Ed25519 (RFC 8032). */
const REPORT_PURPOSE = "insitu.report.v1";
/** Of several that went up together: see batch-signature.ts. A leaf is a payload as sent. */
export const REPORT_BATCH_PURPOSE = "insitu.reports.v1";
/**
 * Signed is: purpose, zero byte, SPIFFE id of the agent, zero byte, SPKI of the report key. By the key of the agent's
 * certificate: ECDSA P-256 with SHA-256, in DER.
 */
const REPORT_KEY_PURPOSE = "insitu.report-key.v1";

const KeyId = z.string().regex(/^[0-9a-f]{64}$/);

/** Kept beside what a report said, so that whoever has the agent's public key can verify it years later. */
export const ReportSignature = z.object({
  keyId: KeyId,
  /** Base64. Over the report, or over the batch in which it went up. */
  signature: z.string().max(128),
  /** Missing: it was signed alone. */
  batch: BatchPlace.optional(),
  /** The signed payload, when it is not what `reportBytes` gives. */
  payload: z.string().optional(),
});
export type ReportSignature = z.infer<typeof ReportSignature>;

/** SHA-256 of the SPKI, hexadecimal. */
export function reportKeyId(spki: Uint8Array): string {
  return createHash("sha256").update(spki).digest("hex");
}

/** What the report key signs. */
export function signedReport(agentUri: string, payload: Uint8Array): Uint8Array {
  return Buffer.concat([signedPrefix(REPORT_PURPOSE, agentUri), payload]);
}

/** What the certificate's key signs, to vouch for the report key. */
export function signedReportKey(agentUri: string, spki: Uint8Array): Uint8Array {
  return Buffer.concat([signedPrefix(REPORT_KEY_PURPOSE, agentUri), spki]);
}

/** Undefined unless it is an Ed25519 key. */
export function readReportKey(spki: Uint8Array): KeyObject | undefined {
  try {
    const key = createPublicKey({ key: Buffer.from(spki), type: "spki", format: "der" });
    return key.asymmetricKeyType === "ed25519" ? key : undefined;
  } catch {
    return undefined; // no key at all: the caller says so
  }
}

export function verifyReport(
  key: KeyObject,
  agentUri: string,
  payload: Uint8Array,
  signature: Uint8Array,
): boolean {
  return signature.length === 64 && verify(null, signedReport(agentUri, payload), key, signature);
}

/** Whether that is the agent's signature of a report with this payload, alone or in a batch. */
export function verifyKept(
  key: KeyObject,
  agentUri: string,
  payload: Uint8Array,
  { signature, batch: place }: Pick<ReportSignature, "signature" | "batch">,
): boolean {
  const bytes = Buffer.from(signature, "base64");
  if (place === undefined) return verifyReport(key, agentUri, payload, bytes);
  const batch = batchAt(leafHash(payload), place);
  if (batch === undefined) return false;
  return verifyBatch(key, { purpose: REPORT_BATCH_PURPOSE, agentUri, batch }, bytes);
}

/** The payload of a report, as agents write it and as it can be written again from what a run's events say. */
export function reportBytes(report: ReportPayload): Uint8Array {
  return Buffer.from(JSON.stringify(ReportPayload.parse(report)), "utf8");
}
