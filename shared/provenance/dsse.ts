/**
 * DSSE envelopes: what is signed is the payload's bytes and their type (github.com/secure-systems-lab/dsse, protocol v1.0.2).
 *
 * The payload is verified as it was received and never written anew: there is no canonical form to agree on.
 */
import { z } from "zod";
import { concatBytes, fromBase64, toBase64, utf8Bytes } from "./encoding.ts";

export const IN_TOTO_PAYLOAD = "application/vnd.in-toto+json";

/** Standard base64 as the specification recommends for JSON; each text stands for one value. */
const Base64 = z.string().refine((text) => fromBase64(text) !== undefined, "not base64 (RFC 4648)");

export const Envelope = z.strictObject({
  payloadType: z.string().min(1),
  payload: Base64,
  signatures: z
    .array(
      z.strictObject({
        /** A hint which key it was, never trusted. */
        keyid: z.string().optional(),
        sig: Base64,
      }),
    )
    .min(1)
    .max(16),
});
export type Envelope = z.infer<typeof Envelope>;

/** Pre-authentication encoding: the bytes that are signed. */
export function pae(payloadType: string, payload: Uint8Array): Uint8Array {
  const type = utf8Bytes(payloadType);
  return concatBytes(utf8Bytes(`DSSEv1 ${type.length} `), type, utf8Bytes(` ${payload.length} `), payload);
}

/** `sign` gives the signature over the bytes that it is handed. */
export function seal(
  payloadType: string,
  payload: Uint8Array,
  signer: { keyid?: string; sign: (message: Uint8Array) => Uint8Array },
): Envelope {
  const sig = toBase64(signer.sign(pae(payloadType, payload)));
  const keyid = signer.keyid === undefined ? {} : { keyid: signer.keyid };
  return { payloadType, payload: toBase64(payload), signatures: [{ ...keyid, sig }] };
}

/** The payload, when one of the signatures verifies; undefined otherwise. */
export function unseal(
  envelope: Envelope,
  payloadType: string,
  verify: (message: Uint8Array, signature: Uint8Array) => boolean,
): Uint8Array | undefined {
  const payload = fromBase64(envelope.payload);
  if (!payload || envelope.payloadType !== payloadType) return undefined;
  const message = pae(envelope.payloadType, payload);
  const verified = envelope.signatures.some(({ sig }) => {
    const signature = fromBase64(sig);
    return signature !== undefined && verify(message, signature);
  });
  return verified ? payload : undefined;
}
