/** Keys by which authors and CI sign pipelines: Ed25519, or ECDSA over P-256 with SHA-256 and DER signatures. */
import { createHash, createPublicKey, type KeyObject } from "node:crypto";
import { toHex } from "./encoding.ts";
import { ED25519_KEY_BYTES, verifyEd25519, verifyP256 } from "./public-key.ts";

export const PUBLIC_KEY_EXPECTED = "a public key in PEM (BEGIN PUBLIC KEY): Ed25519, or EC over P-256";

export interface AuthorKey {
  /** `sha256:` of the SubjectPublicKeyInfo in DER. */
  id: string;
  /** False for anything malformed. The algorithm is that of the key: no message chooses it. */
  verify(message: Uint8Array, signature: Uint8Array): boolean;
}

/** Undefined for anything else, a private key too: from it Node would take the public one, and it would lie about. */
export function readPublicKey(pem: string): AuthorKey | undefined {
  if (!/^\s*-----BEGIN PUBLIC KEY-----/.test(pem)) return undefined;
  try {
    return authorKeyOf(createPublicKey(pem));
  } catch {
    return undefined; // which is what the caller says of it
  }
}

/** Undefined when the key is of another kind. */
export function authorKeyOf(key: KeyObject): AuthorKey | undefined {
  const spki = key.export({ format: "der", type: "spki" });
  const id = `sha256:${toHex(createHash("sha256").update(spki).digest())}`;
  if (key.asymmetricKeyType === "ed25519") {
    const raw = spki.subarray(-ED25519_KEY_BYTES);
    return { id, verify: (message, signature) => verifyEd25519(raw, message, signature) };
  }
  if (key.asymmetricKeyType === "ec" && key.asymmetricKeyDetails?.namedCurve === "prime256v1")
    return { id, verify: (message, signature) => verifyP256(spki, message, signature) };
  return undefined;
}
