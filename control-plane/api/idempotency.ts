/** The same POST twice has one effect: the answer is kept under the caller's Idempotency-Key for a day. */
import { createHash } from "node:crypto";
import type { MiddlewareHandler } from "hono";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { ApiEnv } from "./context.ts";

export const IDEMPOTENCY_TTL_MS = 24 * 3_600_000;

export interface StoredAnswer {
  status: number;
  contentType: string;
  body: string;
}

export type Claim =
  /** `firstMs` stays the same when the key is freed and claimed again. */
  | { state: "new"; firstMs: number }
  | { state: "running"; fingerprint: string }
  | { state: "done"; fingerprint: string; answer: StoredAnswer };

export interface IdempotencyStore {
  /** Takes the key when it is free; of two callers at once, one gets "new". Keys are 64 hexadecimal digits. */
  claim(key: string, fingerprint: string): Promise<Claim>;
  /** Keeps the answer for `IDEMPOTENCY_TTL_MS`. */
  finish(key: string, fingerprint: string, answer: StoredAnswer): Promise<void>;
  /** Frees the key for another try: the request had no effect, or none that is known. */
  release(key: string): Promise<void>;
}

/** For one replica. The oldest answers give way when it is full; a claim that still runs never does. */
export class MemoryIdempotencyStore implements IdempotencyStore {
  readonly #entries = new Map<
    string,
    { fingerprint: string; firstMs: number; atMs: number; answer: StoredAnswer | null; free?: boolean }
  >();
  readonly #clock: Clock;
  readonly #maxEntries: number;

  constructor(clock: Clock, maxEntries = 10_000) {
    this.#clock = clock;
    this.#maxEntries = maxEntries;
  }

  async claim(key: string, fingerprint: string): Promise<Claim> {
    this.#makeRoom();
    const held = this.#entries.get(key);
    const atMs = this.#clock.wallMs();
    if (held === undefined || held.free) {
      if (this.#entries.size >= this.#maxEntries) {
        throw new InsituError("limit.exceeded", "too many requests with an Idempotency-Key are running", {
          retryable: true,
        });
      }
      const firstMs = held?.firstMs ?? atMs;
      this.#entries.delete(key);
      this.#entries.set(key, { fingerprint, firstMs, atMs, answer: null });
      return { state: "new", firstMs };
    }
    if (held.answer === null) return { state: "running", fingerprint: held.fingerprint };
    return { state: "done", fingerprint: held.fingerprint, answer: held.answer };
  }

  async finish(key: string, fingerprint: string, answer: StoredAnswer): Promise<void> {
    const atMs = this.#clock.wallMs();
    const firstMs = this.#entries.get(key)?.firstMs ?? atMs;
    this.#entries.delete(key);
    this.#entries.set(key, { fingerprint, firstMs, atMs, answer });
  }

  async release(key: string): Promise<void> {
    const held = this.#entries.get(key);
    if (!held) return;
    this.#entries.delete(key);
    this.#entries.set(key, { ...held, free: true });
  }

  /** Finished entries stand in the order in which they finished, so the first ones are the oldest. */
  #makeRoom(): void {
    const expiredMs = this.#clock.wallMs() - IDEMPOTENCY_TTL_MS;
    for (const [key, entry] of this.#entries) {
      if (entry.answer === null && !entry.free) continue;
      if (entry.atMs > expiredMs && this.#entries.size < this.#maxEntries) break;
      this.#entries.delete(key);
    }
  }
}

const KEY_PATTERN = /^[\x21-\x7e]{1,255}$/;

/**
 * Answers a repeated POST from the store. Only successes are kept: a request that was refused had no effect.
 *
 * A request that failed half-way, or whose replica died, may have had its effect. Its repeat is performed with the
 * same seed, from which whatever it creates takes its id: the effect is found there and not made twice.
 */
export function idempotent(store: IdempotencyStore, log: Logger): MiddlewareHandler<ApiEnv> {
  return async (c, next) => {
    const given = c.req.header("idempotency-key");
    if (given === undefined) return next();
    if (!KEY_PATTERN.test(given)) {
      throw new InsituError("request.invalid", "an Idempotency-Key is 1 to 255 visible ASCII characters");
    }
    const url = new URL(c.req.url);
    const key = digest(c.get("caller"), c.req.method, url.pathname, given);
    const fingerprint = digest(url.search, c.get("bodyText"));
    const claim = await store.claim(key, fingerprint);
    if (claim.state !== "new") return repeated(claim, fingerprint);
    c.set("repeatSeed", { key, firstMs: claim.firstMs });
    let done = false;
    try {
      await next();
      // 202: it waits for a second person, and its repeat is what carries it out.
      done = c.res.ok && c.res.status !== 202;
    } finally {
      // A claim that cannot be freed runs out by itself; why the request failed says more.
      if (!done) await store.release(key).catch(() => undefined);
    }
    if (!done) return;
    const body = await c.res.clone().text();
    const contentType = c.res.headers.get("content-type") ?? "application/json";
    // What is done is done, and the caller learns of it also when the store cannot keep the answer.
    await store
      .finish(key, fingerprint, { status: c.res.status, contentType, body })
      .catch((err: unknown) => log.warn({ err }, "answer not kept under its Idempotency-Key"));
  };
}

function repeated(claim: Exclude<Claim, { state: "new" }>, fingerprint: string): Response {
  if (claim.fingerprint !== fingerprint) {
    throw new InsituError(
      "idempotency.reused",
      "this Idempotency-Key came with another request before; use a new one",
    );
  }
  if (claim.state === "running") {
    const message = "the first request with this Idempotency-Key is still running; ask again in a moment";
    throw new InsituError("conflict", message, { retryable: true });
  }
  const { status, contentType, body } = claim.answer;
  return new Response(body, {
    status,
    headers: { "content-type": contentType, "idempotent-replayed": "true" },
  });
}

function digest(...parts: string[]): string {
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}
