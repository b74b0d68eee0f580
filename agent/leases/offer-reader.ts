/** From the bytes of a message to an offer that can be trusted, or the reason why not. */
import { createPublicKey, type KeyObject, verify } from "node:crypto";
import { OFFER_PURPOSE, Offer } from "../../shared/wire/attempt.ts";

export type ReadOffer = { kind: "offer"; offer: Offer } | { kind: "refused"; reason: string };

const PURPOSE = Buffer.from(`${OFFER_PURPOSE}\0`);

/**
 * Checks the Ed25519 signature (RFC 8032) over purpose, zero byte and payload, over the bytes as received, and
 * only then reads them.
 */
export class OfferReader {
  #key: KeyObject | undefined;

  setKey(publicKeyPem: Buffer): void {
    this.#key = createPublicKey(publicKeyPem);
  }

  read(payload: Uint8Array, signature: string): ReadOffer {
    if (!this.#key) return { kind: "refused", reason: "the key that signs offers is not known yet" };
    if (signature === "") return { kind: "refused", reason: "it is not signed" };
    if (!verify(null, Buffer.concat([PURPOSE, payload]), this.#key, Buffer.from(signature, "base64"))) {
      return { kind: "refused", reason: "its signature is not that of the control plane" };
    }
    let json: unknown;
    try {
      json = JSON.parse(Buffer.from(payload).toString("utf8"));
    } catch {
      return { kind: "refused", reason: "it is not JSON" };
    }
    const parsed = Offer.safeParse(json);
    if (parsed.success) return { kind: "offer", offer: parsed.data };
    const [issue] = parsed.error.issues;
    return { kind: "refused", reason: `field ${issue?.path.join(".")}: ${issue?.message}` };
  }
}
