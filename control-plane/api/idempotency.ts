/** The same POST twice has one effect: the answer is kept under the caller's Idempotency-Key for a day. */
import { createHash } from "node:crypto";
import type { MiddlewareHandler } from "hono";
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
  | { state: "new" }
  | { state: "running"; fingerprint: string }
  | { state: "done"; fingerprint: string; answer: StoredAnswer };

export interface IdempotencyStore {
  /** Takes the key when it is free; of two callers at once, one gets "new". Keys are 64 hexadecimal digits. */
  claim(key: string, fingerprint: string): Promise<Claim>;
  /** Keeps the answer for `IDEMPOTENCY_TTL_MS`. */
  finish(key: string, fingerprint: string, answer: StoredAnswer): Promise<void>;
  /** Frees the key: the request had no effect. */
  release(key: string): Promise<void>;
}

/** For one replica. The oldest answers give way when it is full; a claim that still runs never does. */
export class MemoryIdempotencyStore implements IdempotencyStore {
  readonly #entries = new Map<string, { fingerprint: string; atMs: number; answer: StoredAnswer | null }>();
  readonly #clock: Clock;
  readonly #maxEntries: number;

  constructor(clock: Clock, maxEntries = 10_000) {
    this.#clock = clock;
    this.#maxEntries = maxEntries;
  }

  async claim(key: string, fingerprint: string): Promise<Claim> {
    this.#makeRoom();
    const held = this.#entries.get(key);
    if (held === undefined) {
      if (this.#entries.size >= this.#maxEntries) {
        throw new InsituError("limit.exceeded", "too many requests with an Idempotency-Key are running", {
          retryable: true,
        });
      }
      this.#entries.set(key, { fingerprint, atMs: this.#clock.wallMs(), answer: null });
      return { state: "new" };
    }
    if (held.answer === null) return { state: "running", fingerprint: held.fingerprint };
    return { state: "done", fingerprint: held.fingerprint, answer: held.answer };
  }

  async finish(key: string, fingerprint: string, answer: StoredAnswer): Promise<void> {
    this.#entries.delete(key);
    this.#entries.set(key, { fingerprint, atMs: this.#clock.wallMs(), answer });
  }

  async release(key: string): Promise<void> {
    this.#entries.delete(key);
  }

  /** Finished entries stand in the order in which they finished, so the first ones are the oldest. */
  #makeRoom(): void {
    const expiredMs = this.#clock.wallMs() - IDEMPOTENCY_TTL_MS;
    for (const [key, entry] of this.#entries) {
      if (entry.answer === null) continue;
      if (entry.atMs > expiredMs && this.#entries.size < this.#maxEntries) break;
      this.#entries.delete(key);
    }
  }
}

const KEY_PATTERN = /^[\x21-\x7e]{1,255}$/;

/** Answers a repeated POST from the store. Only successes are kept: a request that was refused had no effect. */
export function idempotent(store: IdempotencyStore): MiddlewareHandler<ApiEnv> {
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
    let kept = false;
    try {
      await next();
      if (c.res.ok) {
        const body = await c.res.clone().text();
        const contentType = c.res.headers.get("content-type") ?? "application/json";
        await store.finish(key, fingerprint, { status: c.res.status, contentType, body });
        kept = true;
      }
    } finally {
      if (!kept) await store.release(key);
    }
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
