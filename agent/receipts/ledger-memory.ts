/**
 * Remembers the newest checkpoint of the ledger at the site, and says so loudly when the ledger does not extend it: a
 * rewrite of the evidence is found by those whose evidence it is.
 */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import type { Logger } from "pino";
import { z } from "zod";
import { lookAt, type ShownCheckpoint, sizeOf } from "../../shared/provenance/remembered-checkpoint.ts";
import type { Clock } from "../../shared/system.ts";

const Held = z.object({ verifierKey: z.string(), note: z.string() });
const MemoryFile = z.object({
  v: z.literal(1),
  held: Held,
  /** What contradicts it, as it was shown: evidence. */
  contradiction: Held.extend({ what: z.string(), atMs: z.number() }).nullable(),
});
type MemoryFile = z.infer<typeof MemoryFile>;

/** Between two looks at the ledger. */
const LOOK_MS = 60_000;
/** A replica may be late by so much; after that a shorter ledger is one that was put back. */
const BEHIND_MAX_MS = 60_000;

export class LedgerMemory {
  readonly #file: string;
  readonly #clock: Clock;
  readonly #log: Logger;
  #memory: MemoryFile | undefined;
  #lookedMs = Number.NEGATIVE_INFINITY;
  #behindSinceMs: number | undefined;
  #trouble = "";

  /** `file`: in the state directory. One that cannot be read is kept aside, and said. */
  constructor(options: { file: string; clock: Clock; log: Logger }) {
    this.#file = options.file;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#memory = this.#load();
    // Only a ledger that extends what is held ends it, and the next look shows that.
    this.#trouble = this.#memory?.contradiction?.what ?? "";
  }

  /** What a heartbeat says of it, until it is answered; undefined when nothing is asked now. `size`: of the checkpoint that is held. */
  ask(): { size: number; trouble: string } | undefined {
    const nowMs = this.#clock.monotonicMs();
    const calm = this.#trouble === "" && this.#behindSinceMs === undefined;
    if (calm && nowMs - this.#lookedMs < LOOK_MS) return undefined;
    return { size: this.#memory ? sizeOf(this.#memory.held) : 0, trouble: this.#trouble };
  }

  /** A new connection may be to another replica: its ledger is looked at at once. */
  connected(): void {
    this.#lookedMs = Number.NEGATIVE_INFINITY;
  }

  shown(checkpoint: ShownCheckpoint): void {
    this.#lookedMs = this.#clock.monotonicMs();
    const looked = lookAt(this.#memory?.held, checkpoint);
    if (looked.kind === "behind") return this.#behind(checkpoint, looked.size);
    this.#behindSinceMs = undefined;
    if (looked.kind === "forked") return this.#contradicted(looked.what, checkpoint);
    if (this.#trouble !== "")
      this.#log.warn({ was: this.#trouble }, "the ledger extends what is remembered of it again");
    this.#trouble = "";
    const { verifierKey, note } = checkpoint;
    if (looked.kind === "extends" || this.#memory?.contradiction)
      this.#keep({ v: 1, held: { verifierKey, note }, contradiction: null });
  }

  #behind(checkpoint: ShownCheckpoint, size: number): void {
    const nowMs = this.#clock.monotonicMs();
    this.#behindSinceMs ??= nowMs;
    if (nowMs - this.#behindSinceMs < BEHIND_MAX_MS) return;
    this.#contradicted(`the ledger has ${size} leaves, and had ${sizeOf(this.#memory!.held)}`, checkpoint);
  }

  /** The old one stays: it is what the other is held against. */
  #contradicted(what: string, { verifierKey, note }: ShownCheckpoint): void {
    const held = this.#memory?.held;
    // Said once: what follows upon it is of the same ledger.
    if (this.#trouble !== "") return;
    this.#trouble = what;
    this.#log.error(
      { what, held: held?.note, shown: note, file: this.#file },
      "the ledger of the control plane was changed: keep the file, and tell your auditor (docs/evidence.md)",
    );
    if (held)
      this.#keep({ v: 1, held, contradiction: { verifierKey, note, what, atMs: this.#clock.wallMs() } });
  }

  #keep(memory: MemoryFile): void {
    this.#memory = memory;
    const draft = `${this.#file}.new`;
    try {
      writeFileSync(draft, `${JSON.stringify(memory, null, 2)}\n`, { mode: 0o600, flush: true } as Parameters<
        typeof writeFileSync
      >[2]);
      renameSync(draft, this.#file);
    } catch (err) {
      this.#log.error(
        { err },
        "the checkpoint of the ledger cannot be kept; it is remembered until the agent ends",
      );
    }
  }

  #load(): MemoryFile | undefined {
    let text: string;
    try {
      text = readFileSync(this.#file, "utf8");
    } catch {
      return undefined; // the first start
    }
    try {
      return MemoryFile.parse(JSON.parse(text));
    } catch (err) {
      this.#log.error(
        { err, file: `${this.#file}.damaged` },
        "what was remembered of the ledger is damaged; kept aside",
      );
      renameSync(this.#file, `${this.#file}.damaged`);
      return undefined;
    }
  }
}
