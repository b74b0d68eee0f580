import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { fromHex, toHex } from "./encoding.ts";
import {
  consistencyProof,
  EMPTY_ROOT,
  GrowingTree,
  inclusionProof,
  leafHash,
  nodeHash,
  readerOf,
  rootHash,
  verifyConsistency,
  verifyInclusion,
} from "./merkle.ts";

const bytes = (text: string): Uint8Array => Buffer.from(text, "utf8");

describe("vectors of the RFC 6962 hasher (github.com/transparency-dev/merkle, rfc6962/rfc6962_test.go)", () => {
  test.each([
    ["an empty tree", EMPTY_ROOT, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
    [
      "an empty leaf",
      leafHash(bytes("")),
      "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    ],
    [
      "a leaf",
      leafHash(bytes("L123456")),
      "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56",
    ],
    [
      "a node",
      nodeHash(bytes("N123"), bytes("N456")),
      "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb",
    ],
  ])("%s", (_, hash, expected) => expect(toHex(hash)).toBe(expected));
});

/** Leaves and roots of the Certificate Transparency reference implementation (cpp/merkletree/merkle_tree_test.cc). */
const LEAVES = [
  "",
  "00",
  "10",
  "2021",
  "3031",
  "40414243",
  "5051525354555657",
  "606162636465666768696a6b6c6d6e6f",
];
const ROOTS = [
  "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
  "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
  "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
  "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
  "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
  "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
  "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
  "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

test("roots of the Certificate Transparency reference implementation", () => {
  const leaves = LEAVES.map((hex) => leafHash(fromHex(hex)!));
  const tree = new GrowingTree();
  for (const [i, leaf] of leaves.entries()) {
    tree.append(leaf);
    expect(toHex(tree.root)).toBe(ROOTS[i]);
    expect(toHex(rootHash(readerOf(leaves), i + 1))).toBe(ROOTS[i]);
  }
});

/** The definition of RFC 6962 section 2.1, word by word. */
function plainRoot(leaves: readonly Uint8Array[]): Uint8Array {
  if (leaves.length === 0) return EMPTY_ROOT;
  if (leaves.length === 1) return leaves[0]!;
  let split = 1;
  while (split * 2 < leaves.length) split *= 2;
  return nodeHash(plainRoot(leaves.slice(0, split)), plainRoot(leaves.slice(split)));
}

const many = Array.from({ length: 70 }, (_, i) => leafHash(bytes(`leaf ${i}`)));
const read = readerOf(many);

test("every leaf of every tree up to 70 is proved, and no other leaf, place, size or root", () => {
  for (let size = 1; size <= many.length; size++) {
    const root = rootHash(read, size);
    expect(root).toEqual(plainRoot(many.slice(0, size)));
    for (let index = 0; index < size; index++) {
      const proof = inclusionProof(read, index, size);
      const claim = { leaf: many[index]!, index, size, root };
      expect(verifyInclusion(claim, proof)).toBe(true);
      expect(verifyInclusion({ ...claim, leaf: leafHash(bytes("other")) }, proof)).toBe(false);
      expect(verifyInclusion({ ...claim, index: index + 1 }, proof)).toBe(false);
      expect(verifyInclusion({ ...claim, root: plainRoot(many.slice(0, size).reverse()) }, proof)).toBe(
        size === 1,
      );
      expect(verifyInclusion(claim, [...proof, root])).toBe(false);
      if (proof.length > 0) expect(verifyInclusion(claim, proof.slice(1))).toBe(false);
    }
  }
});

test("every beginning of every tree up to 70 is proved, and no other", () => {
  for (let to = 1; to <= many.length; to++) {
    for (let from = 0; from <= to; from++) {
      const proof = consistencyProof(read, from, to);
      const claim = { from, to, fromRoot: rootHash(read, from), toRoot: rootHash(read, to) };
      expect(verifyConsistency(claim, proof)).toBe(true);
      const forged = leafHash(bytes("forged"));
      expect(verifyConsistency({ ...claim, fromRoot: forged }, proof)).toBe(false);
      if (from > 0) expect(verifyConsistency({ ...claim, toRoot: forged }, proof)).toBe(false);
      expect(verifyConsistency(claim, [...proof, forged])).toBe(false);
      if (proof.length > 0) expect(verifyConsistency(claim, proof.slice(0, -1))).toBe(false);
    }
  }
});

test("a change of any byte of a proof is found", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 2, max: many.length }).chain((size) => fc.tuple(fc.nat(size - 1), fc.constant(size))),
      fc.nat(),
      fc.nat(255),
      ([index, size], at, flip) => {
        const proof = inclusionProof(read, index, size).map((hash) => Uint8Array.from(hash));
        const hash = proof[at % proof.length]!;
        hash[at % 32]! ^= flip;
        const claim = { leaf: many[index]!, index, size, root: rootHash(read, size) };
        expect(verifyInclusion(claim, proof)).toBe(flip === 0);
      },
    ),
  );
});

test("a tree that was written down goes on as if it had never stopped", () => {
  for (let size = 0; size < many.length; size++) {
    const taken = new GrowingTree(size, read);
    for (const leaf of many.slice(size)) taken.append(leaf);
    expect(taken.root).toEqual(rootHash(read, many.length));
  }
});

test.each([
  ["a leaf that is not there", () => inclusionProof(read, 5, 5)],
  ["a beginning that is longer than the tree", () => consistencyProof(read, 6, 5)],
  ["a node that is not complete", () => read(7, 0)],
])("%s is refused", (_, ask) => expect(ask).toThrow(RangeError));

test.each([
  { index: -1, size: 1 },
  { index: 0.5, size: 1 },
  { index: 0, size: 0 },
  { index: 0, size: Number.NaN },
])("a malformed claim ($index of $size) is not true", ({ index, size }) => {
  expect(verifyInclusion({ leaf: many[0]!, index, size, root: many[0]! }, [])).toBe(false);
});
