/**
 * The Merkle tree of the ledger: RFC 6962 section 2.1, over SHA-256.
 *
 * A tree is read through `NodeReader`, which knows complete subtrees alone: `level` 0 are the leaf hashes, and the node
 * `(level, index)` covers the leaves from `index * 2**level` on, `2**level` of them. Sizes and indices are exact up
 * to 2**53 - 1.
 */
import { equalBytes } from "./encoding.ts";
import { sha256 } from "./sha256.ts";

export const HASH_BYTES = 32;

const LEAF = Uint8Array.of(0);
const NODE = Uint8Array.of(1);

/** The hash of a tree without leaves. */
export const EMPTY_ROOT: Uint8Array = sha256();

export function leafHash(entry: Uint8Array): Uint8Array {
  return sha256(LEAF, entry);
}

export function nodeHash(left: Uint8Array, right: Uint8Array): Uint8Array {
  return sha256(NODE, left, right);
}

/** Gives the hash of a complete subtree. Throws when it is not there. */
export type NodeReader = (level: number, index: number) => Uint8Array;

/** Complete subtrees that cover leaves [start, end), from left to right: at most two of each level. */
export interface Subtree {
  level: number;
  index: number;
}

/**
 * The subtrees of `[start, end)` as RFC 6962 splits that range: the largest aligned ones.
 *
 * Aligned means that `start` is 0, or a multiple of the largest power of two below `end - start`: so are all ranges
 * that the proofs here ask for.
 */
export function subtreesOf(start: number, end: number): Subtree[] {
  const found: Subtree[] = [];
  let at = start;
  while (at < end) {
    let level = 0;
    // Doubling in floating point: shifts would stop at 32 bits.
    for (let size = 2; at % size === 0 && at + size <= end; size *= 2) level++;
    found.push({ level, index: at / 2 ** level });
    at += 2 ** level;
  }
  return found;
}

/** The hash over leaves [start, end), which must be aligned as `subtreesOf` says. */
function rangeHash(read: NodeReader, start: number, end: number): Uint8Array {
  const hashes = subtreesOf(start, end).map(({ level, index }) => read(level, index));
  return hashes.reduceRight((right, left) => nodeHash(left, right));
}

export function rootHash(read: NodeReader, size: number): Uint8Array {
  return size === 0 ? EMPTY_ROOT : rangeHash(read, 0, size);
}

/** The largest power of two below `size`; `size` is at least 2. */
function splitOf(size: number): number {
  let split = 1;
  while (split * 2 < size) split *= 2;
  return split;
}

/**
 * PATH(index, D[size]) of RFC 6962 section 2.1.1, from the leaf's sibling upwards: at most 53 hashes.
 *
 * @throws RangeError when the tree has no such leaf
 */
export function inclusionProof(read: NodeReader, index: number, size: number): Uint8Array[] {
  if (!(index >= 0 && index < size)) throw new RangeError(`a tree of ${size} leaves has no leaf ${index}`);
  const proof: Uint8Array[] = [];
  let [start, end] = [0, size];
  while (end - start > 1) {
    const middle = start + splitOf(end - start);
    if (index < middle) {
      proof.push(rangeHash(read, middle, end));
      end = middle;
    } else {
      proof.push(rangeHash(read, start, middle));
      start = middle;
    }
  }
  return proof.reverse();
}

/**
 * PROOF(from, D[to]) of RFC 6962 section 2.1.2. Empty when `from` is 0 or `to`.
 *
 * @throws RangeError when `from` is larger than `to`
 */
export function consistencyProof(read: NodeReader, from: number, to: number): Uint8Array[] {
  if (!(from >= 0 && from <= to)) throw new RangeError(`a tree of ${to} leaves has no beginning of ${from}`);
  if (from === 0 || from === to) return [];
  const proof: Uint8Array[] = [];
  let [start, end] = [0, to];
  let known = true; // the subtree that holds the border is, so far, a beginning of the tree
  while (from !== end) {
    const middle = start + splitOf(end - start);
    if (from <= middle) {
      proof.push(rangeHash(read, middle, end));
      end = middle;
    } else {
      proof.push(rangeHash(read, start, middle));
      start = middle;
      known = false;
    }
  }
  // The verifier has the hash of the whole beginning, and needs that of the subtree at the border otherwise.
  if (!known) proof.push(rangeHash(read, start, end));
  return proof.reverse();
}

/** Whether the leaf is the one at `index` in the tree of `size` leaves with that root. False for anything malformed. */
export function verifyInclusion(
  claim: { leaf: Uint8Array; index: number; size: number; root: Uint8Array },
  proof: readonly Uint8Array[],
): boolean {
  const root = rootByPath(claim, proof);
  return root !== undefined && areHashes([claim.root]) && equalBytes(root, claim.root);
}

/** The root of the tree of `size` leaves in which the leaf is the one at `index`. Undefined for anything malformed. */
export function rootByPath(
  { leaf, index, size }: { leaf: Uint8Array; index: number; size: number },
  proof: readonly Uint8Array[],
): Uint8Array | undefined {
  if (!isCount(index) || !isCount(size) || index >= size || !areHashes([leaf, ...proof])) return undefined;
  let hash = leaf;
  let node = index;
  let last = size - 1;
  for (const sibling of proof) {
    if (last === 0) return undefined;
    if (node % 2 === 1 || node === last) {
      hash = nodeHash(sibling, hash);
      // The last node of a level without a sibling moves up as it is.
      while (node % 2 === 0 && node !== 0) [node, last] = [node / 2, Math.floor(last / 2)];
    } else {
      hash = nodeHash(hash, sibling);
    }
    [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
  }
  return last === 0 ? hash : undefined;
}

/** Whether the tree of `to` leaves begins with all leaves of that of `from`. False for anything malformed. */
export function verifyConsistency(
  claim: { from: number; to: number; fromRoot: Uint8Array; toRoot: Uint8Array },
  proof: readonly Uint8Array[],
): boolean {
  const { from, to, fromRoot, toRoot } = claim;
  if (!isCount(from) || !isCount(to) || from > to || !areHashes([fromRoot, toRoot, ...proof])) return false;
  if (from === to) return proof.length === 0 && equalBytes(fromRoot, toRoot);
  if (from === 0) return proof.length === 0 && equalBytes(fromRoot, EMPTY_ROOT);
  let node = from - 1;
  let last = to - 1;
  while (node % 2 === 1) [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
  const hashes = [...proof];
  // A beginning that is one complete subtree is its own first hash.
  const first = node === 0 ? fromRoot : hashes.shift();
  if (!first) return false;
  let [oldHash, newHash] = [first, first];
  for (const sibling of hashes) {
    if (last === 0) return false;
    if (node % 2 === 1 || node === last) {
      oldHash = nodeHash(sibling, oldHash);
      newHash = nodeHash(sibling, newHash);
      while (node % 2 === 0 && node !== 0) [node, last] = [node / 2, Math.floor(last / 2)];
    } else {
      newHash = nodeHash(newHash, sibling);
    }
    [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
  }
  return last === 0 && equalBytes(oldHash, fromRoot) && equalBytes(newHash, toRoot);
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

function areHashes(hashes: readonly Uint8Array[]): boolean {
  return hashes.every((hash) => hash.length === HASH_BYTES);
}

/** The new complete subtrees that one more leaf brings: written after the leaf, they are never changed again. */
export interface StoredNode extends Subtree {
  hash: Uint8Array;
}

/**
 * A tree that only grows, of which no more is held than the hashes at its right edge: at most 53.
 *
 * `append` gives the complete subtrees that came into being, for whoever stores them.
 */
export class GrowingTree {
  #size: number;
  /** Of the complete subtrees of `[0, size)`, from left to right. */
  readonly #edge: { level: number; hash: Uint8Array }[];

  constructor(size = 0, read?: NodeReader) {
    this.#size = size;
    this.#edge = subtreesOf(0, size).map(({ level, index }) => {
      if (!read) throw new RangeError("a tree that is not empty is taken up by reading its nodes");
      return { level, hash: read(level, index) };
    });
  }

  get size(): number {
    return this.#size;
  }

  get root(): Uint8Array {
    if (this.#edge.length === 0) return EMPTY_ROOT;
    return this.#edge.map(({ hash }) => hash).reduceRight((right, left) => nodeHash(left, right));
  }

  append(leaf: Uint8Array): StoredNode[] {
    return this.appendSubtree(0, leaf);
  }

  /**
   * Goes on with a complete subtree of which no more than the hash is known.
   *
   * @throws RangeError when none of that height begins at the right edge
   */
  appendSubtree(level: number, hash: Uint8Array): StoredNode[] {
    if (!(level >= 0 && level <= 52) || this.#size % 2 ** level !== 0)
      throw new RangeError(`no subtree of height ${level} begins at leaf ${this.#size}`);
    const created: StoredNode[] = [{ level, index: this.#size / 2 ** level, hash }];
    let node = { level, hash };
    for (let edge = this.#edge.at(-1); edge?.level === node.level; edge = this.#edge.at(-1)) {
      this.#edge.pop();
      node = { level: node.level + 1, hash: nodeHash(edge.hash, node.hash) };
      created.push({ ...node, index: Math.floor(this.#size / 2 ** node.level) });
    }
    this.#edge.push(node);
    this.#size += 2 ** level;
    return created;
  }
}

/** Of leaves that are all in memory. */
export function readerOf(leaves: readonly Uint8Array[]): NodeReader {
  const tree = new GrowingTree();
  const nodes = new Map<string, Uint8Array>();
  for (const leaf of leaves)
    for (const { level, index, hash } of tree.append(leaf)) nodes.set(`${level}/${index}`, hash);
  return (level, index) => {
    const hash = nodes.get(`${level}/${index}`);
    if (!hash) throw new RangeError(`no complete subtree ${level}/${index} in ${leaves.length} leaves`);
    return hash;
  };
}
