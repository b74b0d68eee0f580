/** What is signed when agents are told which roots to trust. */
import type { KeyObject } from "node:crypto";
import { verify } from "node:crypto";

const ROOTS_PURPOSE = "insitu.roots.v1";

export interface TrustedRoots {
  trustDomain: string;
  /** An agent takes only what is newer than what it has. */
  revision: number;
  /** Pin of the key that signs certificates of agents from now on. */
  issuerPin: string;
  /** Certificates in PEM. */
  pem: string;
}

/** Each part ends with a zero byte, which none of them can hold. */
export function rootsBytes({ trustDomain, revision, issuerPin, pem }: TrustedRoots): Uint8Array {
  return Buffer.from(`${ROOTS_PURPOSE}\0${trustDomain}\0${revision}\0${issuerPin}\0${pem}\0`, "utf8");
}

/** ECDSA over P-256 or P-384 with SHA-256, DER. False for anything malformed. */
export function verifyRoots(key: KeyObject, roots: TrustedRoots, signature: Uint8Array): boolean {
  try {
    return verify("sha256", rootsBytes(roots), key, signature);
  } catch {
    return false; // of a kind of key that signs nothing
  }
}
