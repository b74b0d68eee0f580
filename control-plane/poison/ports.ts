/** Messages that nobody can make sense of: counted, kept aside with the reason, and in nobody's way. */

export const POISON_SOURCES = ["gateway", "work", "inbox", "runs", "resources", "logs", "bucket"] as const;
export type PoisonSource = (typeof POISON_SOURCES)[number];

export interface Poison {
  /** The queue that it came over; `gateway`: from an agent; `bucket`: a value of a key-value bucket. */
  source: PoisonSource;
  /** Where it was found. */
  subject: string;
  /** Its sequence in the stream where it was found; null when it was in none. */
  seq: number | null;
  /** The agent that sent it or met it; empty when it is not known. */
  from: string;
  /** For people. */
  reason: string;
  data: Uint8Array;
}

export interface PoisonSink {
  /**
   * Resolves with whether a copy is kept; never rejects. The same message again is kept once. May be left alone:
   * the sink awaits what is under way when it closes.
   */
  put(poison: Poison): Promise<boolean>;
}

/** What is kept of one message. */
export interface KeptPoison extends Poison {
  id: number;
  keptAtMs: number;
  /** Of the message as it came; `data` may hold only its beginning. */
  bytes: number;
}

export interface PoisonDesk {
  /** Oldest first, without contents. @throws store.unavailable */
  list(): Promise<Omit<KeptPoison, "data">[]>;
  /** @throws not-found, store.unavailable */
  get(id: number): Promise<KeptPoison>;
  /** Forgets the copy; what it was a copy of stays as it is. @throws not-found, store.unavailable */
  drop(id: number): Promise<void>;
}

/** What went wrong with a message, without anything of what it holds: more people may read the reason. */
export function reasonOf(err: unknown): string {
  if (err instanceof SyntaxError) return "it is not JSON"; // the parser's own words quote it
  return err instanceof Error ? err.message : String(err);
}
