/** Signatures as they are verified here. A file of its own: a bundle for browsers puts another one in its place. */
import { createPublicKey, type KeyObject, verify } from "node:crypto";

export const ED25519_KEY_BYTES = 32;
/** RFC 8410: what stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo. */
const ED25519_SPKI = Buffer.from("302a300506032b6570032100", "hex");

/** Ed25519 (RFC 8032). `key` are the 32 bytes of the public key. False for anything malformed. */
export function verifyEd25519(key: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  if (key.length !== ED25519_KEY_BYTES || signature.length !== 64) return false;
  return verify(null, message, ed25519Key(key), signature);
}

/** ECDSA over P-256 with SHA-256 and a DER signature. `spki` is the SubjectPublicKeyInfo. False for anything malformed. */
export function verifyP256(spki: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  let key: KeyObject;
  try {
    key = createPublicKey({ key: Buffer.from(spki), format: "der", type: "spki" });
  } catch {
    return false; // not a key
  }
  if (key.asymmetricKeyDetails?.namedCurve !== "prime256v1") return false;
  return verify("sha256", message, { key, dsaEncoding: "der" }, signature);
}

function ed25519Key(raw: Uint8Array): KeyObject {
  return createPublicKey({ key: Buffer.concat([ED25519_SPKI, raw]), format: "der", type: "spki" });
}
