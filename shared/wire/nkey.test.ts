import { nkeys } from "nats";
import { expect, test } from "vitest";
import { isPublicNkey, makeNkey, type NkeyKind } from "./nkey.ts";

const KINDS: readonly NkeyKind[] = ["operator", "account", "user"];

test.each(KINDS)(
  "keys of an %s are read by the client's own library, which agrees on all of them",
  (kind) => {
    for (let i = 0; i < 20; i++) {
      const key = makeNkey(kind);
      const theirs = nkeys.fromSeed(Buffer.from(key.seed));
      expect(theirs.getPublicKey()).toBe(key.publicKey);
      const data = Buffer.from("signed");
      expect(theirs.verify(data, key.sign(data))).toBe(true);
      expect(KINDS.filter((other) => isPublicNkey(other, key.publicKey))).toEqual([kind]);
    }
  },
);

test("the same 32 bytes give the same key", () => {
  const raw = Buffer.alloc(32, 7);
  expect(makeNkey("user", raw).seed).toBe(makeNkey("user", raw).seed);
});

test("a key with a letter changed, cut off or of another alphabet is none", () => {
  const { publicKey } = makeNkey("user");
  const changed = publicKey.slice(0, 20) + (publicKey[20] === "A" ? "B" : "A") + publicKey.slice(21);
  for (const text of [changed, publicKey.slice(0, -1), "", publicKey.toLowerCase(), `${publicKey}A`])
    expect(isPublicNkey("user", text)).toBe(false);
});
