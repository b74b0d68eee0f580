/**
 * Signed notes: text with signature lines under it (C2SP signed-note v1.0.0, https://c2sp.org/signed-note).
 *
 * Only a note of which a known key's signature was verified is shown to anybody: `openNote` is the one way to its text.
 */
import { concatBytes, fromBase64, fromHex, toBase64, toHex, utf8Bytes } from "./encoding.ts";
import { ED25519_KEY_BYTES, verifyEd25519 } from "./public-key.ts";
import { sha256 } from "./sha256.ts";

/** Signature types of the specification that are used here. */
export const NOTE_SIGNATURE = { ed25519: 0x01, cosignature: 0x04 } as const;
export type NoteSignatureType = (typeof NOTE_SIGNATURE)[keyof typeof NOTE_SIGNATURE];

/** The specification asks for at least 16; post-quantum signatures are not among ours. */
const SIGNATURES_MAX = 64;
const NOTE_MAX_CHARS = 64 * 1024;

/** A key that is known: its name and type, and 32 bytes of Ed25519. */
export interface NoteKey {
  name: string;
  type: NoteSignatureType;
  publicKey: Uint8Array;
}

export interface NoteSignature {
  name: string;
  /** 4 bytes. */
  keyId: Uint8Array;
  /** What follows the key id. */
  signature: Uint8Array;
}

/** The first 4 bytes of SHA-256 over name, newline, type and public key. */
export function keyIdOf({ name, type, publicKey }: NoteKey): Uint8Array {
  return sha256(utf8Bytes(`${name}\n`), Uint8Array.of(type), publicKey).subarray(0, 4);
}

/** `name+hex(key id)+base64(type || public key)`, as verifiers are configured with. */
export function formatVerifierKey(key: NoteKey): string {
  const material = concatBytes(Uint8Array.of(key.type), key.publicKey);
  return `${key.name}+${toHex(keyIdOf(key))}+${toBase64(material)}`;
}

/** Undefined for anything but a verifier key of a type that is used here. */
export function parseVerifierKey(text: string): NoteKey | undefined {
  const [name, id, material, ...more] = splitKey(text);
  if (name === undefined || id === undefined || material === undefined || more.length > 0) return undefined;
  const bytes = fromBase64(material);
  const type = Object.values(NOTE_SIGNATURE).find((known) => known === bytes?.[0]);
  if (!bytes || type === undefined || !isKeyName(name)) return undefined;
  const key = { name, type, publicKey: bytes.subarray(1) };
  if (key.publicKey.length !== ED25519_KEY_BYTES || fromHex(id) === undefined) return undefined;
  return toHex(keyIdOf(key)) === id ? key : undefined;
}

/** A name has no plus; base64 may have some. */
function splitKey(text: string): string[] {
  const first = text.indexOf("+");
  const second = text.indexOf("+", first + 1);
  if (first < 0 || second < 0) return [];
  return [text.slice(0, first), text.slice(first + 1, second), text.slice(second + 1)];
}

export function isKeyName(name: string): boolean {
  return name !== "" && !/[\p{White_Space}+]/u.test(name);
}

/** The signature line, with its newline. */
export function formatSignature({ name, keyId, signature }: NoteSignature): string {
  return `— ${name} ${toBase64(concatBytes(keyId, signature))}\n`;
}

/** The whole note. `text` ends in a newline. */
export function formatNote(text: string, signatures: readonly NoteSignature[]): string {
  return `${text}\n${signatures.map(formatSignature).join("")}`;
}

/** Signs the text as an Ed25519 note signature: `sign` gives the 64 bytes over what it is handed. */
export function signNote(
  text: string,
  key: NoteKey & { type: typeof NOTE_SIGNATURE.ed25519 },
  sign: (message: Uint8Array) => Uint8Array,
): NoteSignature {
  return { name: key.name, keyId: keyIdOf(key), signature: sign(utf8Bytes(text)) };
}

export type OpenedNote =
  | { kind: "verified"; text: string; by: readonly NoteKey[]; signatures: readonly NoteSignature[] }
  | { kind: "refused"; reason: string };

/** What a note says, when every signature by a known key verifies and there is at least one. */
export function openNote(note: string, known: readonly NoteKey[]): OpenedNote {
  const parsed = parseNote(note);
  if (typeof parsed === "string") return { kind: "refused", reason: parsed };
  const by: NoteKey[] = [];
  for (const signature of parsed.signatures) {
    const key = known.find(
      (candidate) =>
        candidate.name === signature.name && toHex(keyIdOf(candidate)) === toHex(signature.keyId),
    );
    if (!key) continue;
    if (!verifyNoteSignature(parsed.text, key, signature.signature))
      return { kind: "refused", reason: `the signature of ${key.name} does not verify` };
    if (!by.includes(key)) by.push(key);
  }
  if (by.length === 0) return { kind: "refused", reason: "no known key has signed it" };
  return { kind: "verified", text: parsed.text, by, signatures: parsed.signatures };
}

function verifyNoteSignature(text: string, key: NoteKey, signature: Uint8Array): boolean {
  if (key.type === NOTE_SIGNATURE.ed25519) return verifyEd25519(key.publicKey, utf8Bytes(text), signature);
  return verifyCosignature(text, key, signature);
}

/** What a witness signs: C2SP tlog-cosignature, Ed25519. */
export function cosignedMessage(text: string, unixSeconds: number): Uint8Array {
  return utf8Bytes(`cosignature/v1\ntime ${unixSeconds}\n${text}`);
}

/** A witness's signature: 8 bytes of time, then 64 of Ed25519. */
export function cosign(
  text: string,
  key: NoteKey & { type: typeof NOTE_SIGNATURE.cosignature },
  unixSeconds: number,
  sign: (message: Uint8Array) => Uint8Array,
): NoteSignature {
  const time = new Uint8Array(8);
  new DataView(time.buffer).setBigUint64(0, BigInt(unixSeconds));
  const signature = concatBytes(time, sign(cosignedMessage(text, unixSeconds)));
  return { name: key.name, keyId: keyIdOf(key), signature };
}

/** Seconds since the Unix epoch; undefined when it is not a cosignature. */
export function cosignatureTime(signature: Uint8Array): number | undefined {
  if (signature.length !== 8 + 64) return undefined;
  const time = new DataView(signature.buffer, signature.byteOffset, 8).getBigUint64(0);
  return time <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(time) : undefined;
}

function verifyCosignature(text: string, key: NoteKey, signature: Uint8Array): boolean {
  const time = cosignatureTime(signature);
  if (time === undefined || time === 0) return false;
  return verifyEd25519(key.publicKey, cosignedMessage(text, time), signature.subarray(8));
}

interface ParsedNote {
  text: string;
  signatures: NoteSignature[];
}

/** A note, or why it is none. Nothing is verified. */
export function parseNote(note: string): ParsedNote | string {
  if (note.length > NOTE_MAX_CHARS) return `it is longer than ${NOTE_MAX_CHARS} characters`;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the specification forbids them, newline excepted.
  if (/[\u0000-\u0009\u000b-\u001f]/.test(note) || /\p{Surrogate}/u.test(note))
    return "it has characters that a note must not have";
  const border = note.lastIndexOf("\n\n");
  if (border < 0) return "it has no signatures";
  const text = note.slice(0, border + 1);
  const lines = note.slice(border + 2);
  if (!lines.endsWith("\n")) return "its last signature has no newline";
  const signatures: NoteSignature[] = [];
  for (const line of lines.slice(0, -1).split("\n")) {
    const [, name, encoded] = /^— (\S+) (\S+)$/.exec(line) ?? [];
    const bytes = encoded === undefined ? undefined : fromBase64(encoded);
    if (name === undefined || !isKeyName(name) || !bytes || bytes.length < 5)
      return `its line ${JSON.stringify(line)} is not a signature`;
    signatures.push({ name, keyId: bytes.subarray(0, 4), signature: bytes.subarray(4) });
    if (signatures.length > SIGNATURES_MAX) return `it has more than ${SIGNATURES_MAX} signatures`;
  }
  return { text, signatures };
}
