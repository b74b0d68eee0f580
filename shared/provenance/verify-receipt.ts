/**
 * From the root of an installation to a receipt: chain of certificates, proof for the report key, signature, statement.
 *
 * No store is asked and no clock is read. What time says of the chain is told, not decided: an agent that was cut off
 * for long signs with a key that was vouched for while its certificate was valid.
 */
import { createHash, type KeyObject, verify, X509Certificate } from "node:crypto";
import { agentUri } from "../wire/agent-uri.ts";
import { readReportKey, reportKeyId, signedReportKey } from "../wire/report-signature.ts";
import { IN_TOTO_PAYLOAD, unseal } from "./dsse.ts";
import { type Receipt, readReceipt } from "./receipt.ts";
import type { SignedReceipt } from "./signed-receipt.ts";

export type VerifiedReceipt =
  | {
      kind: "verified";
      receipt: Receipt;
      keyId: string;
      certificate: CertificateFacts;
      /** Whether each certificate of the chain was valid when the attempt ended, by the agent's clock. */
      validThen: boolean;
    }
  | { kind: "refused"; reason: string };

export interface CertificateFacts {
  /** Hexadecimal SHA-256 of the DER, and of the SPKI: what revocations name. */
  sha256: string;
  spkiSha256: string;
  notBeforeMs: number;
  notAfterMs: number;
}

const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
const ONE_URI = /^URI:([^,"\s]+)$/;

/** `rootsPem`: the certificates that are trusted, one PEM each. */
export interface ReceiptTrust {
  trustDomain: string;
  rootsPem: readonly string[];
}

/** What the certificates and the proof come to, whatever was signed. */
type Vouched =
  | {
      kind: "vouched";
      trustDomain: string;
      uri: string;
      key: KeyObject;
      keyId: string;
      chain: CertificateFacts[];
    }
  | { kind: "refused"; reason: string };

const VOUCHED_MAX = 10_000;

export function verifyReceipt(signed: SignedReceipt, trust: ReceiptTrust): VerifiedReceipt {
  return verifiedUnder(vouched(signed, trust), signed);
}

/** Like `verifyReceipt`, for many receipts: what vouches for a key is looked at once. */
export function receiptVerifier(trust: ReceiptTrust): (signed: SignedReceipt) => VerifiedReceipt {
  const known = new Map<string, Vouched>();
  return (signed) => {
    const about = JSON.stringify([signed.publicKey, signed.keyProof, signed.certificates]);
    let found = known.get(about);
    if (!found) {
      if (known.size >= VOUCHED_MAX) known.clear();
      found = vouched(signed, trust);
      known.set(about, found);
    }
    return verifiedUnder(found, signed);
  };
}

function vouched(signed: SignedReceipt, { trustDomain, rootsPem }: ReceiptTrust): Vouched {
  const chain = readChain(signed.certificates);
  if (typeof chain === "string") return refused(chain);
  const broken = brokenLink(chain, rootsPem);
  if (broken !== undefined) return refused(broken);
  const [leaf] = chain as [X509Certificate, ...X509Certificate[]];
  // Node puts odd names in quotes, so that they cannot look like this.
  const uri = ONE_URI.exec(leaf.subjectAltName ?? "")?.[1];
  if (!uri?.startsWith(`spiffe://${trustDomain}/`))
    return refused(
      `the certificate is of ${leaf.subjectAltName ?? "nobody"}, not of an agent of ${trustDomain}`,
    );
  const spki = Buffer.from(signed.publicKey, "base64");
  const key = readReportKey(spki);
  if (!key) return refused("the key that signed is no Ed25519 key");
  const proof = Buffer.from(signed.keyProof, "base64");
  const isEc = leaf.publicKey.asymmetricKeyType === "ec";
  if (!isEc || !verify("sha256", signedReportKey(uri, spki), leaf.publicKey, proof))
    return refused("the certificate does not vouch for the key that signed");
  return { kind: "vouched", trustDomain, uri, key, keyId: reportKeyId(spki), chain: chain.map(factsOf) };
}

function verifiedUnder(voucher: Vouched, signed: SignedReceipt): VerifiedReceipt {
  if (voucher.kind === "refused") return voucher;
  const { trustDomain, uri, key, keyId, chain } = voucher;
  const signs = (bytes: Uint8Array, signature: Uint8Array): boolean =>
    signature.length === 64 && verify(null, bytes, key, signature);
  const payload = unseal(signed.envelope, IN_TOTO_PAYLOAD, signs);
  if (!payload) return refused("the envelope is not signed by that key");
  const read = readReceipt(payload);
  if (read.kind === "malformed") return refused(`the statement is no receipt: ${read.reason}`);
  const { receipt } = read;
  const { environment, name } = receipt.agent;
  if (uri !== agentUri(trustDomain, receipt.agent))
    return refused(`the certificate is of ${uri}, and the receipt of ${environment}/${name}`);
  const endedAtMs = receipt.time.finishedAtMs;
  const validThen = chain.every((one) => one.notBeforeMs <= endedAtMs && endedAtMs < one.notAfterMs);
  return { kind: "verified", receipt, keyId, certificate: chain[0]!, validThen };
}

function refused(reason: string): { kind: "refused"; reason: string } {
  return { kind: "refused", reason };
}

/** The certificates, or what is wrong with one. */
function readChain(certificates: readonly string[]): X509Certificate[] | string {
  try {
    return certificates.map((der) => new X509Certificate(Buffer.from(der, "base64")));
  } catch {
    return "a certificate of the chain cannot be read";
  }
}

/** Why the chain does not lead from a root to an agent; undefined when it does. */
function brokenLink(chain: readonly X509Certificate[], rootsPem: readonly string[]): string | undefined {
  const [leaf, ...authorities] = chain;
  if (!leaf || leaf.ca) return "the first certificate is one of an authority, not of an agent";
  // `keyUsage` of Node is the extended key usage.
  if (!(leaf.keyUsage ?? []).includes(CLIENT_AUTH)) return "the certificate is not one of an agent";
  const issuers = [...authorities, undefined];
  for (const [i, certificate] of chain.entries()) {
    const issuer = issuers[i];
    const candidates = issuer ? [issuer] : rootsPem.map((pem) => new X509Certificate(pem));
    const found = candidates.some(
      (candidate) =>
        candidate.ca && certificate.checkIssued(candidate) && certificate.verify(candidate.publicKey),
    );
    if (!found)
      return `certificate ${i} of the chain was not issued by ${issuer ? "the next" : "a trusted root"}`;
  }
  return undefined;
}

function factsOf(certificate: X509Certificate): CertificateFacts {
  const spki = certificate.publicKey.export({ type: "spki", format: "der" });
  return {
    sha256: createHash("sha256").update(certificate.raw).digest("hex"),
    spkiSha256: createHash("sha256").update(spki).digest("hex"),
    notBeforeMs: Date.parse(certificate.validFrom),
    notAfterMs: Date.parse(certificate.validTo),
  };
}
