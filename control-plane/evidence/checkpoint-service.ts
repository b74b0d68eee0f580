/**
 * The newest checkpoint: signed by whoever writes the ledger, looked at by every replica.
 *
 * A checkpoint is signed for a tree that begins with the one of the checkpoint before; and a replica shows one only
 * if its own tree has that root. A ledger that was changed is found here, if nobody else has looked.
 */
import { InsituError } from "../../shared/errors.ts";
import { type Checkpoint, openCheckpoint } from "../../shared/provenance/checkpoint.ts";
import { equalBytes } from "../../shared/provenance/encoding.ts";
import { type NoteKey, parseVerifierKey } from "../../shared/provenance/signed-note.ts";
import type { Clock } from "../../shared/system.ts";
import type { CheckpointStore, LedgerStore, LedgerTree, LogKey } from "./ports.ts";

/** Between two checkpoints, while the ledger grows. */
const PERIOD_MS = 1_000;

export interface SignedCheckpoint extends Checkpoint {
  note: string;
}

export interface CheckpointServiceOptions {
  key: LogKey;
  tree: LedgerTree;
  ledger: Pick<LedgerStore, "durable" | "size">;
  store: CheckpointStore;
  clock: Clock;
  log: { warn(fields: object, text: string): void; error(fields: object, text: string): void };
  /** Whether this replica writes the ledger. */
  writes(): boolean;
}

export class CheckpointService {
  readonly #options: CheckpointServiceOptions;
  readonly #noteKey: NoteKey;
  readonly #stop = new AbortController();
  #newest: SignedCheckpoint | undefined;
  #running: Promise<void> = Promise.resolve();
  #round: Promise<void> | undefined;
  #forked = "";

  constructor(options: CheckpointServiceOptions) {
    this.#options = options;
    const key = parseVerifierKey(options.key.verifierKey);
    if (!key) throw new InsituError("internal", "the key of the ledger has no verifier key");
    this.#noteKey = key;
  }

  get verifierKey(): string {
    return this.#options.key.verifierKey;
  }

  /** Undefined before the first. Verified, and its root is that of the tree here. */
  get newest(): SignedCheckpoint | undefined {
    return this.#newest;
  }

  /** Empty, or how the ledger and a checkpoint of it contradict each other. */
  get forked(): string {
    return this.#forked;
  }

  start(): void {
    this.#running = this.#run();
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    await this.#running;
  }

  /** One of all leaves that there are at the call. @throws unavailable while whoever writes the ledger does not sign one */
  async upToDate(signal: AbortSignal): Promise<SignedCheckpoint> {
    const size = await this.#options.ledger.size();
    while (!this.#newest || this.#newest.size < size) {
      signal.throwIfAborted();
      if (this.#forked !== "") throw new InsituError("ledger.forked", this.#forked);
      await this.look();
      if (this.#newest && this.#newest.size >= size) break;
      await this.#options.clock.sleep(PERIOD_MS / 10, signal);
    }
    return this.#newest;
  }

  async #run(): Promise<void> {
    const { clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        await this.look();
      } catch (err) {
        if (!signal.aborted) log.warn({ err }, "no checkpoint of the ledger now");
      }
      await clock.sleep(PERIOD_MS, signal).catch(() => undefined); // closed: the loop sees it
    }
  }

  /** Takes in the newest checkpoint, and signs one if it is this replica's to do. Calls at the same time share one. */
  look(): Promise<void> {
    this.#round ??= this.#look().finally(() => {
      this.#round = undefined;
    });
    return this.#round;
  }

  async #look(): Promise<void> {
    const { store, tree, ledger } = this.#options;
    const stored = await store.read();
    const before = stored && this.#opened(stored.note);
    if (before) {
      if (tree.size < before.size && (await ledger.size()) < before.size)
        return this.#fork(`the ledger has fewer leaves than the ${before.size} of its checkpoint`);
      await tree.waitFor(before.size, this.#stop.signal);
      this.#take(before);
    }
    if (this.#forked === "" && this.#options.writes()) await this.#sign(before, stored?.revision);
  }

  #opened(note: string): SignedCheckpoint | undefined {
    const opened = openCheckpoint(note, this.#noteKey);
    if (opened.kind === "verified") return { ...opened.checkpoint, note };
    this.#fork(`the checkpoint in the store is not one of this ledger's key: ${opened.reason}`);
    return undefined;
  }

  #take(checkpoint: SignedCheckpoint): void {
    const { tree } = this.#options;
    const former = this.#newest;
    if (former && checkpoint.size < former.size)
      return this.#fork(
        `the checkpoint in the store has ${checkpoint.size} leaves, and one of ${former.size} was there`,
      );
    if (!equalBytes(tree.root(checkpoint.size), checkpoint.root))
      return this.#fork(`the first ${checkpoint.size} leaves of the ledger are not those of its checkpoint`);
    this.#forked = "";
    this.#newest = checkpoint;
  }

  async #sign(before: SignedCheckpoint | undefined, revision: number | undefined): Promise<void> {
    const { tree, key, store, ledger } = this.#options;
    const { size } = tree;
    if (size <= (before?.size ?? -1)) return;
    await ledger.durable(size);
    const root = tree.root(size);
    const note = key.sign({ size, root });
    try {
      await store.write(note, revision);
    } catch (err) {
      if (InsituError.from(err).code === "conflict") return; // another replica was first: the next look shows it
      throw err;
    }
    this.#newest = { origin: key.origin, size, root, note };
  }

  #fork(what: string): void {
    if (what !== this.#forked) this.#options.log.error({ what }, "the ledger was changed");
    this.#forked = what;
  }
}
