/** From the bytes of a message to an offer that can be trusted, or the reason why not. */
import { createPublicKey, type KeyObject, verify } from "node:crypto";
import { OFFER_PURPOSE, Offer } from "../../shared/wire/attempt.ts";
import {
  OfferOwners,
  OWNERS_PURPOSE,
  signedOwners,
  splitOwnersHeader,
} from "../../shared/wire/offer-owners.ts";

/** `owners`: undefined when the control plane does not say. */
export type ReadOffer =
  | { kind: "offer"; offer: Offer; owners: OfferOwners | undefined }
  | { kind: "refused"; reason: string };

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

  /** `owners`: the header with who answers for what it names; empty when there is none. */
  read(payload: Uint8Array, signature: string, owners = ""): ReadOffer {
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
    if (parsed.success) {
      if (owners === "") return { kind: "offer", offer: parsed.data, owners: undefined };
      const read = this.#readOwners(this.#key, payload, owners);
      if (read === undefined)
        return { kind: "refused", reason: "its owners are not as the control plane signed them" };
      return { kind: "offer", offer: parsed.data, owners: read };
    }
    const [issue] = parsed.error.issues;
    return { kind: "refused", reason: `field ${issue?.path.join(".")}: ${issue?.message}` };
  }

  #readOwners(key: KeyObject, payload: Uint8Array, header: string): OfferOwners | undefined {
    const { json, signature } = splitOwnersHeader(header);
    const signed = Buffer.concat([Buffer.from(`${OWNERS_PURPOSE}\0`), signedOwners(payload, json)]);
    if (!verify(null, signed, key, signature)) return undefined;
    try {
      return OfferOwners.parse(JSON.parse(Buffer.from(json).toString("utf8")));
    } catch {
      return undefined; // as if it were not signed: the offer is refused
    }
  }
}
