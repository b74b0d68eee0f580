/** Idempotency keys in the bucket `idempotency`: known to every replica, and over restarts. */
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { Claim, IdempotencyStore, StoredAnswer } from "../api/idempotency.ts";
import type { KvStore } from "./kv.ts";

/**
 * A claim without an answer after so long: the replica that made it has gone. Longer than any request takes, and
 * shorter than the patience of who repeats one.
 */
const CLAIM_MAX_MS = 30_000;

export const IdempotencyEntry = z.object({
  fingerprint: z.string(),
  atMs: z.int(),
  /** Of the first claim. Missing: `atMs`, or of an older release. */
  firstMs: z.int().optional(),
  /** The request failed: the key may be claimed again. */
  free: z.boolean().optional(),
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
    const held = await this.#kv.get(key);
    const atMs = this.#clock.wallMs();
    const firstMs = held?.value.firstMs ?? held?.value.atMs ?? atMs;
    const mine: IdempotencyEntry = { fingerprint, atMs, firstMs, answer: null };
    try {
      if (held === undefined) {
        await this.#kv.create(key, mine);
        return { state: "new", firstMs };
      }
      const { value } = held;
      if (value.answer) return { state: "done", fingerprint: value.fingerprint, answer: value.answer };
      if (!value.free && atMs - value.atMs < CLAIM_MAX_MS)
        return { state: "running", fingerprint: value.fingerprint };
      await this.#kv.update(key, mine, held.revision);
      return { state: "new", firstMs };
    } catch (err) {
      if (!(err instanceof InsituError) || err.code !== "conflict") throw err;
      return { state: "running", fingerprint }; // another request was faster by a moment
    }
  }

  async finish(key: string, fingerprint: string, answer: StoredAnswer): Promise<void> {
    const held = await this.#kv.get(key);
    const atMs = this.#clock.wallMs();
    const entry: IdempotencyEntry = { fingerprint, atMs, firstMs: held?.value.firstMs ?? atMs, answer };
    if (held) await this.#kv.update(key, entry, held.revision);
    else await this.#kv.create(key, entry);
  }

  async release(key: string): Promise<void> {
    const held = await this.#kv.get(key);
    if (held) await this.#kv.update(key, { ...held.value, free: true }, held.revision);
  }
}
