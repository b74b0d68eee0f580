import { generateKeyPairSync, sign } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { leafHash, readerOf, rootHash } from "../provenance/merkle.ts";
import { BatchPlace, BatchTree, batchAt, signedBatch, verifyBatch } from "./batch-signature.ts";

const leavesOf = (size: number) => Array.from({ length: size }, (_, i) => leafHash(Buffer.from(`leaf ${i}`)));

test("the root of a batch is the one of RFC 6962", () => {
  for (let size = 1; size <= 70; size++) {
    const leaves = leavesOf(size);
    expect(new BatchTree(leaves).root).toEqual(rootHash(readerOf(leaves), size));
  }
});

test("each leaf leads to the root of its batch, and from no other place", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 300 }), fc.nat(), fc.nat(), (size, a, b) => {
      const tree = new BatchTree(leavesOf(size));
      const [index, other] = [a % size, b % size];
      const place = tree.placeOf(index);
      expect(BatchPlace.parse(place)).toEqual(place);
      const leaf = leavesOf(size)[index]!;
      expect(batchAt(leaf, place)).toEqual({ size, root: tree.root });
      if (other === index) return;
      expect(batchAt(leaf, tree.placeOf(other))?.root).not.toEqual(tree.root);
      expect(batchAt(leaf, { ...place, index: other })?.root).not.toEqual(tree.root);
    }),
  );
});

test("the largest batch has places that can be kept", () => {
  const tree = new BatchTree(leavesOf(10_000));
  for (const index of [0, 4_711, 9_999]) expect(BatchPlace.safeParse(tree.placeOf(index)).success).toBe(true);
});

test.each([
  ["beyond the batch", { index: 3, size: 3, path: "" }],
  ["with a path too short", { index: 0, size: 3, path: "" }],
  ["with a path of halves of hashes", { index: 0, size: 2, path: Buffer.alloc(48).toString("base64") }],
])("a place %s leads nowhere", (_, place) => {
  expect(batchAt(leafHash(Buffer.from("x")), place)).toBeUndefined();
});

test("a signature is for one purpose, agent, root and size", () => {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const agentUri = "spiffe://insitu.local/environment/a/agent/b";
  const batch = { size: 5, root: new BatchTree(leavesOf(5)).root };
  const signature = sign(null, signedBatch("insitu.reports.v1", agentUri, batch), privateKey);
  const signed = { purpose: "insitu.reports.v1", agentUri, batch } as const;
  expect(verifyBatch(publicKey, signed, signature)).toBe(true);
  for (const other of [
    { ...signed, purpose: "insitu.logs.v1" as const },
    { ...signed, agentUri: `${agentUri}c` },
    { ...signed, batch: { ...batch, size: 6 } },
    { ...signed, batch: { ...batch, root: new BatchTree(leavesOf(6)).root } },
  ])
    expect(verifyBatch(publicKey, other, signature)).toBe(false);
  expect(verifyBatch(publicKey, signed, signature.subarray(1))).toBe(false);
});
