import { generateKeyPairSync, sign } from "node:crypto";
import { expect, test } from "vitest";
import { formatCheckpoint, openCheckpoint, parseCheckpoint } from "./checkpoint.ts";
import { fromBase64 } from "./encoding.ts";
import { EMPTY_ROOT } from "./merkle.ts";
import { cosign, formatNote, NOTE_SIGNATURE, signNote } from "./signed-note.ts";

/** C2SP tlog-checkpoint, the example at its beginning. */
const EXAMPLE = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

test("the published checkpoint is read, and written as it was", () => {
  const checkpoint = parseCheckpoint(EXAMPLE)!;
  expect(checkpoint).toEqual({
    origin: "example.com/behind-the-sofa",
    size: 20_852_163,
    root: fromBase64("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="),
  });
  expect(formatCheckpoint(checkpoint)).toBe(EXAMPLE);
  expect(parseCheckpoint(`${EXAMPLE}extension\n`)).toEqual(checkpoint);
});

test.each([
  ["no newline at its end", EXAMPLE.slice(0, -1)],
  ["a leading zero", EXAMPLE.replace("20852163", "020852163")],
  ["a negative size", EXAMPLE.replace("20852163", "-1")],
  ["a size that no number holds", EXAMPLE.replace("20852163", "99999999999999999999")],
  ["a root of another length", EXAMPLE.replace("CsUY", "")],
  ["no origin", EXAMPLE.slice("example.com/behind-the-sofa".length)],
  ["an empty extension", `${EXAMPLE}\n`],
  ["no leaves, and yet a root", EXAMPLE.replace("20852163", "0")],
])("a text with %s is no checkpoint", (_, text) => expect(parseCheckpoint(text)).toBeUndefined());

function keyOf<T extends 1 | 4>(name: string, type: T) {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  const raw = new Uint8Array(publicKey.export({ format: "der", type: "spki" }).subarray(-32));
  return {
    key: { name, type, publicKey: raw },
    sign: (message: Uint8Array) => new Uint8Array(sign(null, message, privateKey)),
  };
}

test("a checkpoint is opened by the log's key alone; who witnessed it is told", () => {
  const log = keyOf("insitu.example/ledger", NOTE_SIGNATURE.ed25519);
  const witness = keyOf("witness.example/w", NOTE_SIGNATURE.cosignature);
  const text = formatCheckpoint({ origin: log.key.name, size: 0, root: EMPTY_ROOT });
  const own = signNote(text, log.key, log.sign);
  const seen = cosign(text, witness.key, 1, witness.sign);
  expect(openCheckpoint(formatNote(text, [own, seen]), log.key, [witness.key])).toMatchObject({
    kind: "verified",
    checkpoint: { size: 0 },
    witnesses: [witness.key],
  });
  expect(openCheckpoint(formatNote(text, [own, seen]), log.key)).toMatchObject({ witnesses: [] });
  expect(openCheckpoint(formatNote(text, [seen]), log.key, [witness.key])).toEqual({
    kind: "refused",
    reason: "insitu.example/ledger has not signed it",
  });
  const foreign = formatCheckpoint({ origin: "other.example/ledger", size: 0, root: EMPTY_ROOT });
  expect(openCheckpoint(formatNote(foreign, [signNote(foreign, log.key, log.sign)]), log.key)).toEqual({
    kind: "refused",
    reason: "it is of other.example/ledger, not of insitu.example/ledger",
  });
});
