/**
 * Who answers for what an offer names, as the control plane knows it. In a header of its own and signed by itself: an
 * agent that was built before it refuses an offer with a field that it does not know, and overlooks such a header.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { Name } from "../model/names.ts";

/** NATS header: base64 of the JSON, a full stop, base64 of the Ed25519 signature over `signedOwners`. */
export const OWNERS_HEADER = "Insitu-Owners";
export const OWNERS_PURPOSE = "insitu.offer-owners.v1";

export const OfferOwners = z.object({
  /** Of the version of the pipeline that runs. Null: it names none. */
  pipeline: z.string().nullable(),
  /** Of each dataset that the step reads or writes, and that there is now. */
  datasets: z.record(Name, z.string()),
});
export type OfferOwners = z.infer<typeof OfferOwners>;

/** What the signature with the purpose is over: SHA-256 of the offer's payload, then the JSON as sent. */
export function signedOwners(offerPayload: Uint8Array, json: Uint8Array): Uint8Array {
  return Buffer.concat([createHash("sha256").update(offerPayload).digest(), json]);
}

export function ownersHeader(json: Uint8Array, signature: string): string {
  return `${Buffer.from(json).toString("base64")}.${signature}`;
}

export function splitOwnersHeader(header: string): { json: Uint8Array; signature: Uint8Array } {
  const [json = "", signature = ""] = header.split(".");
  return { json: Buffer.from(json, "base64"), signature: Buffer.from(signature, "base64") };
}
