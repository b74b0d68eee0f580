/** Files with the keys of authors: private ones in PKCS#8, public ones as SubjectPublicKeyInfo, both in PEM. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { InsituError } from "../../shared/errors.ts";
import {
  type AuthorKey,
  authorKeyOf,
  PUBLIC_KEY_EXPECTED,
  readPublicKey,
} from "../../shared/provenance/author-key.ts";

export const KEY_TYPES = ["ed25519", "p256"] as const;
export type KeyType = (typeof KEY_TYPES)[number];

export interface Signer {
  keyid: string;
  sign(message: Uint8Array): Uint8Array;
}

/** @throws request.invalid */
export function readSigner(path: string): Signer {
  const pem = readText(path, "--key");
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch (err) {
    const encrypted = pem.includes("ENCRYPTED") ? "it is encrypted; " : "";
    throw new InsituError(
      "request.invalid",
      `--key ${path}: ${encrypted}a private key in PEM without a passphrase is expected (BEGIN PRIVATE KEY), as \`insitu sign keygen\` makes it`,
      { cause: err },
    );
  }
  const known = authorKeyOf(createPublicKey(key));
  if (known === undefined)
    throw new InsituError(
      "request.invalid",
      `--key ${path}: a key of type Ed25519, or EC over P-256, is expected`,
    );
  const algorithm = key.asymmetricKeyType === "ed25519" ? null : "sha256";
  return { keyid: known.id, sign: (message) => sign(algorithm, message, { key, dsaEncoding: "der" }) };
}

/** @throws request.invalid */
export function readVerifier(path: string): AuthorKey {
  const key = readPublicKey(readText(path, "--key"));
  if (key === undefined)
    throw new InsituError("request.invalid", `--key ${path}: ${PUBLIC_KEY_EXPECTED} is expected`);
  return key;
}

/** Replaces no file. Gives the key's id. @throws request.invalid */
export function makeKeyPair(type: KeyType, files: { privateFile: string; publicFile: string }): string {
  const pair =
    type === "ed25519"
      ? generateKeyPairSync("ed25519")
      : generateKeyPairSync("ec", { namedCurve: "prime256v1" });
  writeNew(files.privateFile, pair.privateKey.export({ type: "pkcs8", format: "pem" }).toString(), 0o600);
  writeNew(files.publicFile, pair.publicKey.export({ type: "spki", format: "pem" }).toString(), 0o644);
  return readVerifier(files.publicFile).id;
}

function writeNew(path: string, text: string, mode: number): void {
  try {
    writeFileSync(path, text, { flag: "wx", mode });
  } catch (err) {
    const exists = (err as NodeJS.ErrnoException).code === "EEXIST";
    const reason = exists ? "it is there already, and no key is replaced" : InsituError.from(err).message;
    throw new InsituError("request.invalid", `${path} is not written: ${reason}`, { cause: err });
  }
}

function readText(path: string, flag: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (err) {
    const reason = (err as NodeJS.ErrnoException).code ?? "unreadable";
    throw new InsituError("request.invalid", `${flag} ${path} cannot be read (${reason})`, { cause: err });
  }
}
