/** From messages of the sources to leaves, with what is so of their runs. */
import type { LedgerEntry } from "../../shared/provenance/ledger-entry.ts";
import { entriesOfApply, entriesOfRun, isRecorded, opaqueEntry } from "./entries.ts";
import type { LedgerSources, RunFacts, SourceMessage } from "./ports.ts";

/** Runs whose facts are at hand; others are looked up again. */
const KNOWN_MAX = 20_000;

export class Leaves {
  readonly #sources: Pick<LedgerSources, "factsOf">;
  /** Null: a run of which nothing is in the ledger. Oldest use first. */
  readonly #known = new Map<string, RunFacts | null>();

  constructor(sources: Pick<LedgerSources, "factsOf">) {
    this.#sources = sources;
  }

  /** The same for the same message, whoever asks and when. @throws store.unavailable */
  async of(message: SourceMessage): Promise<LedgerEntry[]> {
    const { seq } = message;
    const opaque = (): LedgerEntry[] => [opaqueEntry(message.source, seq, message.digest())];
    if (message.source === "RESOURCES") {
      const apply = message.read();
      return apply ? entriesOfApply({ ...apply, seq }) : opaque();
    }
    const { runId } = message;
    const known = this.#known.get(runId);
    const facts = known === undefined ? await this.#learn(runId) : known;
    if (facts === null) return [];
    const events = message.read();
    return facts && events ? entriesOfRun(facts, { seq, runId, events }) : opaque();
  }

  async #learn(runId: string): Promise<RunFacts | null | undefined> {
    const facts = await this.#sources.factsOf(runId);
    if (facts === undefined) return undefined;
    const kept = isRecorded(facts) ? facts : null;
    this.#known.set(runId, kept);
    const [oldest] = this.#known.keys();
    if (this.#known.size > KNOWN_MAX && oldest !== undefined) this.#known.delete(oldest);
    return kept;
  }
}
