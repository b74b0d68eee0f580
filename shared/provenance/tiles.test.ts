import fc from "fast-check";
import { expect, test } from "vitest";
import { utf8Bytes } from "./encoding.ts";
import { consistencyProof, inclusionProof, leafHash, readerOf, rootHash } from "./merkle.ts";
import {
  entriesBytes,
  entriesPath,
  parseEntries,
  parseTilePath,
  readerOfTiles,
  type Tile,
  tileBytes,
  tileIn,
  tilePath,
  widthOfLevel,
} from "./tiles.ts";

test("paths are those of the specification", () => {
  expect(tilePath({ level: 0, index: 1_234_067, width: 256 })).toBe("tile/0/x001/x234/067");
  expect(tilePath({ level: 1, index: 0, width: 17 })).toBe("tile/1/000.p/17");
  expect(entriesPath({ index: 273, width: 112 })).toBe("tile/entries/273.p/112");
});

test("a tree of 70,000 has the tiles that the specification counts", () => {
  expect(tileIn(70_000, 0, 272)?.width).toBe(256);
  expect(tileIn(70_000, 0, 273)?.width).toBe(112);
  expect(tileIn(70_000, 0, 274)).toBeUndefined();
  expect([tileIn(70_000, 1, 0)?.width, tileIn(70_000, 1, 1)?.width]).toEqual([256, 17]);
  expect(tileIn(70_000, 2, 0)?.width).toBe(1);
  expect(tileIn(70_000, 3, 0)).toBeUndefined();
  expect(widthOfLevel(0, 70_000)).toBe(70_000);
});

test("every path is read back as it was written", () => {
  fc.assert(
    fc.property(
      fc.nat(63),
      fc.nat({ max: 10 ** 12 }),
      fc.integer({ min: 1, max: 256 }),
      (level, index, width) => {
        expect(parseTilePath(tilePath({ level, index, width }))).toEqual({ level, index, width });
        expect(parseTilePath(entriesPath({ index, width }))).toEqual({ level: "entries", index, width });
      },
    ),
  );
});

test.each([
  "tile/0/1",
  "tile/0/x000/001",
  "tile/00/001",
  "tile/64/001",
  "tile/0/001.p/256",
  "tile/0/001.p/0",
  "tile/0/001.p/01",
  "tile/0/../001",
  "tile/0/001/",
  "/tile/0/001",
  "tile/-1/001",
])("%s is no path of a tile", (path) => expect(parseTilePath(path)).toBeUndefined());

const leaves = Array.from({ length: 70_000 }, (_, i) => leafHash(utf8Bytes(`${i}`)));
const read = readerOf(leaves);

test("proofs made from tiles are those made from the tree", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: leaves.length }), fc.nat(), fc.nat(), (size, some, other) => {
      const asked = new Map<string, Tile>();
      const tiles = readerOfTiles(size, (tile) => {
        asked.set(tilePath(tile), tile);
        return tileBytes(read, tile);
      });
      expect(rootHash(tiles, size)).toEqual(rootHash(read, size));
      expect(inclusionProof(tiles, some % size, size)).toEqual(inclusionProof(read, some % size, size));
      expect(consistencyProof(tiles, other % size, size)).toEqual(consistencyProof(read, other % size, size));
      for (const tile of asked.values()) expect(tileIn(size, tile.level, tile.index)).toEqual(tile);
    }),
    { numRuns: 50 },
  );
});

test("a tile of another length is not read", () => {
  const short = readerOfTiles(300, (tile) => tileBytes(read, tile).subarray(1));
  expect(() => rootHash(short, 300)).toThrow(/tile\/1\/000.p\/1 has 31 bytes, not 32/);
});

test("entries are read back as they were written; what is cut off is not", () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 600 }), { maxLength: 20 }), (entries) => {
      const bytes = entriesBytes(entries);
      expect(parseEntries(bytes)?.map((entry) => [...entry])).toEqual(entries.map((entry) => [...entry]));
      if (entries.length > 0) expect(parseEntries(bytes.subarray(0, -1))?.length).not.toBe(entries.length);
    }),
  );
  expect(() => entriesBytes([new Uint8Array(65_536)])).toThrow(/at most 65535 bytes, not 65536/);
});
