/** Idempotency keys in the bucket `idempotency`: known to every replica, and over restarts. */
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { Claim, IdempotencyStore, StoredAnswer } from "../api/idempotency.ts";
import type { KvStore } from "./kv.ts";

/** A claim without an answer after so long: the replica that made it has gone. Longer than any request takes. */
const CLAIM_MAX_MS = 120_000;

export const IdempotencyEntry = z.object({
  fingerprint: z.string(),
  atMs: z.int(),
  answer: z.object({ status: z.int(), contentType: z.string(), body: z.string() }).nullable(),
});
type IdempotencyEntry = z.infer<typeof IdempotencyEntry>;

export class KvIdempotencyStore implements IdempotencyStore {
  readonly #kv: KvStore<IdempotencyEntry>;
  readonly #clock: Clock;

  constructor(kv: KvStore<IdempotencyEntry>, clock: Clock) {
    this.#kv = kv;
    this.#clock = clock;
  }

  async claim(key: string, fingerprint: string): Promise<Claim> {
    const mine: IdempotencyEntry = { fingerprint, atMs: this.#clock.wallMs(), answer: null };
    const held = await this.#kv.get(key);
    try {
      if (held === undefined) {
        await this.#kv.create(key, mine);
        return { state: "new" };
      }
      const { value } = held;
      if (value.answer) return { state: "done", fingerprint: value.fingerprint, answer: value.answer };
      if (mine.atMs - value.atMs < CLAIM_MAX_MS) return { state: "running", fingerprint: value.fingerprint };
      await this.#kv.update(key, mine, held.revision);
      return { state: "new" };
    } catch (err) {
      if (!(err instanceof InsituError) || err.code !== "conflict") throw err;
      return { state: "running", fingerprint }; // another request was faster by a moment
    }
  }

  async finish(key: string, fingerprint: string, answer: StoredAnswer): Promise<void> {
    const held = await this.#kv.get(key);
    const entry: IdempotencyEntry = { fingerprint, atMs: this.#clock.wallMs(), answer };
    if (held) await this.#kv.update(key, entry, held.revision);
    else await this.#kv.create(key, entry);
  }

  async release(key: string): Promise<void> {
    await this.#kv.delete(key);
  }
}
