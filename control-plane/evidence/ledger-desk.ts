/** Answers what auditors ask of the ledger: checkpoints, tiles (C2SP tlog-tiles), and proofs of what is in it. */
import { InsituError } from "../../shared/errors.ts";
import { toBase64 } from "../../shared/provenance/encoding.ts";
import { inclusionProof } from "../../shared/provenance/merkle.ts";
import {
  entriesBytes,
  parseTilePath,
  TILE_WIDTH,
  tileBytes,
  widthOfLevel,
} from "../../shared/provenance/tiles.ts";
import type { ReceiptTrust } from "../../shared/provenance/verify-receipt.ts";
import type { Clock } from "../../shared/system.ts";
import type { LedgerKeyView, LedgerProofView } from "../api/ledger-schemas.ts";
import type { LedgerQueries } from "../api/services.ts";
import type { LedgerReader } from "./ports.ts";

/** Newest checkpoint, as this replica has found it to be so. */
export interface Checkpoints {
  readonly verifierKey: string;
  readonly newest: { note: string; size: number; origin: string } | undefined;
  upToDate(signal: AbortSignal): Promise<{ note: string; size: number }>;
}

const APPEARS_MS = 2_000;
const LOOK_MS = 100;

export interface LedgerDeskOptions {
  clock: Clock;
  tree: LedgerReader;
  checkpoints: Checkpoints;
  trust(): Promise<ReceiptTrust>;
  trouble(): string;
  reconcile: LedgerQueries["reconcile"];
}

export class LedgerDesk implements LedgerQueries {
  readonly #options: LedgerDeskOptions;

  constructor(options: LedgerDeskOptions) {
    this.#options = options;
  }

  async key(): Promise<LedgerKeyView> {
    const { checkpoints, trust, trouble } = this.#options;
    const { verifierKey } = checkpoints;
    const origin = verifierKey.slice(0, verifierKey.indexOf("+"));
    const { trustDomain, rootsPem } = await trust();
    return { origin, verifierKey, trustDomain, rootsPem: [...rootsPem], trouble: trouble() };
  }

  async checkpoint(upToDate: boolean, signal: AbortSignal): Promise<string> {
    const { checkpoints } = this.#options;
    return upToDate ? (await checkpoints.upToDate(signal)).note : this.#newest().note;
  }

  async tile(path: string): Promise<{ bytes: Uint8Array; full: boolean }> {
    const { tree } = this.#options;
    const tile = parseTilePath(path);
    const { size } = this.#newest();
    const level = tile?.level === "entries" ? 0 : tile?.level;
    // Nothing is shown beyond the checkpoint: who reads it could not tell whether it is so.
    if (!tile || tile.index * TILE_WIDTH + tile.width > widthOfLevel(level!, size))
      throw new InsituError("not-found", `there is no ${path} in a ledger of ${size} leaves`);
    const { index, width } = tile;
    const full = width === TILE_WIDTH;
    if (tile.level === "entries")
      return { bytes: entriesBytes(await tree.entries(index * TILE_WIDTH, width)), full };
    return { bytes: tileBytes(tree.read, { level: tile.level, index, width }), full };
  }

  async prove(runId: string, step: string, signal: AbortSignal): Promise<LedgerProofView> {
    const { tree, checkpoints, clock } = this.#options;
    // What has only just happened is a leaf a moment later.
    for (let waited = 0; tree.placesOf(runId, step).length === 0 && waited < APPEARS_MS; waited += LOOK_MS)
      await clock.sleep(LOOK_MS, signal);
    const { note, size } = await checkpoints.upToDate(signal);
    const places = tree.placesOf(runId, step).filter(({ index }) => index < size);
    if (places.length === 0)
      throw new InsituError(
        "not-found",
        `the ledger has nothing about step ${step} of run ${runId}: it holds steps that read or write datasets, from when they were placed (insitu runs show ${runId})`,
      );
    const leaves: LedgerProofView["leaves"] = [];
    for (const { index, kind, attempt, epoch } of places) {
      const [leaf] = await tree.entries(index, 1);
      const proof = inclusionProof(tree.read, index, size).map((hash) => toBase64(hash));
      leaves.push({ index, kind, attempt, epoch, leaf: toBase64(leaf!), proof });
    }
    const { trouble: _, ...key } = await this.key();
    return { v: 1, run: runId, step, checkpoint: note, key, leaves };
  }

  reconcile(signal: AbortSignal): ReturnType<LedgerQueries["reconcile"]> {
    return this.#options.reconcile(signal);
  }

  #newest(): { note: string; size: number } {
    const { newest } = this.#options.checkpoints;
    if (newest) return newest;
    const why = this.#options.trouble() || "it is signed a moment after the first start; ask again";
    throw new InsituError("not-found", `there is no checkpoint of the ledger yet: ${why}`);
  }
}
