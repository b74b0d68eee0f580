/**
 * A receipt with all that it takes to verify it years later: the envelope, the key that signed it, and the certificate
 * that vouches for that key. None of it is trusted for being there; `verifyReceipt` goes from a root to the receipt.
 */
import { z } from "zod";
import { Envelope } from "./dsse.ts";

/** Of the sealed statement. In base64, with its certificates, it fits in one leaf of the ledger. */
export const RECEIPT_MAX_BYTES = 36_000;
const CERTIFICATES_MAX_CHARS = 12_000;

const DerBase64 = z.string().max(CERTIFICATES_MAX_CHARS);

export const SignedReceipt = z
  .strictObject({
    /** The payload is an in-toto statement; one signature, of the report key. `keyid`: SHA-256 of its SPKI, hexadecimal. */
    envelope: Envelope,
    /** SPKI of the Ed25519 key that signed, in DER, base64. */
    publicKey: z.string().max(128),
    /** By the key of `certificates[0]`, over `signedReportKey` of wire/report-signature.ts. DER, base64. */
    keyProof: z.string().max(256),
    /** DER, base64: the agent's own first, each issued by the next, the last by a root. The root is left out. */
    certificates: z.array(DerBase64).min(1).max(4),
  })
  .refine(
    ({ envelope, certificates }) =>
      envelope.payload.length <= 4 * Math.ceil(RECEIPT_MAX_BYTES / 3) &&
      certificates.join("").length <= CERTIFICATES_MAX_CHARS,
    "the receipt is larger than one leaf of the ledger",
  );
export type SignedReceipt = z.infer<typeof SignedReceipt>;
