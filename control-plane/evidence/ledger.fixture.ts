/** A ledger in memory, with a key of its own, for tests of what reads one. */
import { generateKeyPairSync, sign } from "node:crypto";
import { formatCheckpoint } from "../../shared/provenance/checkpoint.ts";
import { leafHash, type NodeReader, readerOf, rootHash } from "../../shared/provenance/merkle.ts";
import {
  formatNote,
  formatVerifierKey,
  NOTE_SIGNATURE,
  signNote,
} from "../../shared/provenance/signed-note.ts";
import { systemClock } from "../../shared/system.ts";
import type { ReconcileFinding } from "../api/ledger-schemas.ts";
import { LedgerDesk } from "./ledger-desk.ts";
import type { LeafPlace } from "./ports.ts";

const ORIGIN = "insitu.dev/insitu.test/0123456789abcdef";

export class MemoryLedger {
  readonly leaves: Uint8Array[] = [];
  readonly places: (LeafPlace & { runId: string })[] = [];
  rootsPem: string[] = [];
  trouble = "";
  findings: ReconcileFinding[] = [];
  readonly #keys = generateKeyPairSync("ed25519");

  get verifierKey(): string {
    return formatVerifierKey(this.#noteKey);
  }

  get #noteKey() {
    const spki = this.#keys.publicKey.export({ type: "spki", format: "der" });
    return { name: ORIGIN, type: NOTE_SIGNATURE.ed25519, publicKey: new Uint8Array(spki.subarray(-32)) };
  }

  root(size: number): Uint8Array {
    return rootHash(readerOf(this.leaves.slice(0, size).map((leaf) => leafHash(leaf))), size);
  }

  checkpoint(size = this.leaves.length): { note: string; size: number; origin: string } {
    const text = formatCheckpoint({ origin: ORIGIN, size, root: this.root(size) });
    const signature = signNote(text, this.#noteKey, (message) => sign(null, message, this.#keys.privateKey));
    return { note: formatNote(text, [signature]), size, origin: ORIGIN };
  }

  #read: { size: number; reader: NodeReader } | undefined;
  #reader(): NodeReader {
    const { length: size } = this.leaves;
    if (this.#read?.size !== size)
      this.#read = { size, reader: readerOf(this.leaves.map((leaf) => leafHash(leaf))) };
    return this.#read.reader;
  }

  desk(): LedgerDesk {
    const ledger = this;
    return new LedgerDesk({
      clock: systemClock,
      tree: {
        get size() {
          return ledger.leaves.length;
        },
        root: (size) => ledger.root(size),
        read: (level, index) => ledger.#reader()(level, index),
        waitFor: async () => undefined,
        placesOf: (runId, stepId) =>
          ledger.places.filter(
            (one) => one.runId === runId && (stepId === undefined || one.stepId === stepId),
          ),
        entries: async (first, count) => ledger.leaves.slice(first, first + count),
      },
      checkpoints: {
        verifierKey: this.verifierKey,
        get newest() {
          return ledger.leaves.length === 0 ? undefined : ledger.checkpoint();
        },
        upToDate: async () => ledger.checkpoint(),
      },
      trust: async () => ({ trustDomain: "insitu.test", rootsPem: ledger.rootsPem }),
      trouble: () => ledger.trouble,
      async *reconcile() {
        yield* ledger.findings;
        const { length: leaves } = ledger.leaves;
        return { leaves, messages: leaves, receipts: 0, ended: 0, findings: ledger.findings.length };
      },
    });
  }
}
