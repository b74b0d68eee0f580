/** SHA-256 (FIPS 180-4). A file of its own: a bundle for browsers puts another one in its place. */
import { createHash } from "node:crypto";

/** 32 bytes. */
export function sha256(...parts: readonly Uint8Array[]): Uint8Array {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return new Uint8Array(hash.digest());
}
