import { beforeEach, expect, test } from "vitest";
import { openCheckpoint } from "../../shared/provenance/checkpoint.ts";
import { fromBase64, utf8Bytes } from "../../shared/provenance/encoding.ts";
import { inclusionProof, leafHash, rootHash, verifyInclusion } from "../../shared/provenance/merkle.ts";
import { parseVerifierKey } from "../../shared/provenance/signed-note.ts";
import { entriesPath, parseEntries, readerOfTiles, tilePath } from "../../shared/provenance/tiles.ts";
import { testApi } from "./api.fixture.ts";
import type { LedgerKeyView, LedgerProofView } from "./ledger-schemas.ts";

const SIZE = 600;
let api: ReturnType<typeof testApi>;
beforeEach(() => {
  api = testApi();
  const { memory } = api.services;
  for (let i = 0; i < SIZE; i++) memory.leaves.push(utf8Bytes(`leaf ${i}`));
  memory.places.push({ runId: "r1", stepId: "fit", attempt: 1, epoch: 1, kind: "receipt", index: 321 });
});

async function bytesOf(path: string): Promise<Uint8Array> {
  const response = await api.call(`/v1/ledger/${path}`);
  expect([path, response.status]).toEqual([path, 200]);
  return new Uint8Array(await response.arrayBuffer());
}

async function checkpoint() {
  const key = (await (await api.call("/v1/ledger/key")).json()) as LedgerKeyView;
  const note = await (await api.call("/v1/ledger/checkpoint?upToDate=true")).text();
  const opened = openCheckpoint(note, parseVerifierKey(key.verifierKey)!);
  if (opened.kind === "refused") throw new Error(opened.reason);
  expect(opened.checkpoint.origin).toBe(key.origin);
  return opened.checkpoint;
}

test("whoever has nothing but tiles and a checkpoint finds the checkpoint's root, and proves a leaf", async () => {
  const { size, root } = await checkpoint();
  const tiles = new Map<string, Uint8Array>();
  const wanted = [
    { level: 0, index: 0, width: 256 },
    { level: 0, index: 1, width: 256 },
    { level: 0, index: 2, width: 88 },
    { level: 1, index: 0, width: 2 },
  ];
  for (const tile of wanted) tiles.set(tilePath(tile), await bytesOf(tilePath(tile)));
  const read = readerOfTiles(size, (tile) => tiles.get(tilePath(tile))!);
  expect(rootHash(read, size)).toEqual(root);
  const entries = parseEntries(await bytesOf(entriesPath({ index: 2, width: 88 })))!;
  expect(entries).toHaveLength(88);
  const claim = { leaf: leafHash(entries[87]!), index: SIZE - 1, size, root };
  expect(verifyInclusion(claim, inclusionProof(read, SIZE - 1, size))).toBe(true);
});

test("a full tile may be kept for ever, one that grows may not", async () => {
  const full = await api.call("/v1/ledger/tile/0/000");
  expect(full.headers.get("cache-control")).toBe("private, max-age=31536000, immutable");
  const growing = await api.call("/v1/ledger/tile/0/002.p/88");
  expect(growing.headers.get("cache-control")).toBe("no-store");
});

test.each([
  "tile/0/002", // not full yet
  "tile/0/002.p/89",
  "tile/0/003.p/1",
  "tile/1/000.p/3",
  "tile/2/000.p/1",
  "tile/entries/002.p/200",
  "tile/0/2",
  "tile/0/000.p/256",
  "tile/-1/000",
  "tile/0/%2e%2e/key",
  "tile/",
])("there is nothing at %s", async (path) => {
  expect((await api.call(`/v1/ledger/${path}`)).status).toBe(404);
});

test("a proof leads from a leaf to the checkpoint beside it", async () => {
  const { root, size } = await checkpoint();
  const proof = (await (await api.call("/v1/ledger/proofs/r1/fit")).json()) as LedgerProofView;
  expect(proof.leaves.map(({ index, kind }) => [index, kind])).toEqual([[321, "receipt"]]);
  const [{ leaf, proof: path, index }] = proof.leaves as [LedgerProofView["leaves"][number]];
  const claim = { leaf: leafHash(fromBase64(leaf)!), index, size, root };
  expect(
    verifyInclusion(
      claim,
      path.map((hash) => fromBase64(hash)!),
    ),
  ).toBe(true);
});

test("what is not in the ledger has no proof, and says why that may be", async () => {
  const response = await api.call("/v1/ledger/proofs/r2/fit");
  expect(response.status).toBe(404);
  expect(await response.text()).toMatch(/steps that read or write datasets/);
});

test("it is for auditors: another caller is told which right is missing", async () => {
  const principal = { name: "ci", grants: [{ role: "runner" as const, pipelines: null }] };
  const other = testApi({ access: { authenticate: async () => principal } });
  for (const path of ["key", "checkpoint", "tile/0/000.p/1", "proofs/r1/fit"]) {
    const response = await other.call(`/v1/ledger/${path}`);
    expect([path, response.status]).toEqual([path, 403]);
    expect(await response.text()).toMatch(/audit:read/);
  }
});
