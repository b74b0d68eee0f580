import { generateKeyPairSync, sign } from "node:crypto";
import { describe, expect, test } from "vitest";
import { toBase64 } from "./encoding.ts";
import {
  cosign,
  cosignatureTime,
  formatNote,
  formatVerifierKey,
  NOTE_SIGNATURE,
  type NoteKey,
  openNote,
  parseVerifierKey,
  signNote,
} from "./signed-note.ts";

/** C2SP signed-note v1.0.0, section Example. */
const C2SP = {
  key: "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
  note: "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n",
};
/** golang.org/x/mod/sumdb/note, package documentation. */
const GO = {
  key: "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
  note: "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n",
};

describe.each([
  ["C2SP", C2SP],
  ["Go", GO],
])("the published note of %s", (_, { key: text, note }) => {
  const key = parseVerifierKey(text)!;

  test("verifies, and its key is written as it was read", () => {
    expect(formatVerifierKey(key)).toBe(text);
    expect(openNote(note, [key])).toMatchObject({
      kind: "verified",
      text: note.slice(0, note.indexOf("\n\n") + 1),
      by: [key],
    });
  });

  test("does not verify with any of its characters changed", () => {
    for (let at = 0; at < note.length; at++) {
      const changed = `${note.slice(0, at)}${note[at] === "x" ? "y" : "x"}${note.slice(at + 1)}`;
      expect(openNote(changed, [key]).kind).toBe("refused");
    }
  });

  test("is nothing to those who do not know the key", () => {
    expect(openNote(note, [])).toEqual({ kind: "refused", reason: "no known key has signed it" });
  });
});

function keyPair<T extends NoteKey["type"]>(name: string, type: T) {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  const raw = publicKey.export({ format: "der", type: "spki" }).subarray(-32);
  return {
    key: { name, type, publicKey: new Uint8Array(raw) },
    sign: (message: Uint8Array) => new Uint8Array(sign(null, message, privateKey)),
  };
}

const log = keyPair("log.example/l", NOTE_SIGNATURE.ed25519);
const witness = keyPair("witness.example/w", NOTE_SIGNATURE.cosignature);
const TEXT = "log.example/l\n3\nroot\n\nmore\n";

test("a note is signed and cosigned, and tells who has done so", () => {
  const note = formatNote(TEXT, [
    signNote(TEXT, log.key, log.sign),
    cosign(TEXT, witness.key, 1_679_315_147, witness.sign),
  ]);
  const opened = openNote(note, [log.key, witness.key]);
  expect(opened).toMatchObject({ kind: "verified", text: TEXT, by: [log.key, witness.key] });
  expect(opened.kind === "verified" && cosignatureTime(opened.signatures[1]!.signature)).toBe(1_679_315_147);
});

test("one bad signature of a known key spoils the note, one of an unknown key does not", () => {
  const good = signNote(TEXT, log.key, log.sign);
  const bad = { ...good, signature: good.signature.map((byte) => byte ^ 1) };
  const other = keyPair("log.example/l", NOTE_SIGNATURE.ed25519);
  expect(openNote(formatNote(TEXT, [good, bad]), [log.key]).kind).toBe("refused");
  const strange = signNote(TEXT, other.key, other.sign);
  expect(openNote(formatNote(TEXT, [strange, good]), [log.key]).kind).toBe("verified");
});

test("a cosignature does not stand in for the log's own signature, nor for another time", () => {
  const asLog = { ...witness.key, type: NOTE_SIGNATURE.ed25519 };
  const cosignature = cosign(TEXT, witness.key, 5, witness.sign);
  expect(openNote(formatNote(TEXT, [cosignature]), [asLog]).kind).toBe("refused");
  const later = cosignature.signature.slice();
  later[7]!++;
  expect(openNote(formatNote(TEXT, [{ ...cosignature, signature: later }]), [witness.key]).kind).toBe(
    "refused",
  );
});

const signature = "— a AAAAAAA=";
test.each([
  ["no signatures", "text\n"],
  ["no newline at its end", `text\n\n${signature}`],
  ["a control character", `te\tt\n\n${signature}\n`],
  ["a lone surrogate", `\ud800\n\n${signature}\n`],
  ["a line that is no signature", "text\n\nsignature\n"],
  ["a hyphen for the dash", "text\n\n- a AAAAAAA=\n"],
  ["base64 of another form", "text\n\n— a AAAAAAB=\n"],
  ["a signature of no bytes", `text\n\n— a ${toBase64(new Uint8Array(4))}\n`],
  ["too many signatures", `text\n\n${`${signature}\n`.repeat(65)}`],
  ["too many characters", `${"x".repeat(70_000)}\n\n${signature}\n`],
])("a note with %s is refused with a reason", (_, note) => {
  const opened = openNote(note, [log.key]);
  expect(opened).toMatchObject({ kind: "refused" });
  expect(opened.kind === "refused" && opened.reason).toMatch(/^it|^its/);
});

test.each([
  ["another id", C2SP.key.replace("530d903a", "530d903b")],
  ["a type that is not known", `${C2SP.key.slice(0, 25)}+As${C2SP.key.slice(28)}`],
  ["no name", C2SP.key.slice("example.com/foo".length)],
  ["a space in its name", C2SP.key.replace("/", " ")],
  ["a part too few", "example.com/foo+530d903a"],
])("a verifier key with %s is none", (_, text) => expect(parseVerifierKey(text)).toBeUndefined());
