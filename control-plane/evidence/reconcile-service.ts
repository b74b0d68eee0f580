/**
 * Compares the ledger with what it is made of: each message of the sources is made leaves of again, and the leaves that
 * are there must be those, all of them, once, in that order. Beside it: receipts that are missing, or do not verify.
 */
import { equalBytes } from "../../shared/provenance/encoding.ts";
import { entryBytes, type LedgerEntry } from "../../shared/provenance/ledger-entry.ts";
import { type ReceiptTrust, receiptVerifier } from "../../shared/provenance/verify-receipt.ts";
import type { Clock } from "../../shared/system.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import type { ReconcileFinding, ReconcileSummary } from "../api/ledger-schemas.ts";
import { Leaves } from "./leaves.ts";
import {
  LEDGER_SOURCES,
  type LedgerSource,
  type LedgerSources,
  type LedgerStore,
  type SourceMessage,
  type StoredLeaf,
} from "./ports.ts";

export interface ReconcileOptions {
  sources: LedgerSources;
  store: Pick<LedgerStore, "leavesOf">;
  trust: ReceiptTrust;
  clock: Clock;
}

/** What has only just been appended is a leaf a moment later. */
const LOOKS = 10;
const LOOK_MS = 300;

/** Yields what it finds as it finds it, and gives the counts at last. */
export async function* reconcile(
  options: ReconcileOptions,
  signal: AbortSignal,
): AsyncGenerator<ReconcileFinding, ReconcileSummary> {
  const counts = { leaves: 0, messages: 0, receipts: 0, ended: 0 };
  let findings = 0;
  for (const source of LEDGER_SOURCES) {
    for await (const finding of compare(source, options, counts, signal)) {
      findings += 1;
      yield finding;
    }
  }
  return { ...counts, findings };
}

type Counts = Omit<ReconcileSummary, "findings">;

async function* compare(
  source: LedgerSource,
  options: ReconcileOptions,
  counts: Counts,
  signal: AbortSignal,
): AsyncGenerator<ReconcileFinding> {
  const { sources, trust } = options;
  const made = new Leaves(sources);
  const receiptsOf = receiptFindings(trust, counts);
  const cursor = new LeafCursor(source, options, signal);
  for await (const message of sources.read(source, signal)) {
    counts.messages += 1;
    for (const entry of await made.of(message)) {
      yield* cursor.passOver(entry);
      const leaf = await cursor.take(entry);
      if (!leaf) {
        yield { kind: "missing", where: placeOf(entry), detail: "no leaf was made of it" };
        continue;
      }
      counts.leaves += 1;
      if (isWhole(leaf, message)) break;
      if (!equalBytes(leaf.bytes, entryBytes(entry)))
        yield {
          kind: "changed",
          where: `leaf ${leaf.index}`,
          detail: `it is not what ${placeOf(entry)} says`,
        };
      yield* receiptsOf(leaf);
    }
  }
  yield* cursor.rest(await sources.lastSeq(source));
}

/** Written by a release that could not read the message: the leaf stands for the whole of it. */
function isWhole({ entry }: StoredLeaf, message: SourceMessage): boolean {
  return entry?.kind === "opaque" && entry.reason === "unreadable" && entry.digest === message.digest();
}

/** Leaves of one source in the order of the ledger, which is to be that of the source. */
class LeafCursor {
  readonly #source: LedgerSource;
  readonly #options: ReconcileOptions;
  readonly #signal: AbortSignal;
  #leaves: AsyncIterator<StoredLeaf>;
  #head: StoredLeaf | undefined;
  #index = -1;
  #last: LedgerEntry["source"] | undefined;

  constructor(source: LedgerSource, options: ReconcileOptions, signal: AbortSignal) {
    this.#source = source;
    this.#options = options;
    this.#signal = signal;
    this.#leaves = options.store.leavesOf(source, this.#index)[Symbol.asyncIterator]();
  }

  /** What stands before the place of the entry has no business there. */
  async *passOver({ source }: LedgerEntry): AsyncGenerator<ReconcileFinding> {
    for (let head = await this.#peek(true); head; head = await this.#peek(true)) {
      if (head.entry && order(head.entry.source, source) >= 0) return;
      yield this.#surplus(head);
      this.#advance(head);
    }
  }

  async take({ source }: LedgerEntry): Promise<StoredLeaf | undefined> {
    const head = await this.#peek(true);
    if (!head?.entry || order(head.entry.source, source) !== 0) return undefined;
    this.#advance(head);
    return head;
  }

  /** `lastSeq`: what came after the comparison began has leaves that nobody looked for. */
  async *rest(lastSeq: number): AsyncGenerator<ReconcileFinding> {
    for (let head = await this.#peek(false); head; head = await this.#peek(false)) {
      const isLater = head.entry !== undefined && head.entry.source.seq <= lastSeq;
      if (!isLater || !this.#isBehind(head)) yield this.#surplus(head);
      this.#advance(head);
    }
  }

  #surplus(leaf: StoredLeaf): ReconcileFinding {
    const where = `leaf ${leaf.index}`;
    if (!leaf.entry) return { kind: "unfounded", where, detail: "it is no leaf of this release" };
    if (this.#isBehind(leaf))
      return {
        kind: "unfounded",
        where,
        detail: `${placeOf(leaf.entry)} is not there, or says no such thing`,
      };
    return { kind: "double", where, detail: `${placeOf(leaf.entry)} has a leaf already, or comes too late` };
  }

  #isBehind({ entry }: StoredLeaf): boolean {
    return this.#last === undefined || (entry !== undefined && order(entry.source, this.#last) > 0);
  }

  #advance(leaf: StoredLeaf): void {
    this.#head = undefined;
    this.#index = leaf.index;
    if (leaf.entry && this.#isBehind(leaf)) this.#last = leaf.entry.source;
  }

  async #peek(isExpected: boolean): Promise<StoredLeaf | undefined> {
    const { store, clock } = this.#options;
    for (let looks = 0; this.#head === undefined; looks++) {
      const next = await this.#leaves.next();
      if (next.done !== true) this.#head = next.value;
      else if (!isExpected || looks >= LOOKS) return undefined;
      else {
        await clock.sleep(LOOK_MS, this.#signal);
        this.#leaves = store.leavesOf(this.#source, this.#index)[Symbol.asyncIterator]();
      }
    }
    return this.#head;
  }
}

function order(a: LedgerEntry["source"], b: LedgerEntry["source"]): number {
  return a.seq - b.seq || a.part - b.part;
}

function receiptFindings(trust: ReceiptTrust, counts: Counts) {
  const verify = receiptVerifier(trust);
  return function* ({ entry, index }: StoredLeaf): Generator<ReconcileFinding> {
    if (entry?.kind === "receipt") {
      counts.receipts += 1;
      const verified = verify(entry.receipt);
      if (verified.kind === "refused")
        yield { kind: "bad-receipt", where: `leaf ${index}`, detail: verified.reason };
      return;
    }
    if (entry?.kind !== "decision") return;
    const { decision } = entry;
    const isLost = decision.kind === "attempt.lost" && decision.agent !== null;
    if (decision.kind !== "attempt.ended" && !isLost) return;
    counts.ended += 1;
    if (decision.receipt) return;
    const why = isLost ? `it was lost (${decision.reason})` : "its agent sent none";
    yield {
      kind: "no-receipt",
      where: attemptOf(decision.attempt),
      detail: `${why}, agent ${decision.agent}`,
    };
  };
}

function attemptOf({ runId, stepId, attempt, epoch }: LeaseKey): string {
  return `attempt ${attempt} (epoch ${epoch}) of step ${stepId} of run ${runId}`;
}

function placeOf({ source: { stream, seq, part } }: LedgerEntry): string {
  return `part ${part} of message ${seq} of ${stream}`;
}
