/**
 * Writes the ledger: makes leaves of the run events and of the applies, in the order of each stream.
 *
 * One replica writes at a time; which one follows from the shards. A leaf is appended only behind the very leaf that
 * its writer believes to be the last, so a second writer gets a conflict, and begins where the first has come to.
 * Where that is, the last leaf of each source tells: nothing about it is stored apart.
 */
import { InsituError } from "../../shared/errors.ts";
import { equalBytes } from "../../shared/provenance/encoding.ts";
import { entryBytes, type LedgerEntry } from "../../shared/provenance/ledger-entry.ts";
import type { Clock } from "../../shared/system.ts";
import { Leaves } from "./leaves.ts";
import {
  LEDGER_SOURCES,
  type LedgerSource,
  type LedgerSources,
  type LedgerStore,
  type SourceMessage,
} from "./ports.ts";

const RETRY_MS = 500;
/** Leaves on their way to the store at the same time. */
const APPEND_MAX = 200;

export interface LedgerServiceOptions {
  store: LedgerStore;
  sources: LedgerSources;
  clock: Clock;
  log: {
    warn(fields: object, text: string): void;
    error(fields: object, text: string): void;
  };
}

export class LedgerService {
  readonly #options: LedgerServiceOptions;
  #writing: { stop: AbortController; done: Promise<void> } | undefined;
  #trouble = "";

  constructor(options: LedgerServiceOptions) {
    this.#options = options;
  }

  /** Empty, or why this replica, which is to write the ledger, does not go on. */
  get trouble(): string {
    return this.#trouble;
  }

  /** This replica writes from now on. Twice is once. */
  begin(): void {
    if (this.#writing) return;
    const stop = new AbortController();
    this.#writing = { stop, done: this.#write(stop.signal) };
  }

  /** It does not any more. Resolves when nothing of it is on its way. */
  async end(): Promise<void> {
    const writing = this.#writing;
    this.#writing = undefined;
    writing?.stop.abort(new InsituError("cancelled", "another replica writes the ledger"));
    await writing?.done;
    this.#trouble = "";
  }

  async #write(signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    while (!signal.aborted) {
      const round = new AbortController();
      const stop = (): void => round.abort(signal.reason);
      signal.addEventListener("abort", stop, { once: true });
      try {
        await this.#followAll(round);
      } catch (thrown) {
        if (!signal.aborted) this.#say(InsituError.from(thrown));
      } finally {
        signal.removeEventListener("abort", stop);
      }
      await clock.sleep(RETRY_MS, signal).catch(() => undefined); // aborted: the loop sees it
    }
  }

  #say(err: InsituError): void {
    const { log } = this.#options;
    if (err.retryable) return log.warn({ err }, "the ledger is not written for a moment; beginning again");
    if (err.message !== this.#trouble) log.error({ err }, "the ledger cannot be written");
    this.#trouble = err.message;
  }

  /** Ends with the first source that ends: all begin anew from what the ledger holds by then. */
  async #followAll(round: AbortController): Promise<void> {
    const { store, sources } = this.#options;
    // Before the leaves of the sources are read: a leaf that another writer appends in between is a conflict.
    let size = await store.size();
    const leaves = new Leaves(sources);
    let last: Promise<unknown> = Promise.resolve();
    const append = (entries: readonly LedgerEntry[]): Promise<void> => {
      const mine = last.then(async () => {
        for (let at = 0; at < entries.length; at += APPEND_MAX) {
          round.signal.throwIfAborted();
          const some = entries.slice(at, at + APPEND_MAX);
          if ((await store.append(some, size)) === "conflict")
            throw new InsituError("conflict", "another replica has written to the ledger", {
              retryable: true,
            });
          size += some.length;
          this.#trouble = "";
        }
      });
      last = mine;
      return mine;
    };
    const following = LEDGER_SOURCES.map((source) =>
      this.#followOne(source, { leaves, append }, round.signal),
    );
    try {
      await Promise.race(following);
    } finally {
      round.abort(new InsituError("cancelled", "the ledger is followed anew"));
      await Promise.allSettled([...following, last]);
    }
  }

  async #followOne(
    source: LedgerSource,
    { leaves, append }: { leaves: Leaves; append: (entries: readonly LedgerEntry[]) => Promise<void> },
    signal: AbortSignal,
  ): Promise<void> {
    const { sources, store } = this.#options;
    const newest = await store.lastOf(source);
    const after = newest?.source.seq ?? 0;
    if (newest && after > (await sources.lastSeq(source))) throw doesNotFit(source, newest);
    // The message of the newest leaf is read again: a crash may have left it with some of its leaves.
    let resumed = newest === undefined;
    for await (const messages of sources.follow(source, Math.max(0, after - 1), signal)) {
      const entries: LedgerEntry[] = [];
      for (const message of messages) {
        const made = await leaves.of(message);
        if (resumed || newest === undefined) {
          entries.push(...made);
          continue;
        }
        const { part } = newest.source;
        if (message.seq !== after || !isOf(newest, message, made)) throw doesNotFit(source, newest);
        resumed = true;
        entries.push(...made.slice(part + 1));
      }
      await append(entries);
    }
  }
}

/** An older release may have taken for unreadable what this one can read: the leaf stands for the whole message then. */
function isOf(leaf: LedgerEntry, message: SourceMessage, made: LedgerEntry[]): boolean {
  if (leaf.kind === "opaque" && leaf.reason === "unreadable") {
    made.length = 0;
    return leaf.digest === message.digest();
  }
  const again = made[leaf.source.part];
  // As it was written: what is too large for a leaf is there by its digest.
  return again !== undefined && equalBytes(entryBytes(again), entryBytes(leaf));
}

/** Nothing is written then: a ledger that goes on as if nothing were wrong would hide what is. */
function doesNotFit(source: LedgerSource, { source: { seq, part } }: LedgerEntry): InsituError {
  return new InsituError(
    "ledger.forked",
    `the newest leaf that was made of the stream ${source} (message ${seq}, part ${part}) is not what that message says now: the stream or the ledger was changed or put back. Compare with a backup and with the checkpoints that agents hold (docs/evidence.md)`,
  );
}
