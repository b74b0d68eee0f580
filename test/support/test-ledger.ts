/** A ledger that a test grows and shows, with a key of its own or that of another one. */
import { generateKeyPairSync, type KeyPairKeyObjectResult, sign } from "node:crypto";
import { formatCheckpoint } from "../../shared/provenance/checkpoint.ts";
import { utf8Bytes } from "../../shared/provenance/encoding.ts";
import { consistencyProof, leafHash, readerOf, rootHash } from "../../shared/provenance/merkle.ts";
import type { ShownCheckpoint } from "../../shared/provenance/remembered-checkpoint.ts";
import {
  formatNote,
  formatVerifierKey,
  NOTE_SIGNATURE,
  signNote,
} from "../../shared/provenance/signed-note.ts";

const ORIGIN = "insitu.dev/insitu.test/0123456789abcdef";

export class TestLog {
  readonly #keys: KeyPairKeyObjectResult;
  readonly #leaves: Uint8Array[] = [];

  /** Empty, with the key of another one if there is one. */
  constructor(of?: TestLog) {
    this.#keys = of ? of.#keys : generateKeyPairSync("ed25519");
  }

  grow(leaves: number, text = "leaf"): this {
    for (let i = 0; i < leaves; i++) this.#leaves.push(leafHash(utf8Bytes(`${text} ${this.#leaves.length}`)));
    return this;
  }

  /** As it is now, with the proof from a size. */
  shown(from: number): ShownCheckpoint {
    const { length: size } = this.#leaves;
    const read = readerOf(this.#leaves);
    const spki = this.#keys.publicKey.export({ type: "spki", format: "der" });
    const key = { name: ORIGIN, type: NOTE_SIGNATURE.ed25519, publicKey: new Uint8Array(spki.subarray(-32)) };
    const text = formatCheckpoint({ origin: ORIGIN, size, root: rootHash(read, size) });
    const signature = signNote(text, key, (message) => sign(null, message, this.#keys.privateKey));
    const proof = from <= size ? consistencyProof(read, from, size) : [];
    return { verifierKey: formatVerifierKey(key), note: formatNote(text, [signature]), proof };
  }
}
