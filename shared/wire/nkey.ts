/**
 * Keys as NATS writes them: an Ed25519 key in base 32 with a prefix that says whose it is and a CRC-16 behind it.
 * Source: the nkeys specification (github.com/nats-io/nkeys), as nats-server and `nkeys.js` read it.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from "node:crypto";

/** First bytes of public keys: they show as O, A and U. */
const PREFIX = { operator: 14 << 3, account: 0, user: 20 << 3 } as const;
const SEED_PREFIX = 18 << 3;
const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/** DER around 32 raw bytes of an Ed25519 private key (RFC 8410). */
const PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex");

export type NkeyKind = keyof typeof PREFIX;

export interface Nkey {
  /** Of 56 letters; the first says of what kind. */
  publicKey: string;
  /** Secret. Of 58 letters, the first two SO, SA or SU. */
  seed: string;
  sign(data: Uint8Array): Buffer;
}

/** @param raw 32 bytes; without them, of chance */
export function makeNkey(kind: NkeyKind, raw?: Uint8Array): Nkey {
  const privateKey = raw
    ? createPrivateKey({ key: Buffer.concat([PKCS8, raw]), format: "der", type: "pkcs8" })
    : generateKeyPairSync("ed25519").privateKey;
  const secret = raw ?? privateKey.export({ format: "der", type: "pkcs8" }).subarray(PKCS8.length);
  const head = [SEED_PREFIX | (PREFIX[kind] >> 5), (PREFIX[kind] & 31) << 3];
  return {
    publicKey: checked(Buffer.concat([Buffer.from([PREFIX[kind]]), rawPublic(privateKey)])),
    seed: checked(Buffer.concat([Buffer.from(head), secret])),
    sign: (data) => sign(null, data, privateKey),
  };
}

/** @throws Error when it is no seed of that kind, or its check sum does not hold */
export function nkeyOfSeed(kind: NkeyKind, seed: string): Nkey {
  if (/^[A-Z2-7]{58}$/.test(seed)) {
    const key = makeNkey(kind, decodeBase32(seed).subarray(2, 34));
    // Made again it is the same letter by letter: kind and check sum are in it.
    if (key.seed === seed) return key;
  }
  throw new Error(`no seed of ${kind === "account" ? "an" : "a"} ${kind}`);
}

/** True for a public key of that kind whose check sum holds. */
export function isPublicNkey(kind: NkeyKind, text: string): boolean {
  if (!/^[A-Z2-7]{56}$/.test(text)) return false;
  const bytes = decodeBase32(text);
  return bytes[0] === PREFIX[kind] && checked(bytes.subarray(0, -2)) === text;
}

export function encodeBase32(bytes: Uint8Array): string {
  let text = "";
  let bits = 0;
  let held = 0;
  for (const byte of bytes) {
    held = ((held << 8) | byte) & 0xffff;
    for (bits += 8; bits >= 5; bits -= 5) text += ALPHABET[(held >> (bits - 5)) & 31];
  }
  return bits > 0 ? text + ALPHABET[(held << (5 - bits)) & 31] : text;
}

function decodeBase32(text: string): Buffer {
  const bytes: number[] = [];
  let bits = 0;
  let held = 0;
  for (const letter of text) {
    held = ((held << 5) | ALPHABET.indexOf(letter)) & 0xfff;
    bits += 5;
    if (bits >= 8) {
      bits -= 8;
      bytes.push((held >> bits) & 0xff);
    }
  }
  return Buffer.from(bytes);
}

function rawPublic(privateKey: KeyObject): Buffer {
  return createPublicKey(privateKey).export({ format: "der", type: "spki" }).subarray(-32);
}

/** With its CRC-16 (XMODEM), low byte first. */
function checked(bytes: Buffer): string {
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) crc = ((crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1) & 0xffff) >>> 0;
  }
  return encodeBase32(Buffer.concat([bytes, Buffer.from([crc & 0xff, crc >> 8])]));
}
