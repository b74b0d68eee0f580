/** Signs this agent's reports and logs, with a key that is made on its host and never leaves it. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { leafHash } from "../../shared/provenance/merkle.ts";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import { type BatchPurpose, BatchTree, signedBatch } from "../../shared/wire/batch-signature.ts";
import { LOG_BATCH_PURPOSE, logLeaf, type SignedChunk } from "../../shared/wire/log-signature.ts";
import {
  REPORT_BATCH_PURPOSE,
  reportKeyId,
  signedReport,
  signedReportKey,
} from "../../shared/wire/report-signature.ts";
import type { Identity } from "./identity.ts";
import { writerInto } from "./identity-files.ts";

const FILE = "report-key.pem";

interface Signature {
  signature: Buffer;
  keyId: string;
}

export interface ReportSigner {
  /** For the hello: the key, and the proof by the key of the connection's certificate, PKCS#8. */
  announcement(keyPem: Buffer): { reportPublicKey: Buffer; reportKeyProof: Buffer };
  /** For a report with this payload. */
  sign(payload: Uint8Array): Signature;
  /** For reports with these payloads that go up together, one at least. */
  signReports(payloads: readonly Uint8Array[]): Signature;
  /** For chunks of logs that go up together, one at least. */
  signLogs(chunks: readonly SignedChunk[]): Signature;
  /** Over what DSSE makes of a payload, which nothing else that this key signs begins like. */
  signEnvelope(message: Uint8Array): Uint8Array;
  /** SHA-256 of the public key's SPKI, hexadecimal. */
  readonly keyId: string;
}

/**
 * With the key in `<stateDir>/identity/report-key.pem`, mode 0600. Where there is none, or a damaged one, a new one is
 * made: the control plane learns it with the next hello, and what was signed before stays as it is.
 */
export function loadOrMakeReportSigner(
  stateDir: string,
  identity: Pick<Identity, "trustDomain" | "environment" | "name">,
): ReportSigner {
  return reportSigner(readKey(join(stateDir, "identity", FILE)) ?? makeKey(stateDir), identity);
}

/** With this private key, Ed25519. */
export function reportSigner(
  key: KeyObject,
  identity: Pick<Identity, "trustDomain" | "environment" | "name">,
): ReportSigner {
  const uri = agentUri(identity.trustDomain, identity);
  const spki = createPublicKey(key).export({ type: "spki", format: "der" });
  const keyId = reportKeyId(spki);
  const signBatch = (purpose: BatchPurpose, leaves: readonly Uint8Array[]): Signature => ({
    signature: sign(null, signedBatch(purpose, uri, new BatchTree(leaves)), key),
    keyId,
  });
  return {
    announcement: (keyPem) => ({
      reportPublicKey: spki,
      reportKeyProof: sign("sha256", signedReportKey(uri, spki), createPrivateKey(keyPem)),
    }),
    sign: (payload) => ({ signature: sign(null, signedReport(uri, payload), key), keyId }),
    signReports: (payloads) => signBatch(REPORT_BATCH_PURPOSE, payloads.map(leafHash)),
    signLogs: (chunks) => signBatch(LOG_BATCH_PURPOSE, chunks.map(logLeaf)),
    signEnvelope: (message) => sign(null, message, key),
    keyId,
  };
}

function makeKey(stateDir: string): KeyObject {
  const { privateKey } = generateKeyPairSync("ed25519");
  writerInto(join(stateDir, "identity"))(
    FILE,
    privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
  );
  return privateKey;
}

/** Undefined when there is none that signs. */
function readKey(file: string): KeyObject | undefined {
  try {
    const key = createPrivateKey(readFileSync(file));
    return key.asymmetricKeyType === "ed25519" ? key : undefined;
  } catch {
    return undefined; // none yet, or damaged: a new one serves as well
  }
}
