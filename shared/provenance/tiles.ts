/** The ledger as static files (C2SP tlog-tiles, https://c2sp.org/tlog-tiles): what is where, and how it is read back. */
import { concatBytes } from "./encoding.ts";
import { HASH_BYTES, type NodeReader, nodeHash } from "./merkle.ts";

/** Hashes of a full tile: a subtree of height 8. */
export const TILE_WIDTH = 256;
const TILE_HEIGHT = 8;
/** Of one leaf: its length stands in two bytes. */
export const ENTRY_MAX_BYTES = 65_535;

export interface Tile {
  /** 0: leaf hashes. Each hash of a higher one is that of a full tile of the level below. */
  level: number;
  index: number;
  /** Hashes in it, 1 to 256. */
  width: number;
}

/** `x001/x234/067` for 1234067. */
function indexPath(index: number): string {
  const groups: string[] = [];
  for (let rest = index, last = true; last || rest > 0; rest = Math.floor(rest / 1_000), last = false)
    groups.unshift(`${last ? "" : "x"}${String(rest % 1_000).padStart(3, "0")}`);
  return groups.join("/");
}

function partial(width: number): string {
  return width === TILE_WIDTH ? "" : `.p/${width}`;
}

/** Below the log's prefix, without a slash before it. */
export function tilePath({ level, index, width }: Tile): string {
  return `tile/${level}/${indexPath(index)}${partial(width)}`;
}

export function entriesPath({ index, width }: Omit<Tile, "level">): string {
  return `tile/entries/${indexPath(index)}${partial(width)}`;
}

const PATH = /^tile\/(entries|0|[1-9][0-9]?)\/((?:x[0-9]{3}\/)*[0-9]{3})(?:\.p\/([1-9][0-9]{0,2}))?$/;

/** Undefined for any text but the one path of a tile or of a bundle of entries (`level` "entries"). */
export function parseTilePath(
  path: string,
): (Omit<Tile, "level"> & { level: number | "entries" }) | undefined {
  const [, where, groups, part] = PATH.exec(path) ?? [];
  if (where === undefined || groups === undefined) return undefined;
  const index = Number(groups.replaceAll(/[x/]/g, ""));
  const width = part === undefined ? TILE_WIDTH : Number(part);
  if (!Number.isSafeInteger(index) || (part !== undefined && width >= TILE_WIDTH)) return undefined;
  const level = where === "entries" ? where : Number(where);
  if (level !== "entries" && level > 63) return undefined;
  const canonical = level === "entries" ? entriesPath({ index, width }) : tilePath({ level, index, width });
  return canonical === path ? { level, index, width } : undefined;
}

/** How many hashes the level of tiles has in a tree of that size. */
export function widthOfLevel(level: number, size: number): number {
  return Math.floor(size / TILE_WIDTH ** level);
}

/** The tile as a tree of that size has it; undefined when it has none there. */
export function tileIn(size: number, level: number, index: number): Tile | undefined {
  const width = Math.min(TILE_WIDTH, widthOfLevel(level, size) - index * TILE_WIDTH);
  return width > 0 ? { level, index, width } : undefined;
}

/** The bytes of a tile: its hashes one after the other. */
export function tileBytes(read: NodeReader, { level, index, width }: Tile): Uint8Array {
  const hashes = Array.from({ length: width }, (_, i) => read(level * TILE_HEIGHT, index * TILE_WIDTH + i));
  return concatBytes(...hashes);
}

/**
 * Reads the nodes of a tree from its tiles, as whoever has nothing but them does.
 *
 * `tile` gives the bytes of a tile, of exactly that width; it may throw.
 */
export function readerOfTiles(size: number, tile: (tile: Tile) => Uint8Array): NodeReader {
  return (level, index) => {
    const tileLevel = Math.floor(level / TILE_HEIGHT);
    const height = level - tileLevel * TILE_HEIGHT;
    const first = index * 2 ** height;
    const wanted = tileIn(size, tileLevel, Math.floor(first / TILE_WIDTH));
    const at = first % TILE_WIDTH;
    if (!wanted || at + 2 ** height > wanted.width)
      throw new RangeError(`no complete subtree ${level}/${index} in ${size} leaves`);
    const bytes = tile(wanted);
    if (bytes.length !== wanted.width * HASH_BYTES)
      throw new RangeError(`${tilePath(wanted)} has ${bytes.length} bytes, not ${wanted.width * HASH_BYTES}`);
    let hashes = Array.from({ length: 2 ** height }, (_, i) =>
      bytes.subarray((at + i) * HASH_BYTES, (at + i + 1) * HASH_BYTES),
    );
    while (hashes.length > 1)
      hashes = Array.from({ length: hashes.length / 2 }, (_, i) =>
        nodeHash(hashes[2 * i]!, hashes[2 * i + 1]!),
      );
    return hashes[0]!;
  };
}

/** Entries one after the other, each behind its length in two bytes. @throws RangeError for one that is too long */
export function entriesBytes(entries: readonly Uint8Array[]): Uint8Array {
  return concatBytes(
    ...entries.flatMap((entry) => {
      if (entry.length > ENTRY_MAX_BYTES)
        throw new RangeError(`a leaf has at most ${ENTRY_MAX_BYTES} bytes, not ${entry.length}`);
      return [Uint8Array.of(entry.length >> 8, entry.length & 0xff), entry];
    }),
  );
}

/** Undefined when the bytes do not end with an entry. */
export function parseEntries(bytes: Uint8Array): Uint8Array[] | undefined {
  const entries: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    if (at + 2 > bytes.length) return undefined;
    const length = bytes[at]! * 256 + bytes[at + 1]!;
    if (at + 2 + length > bytes.length) return undefined;
    entries.push(bytes.subarray(at + 2, at + 2 + length));
    at += 2 + length;
  }
  return entries;
}
