/**
 * How many failed attempts an address may make: a bucket of so many, filled up again one at a time. In memory, so each
 * replica counts for itself.
 *
 * A secret that this address has shown to be good goes on being looked at: those behind one proxy do not lock each
 * other out. Whether it is still good is asked anew each time.
 */
import { networkOf } from "../gateway/rate-limit.ts";

export interface FailureLimitOptions {
  /** Failures in a row that are let through. */
  burst: number;
  /** After which one more is. */
  refillMs: number;
  /** Addresses that are remembered; the one not heard of for longest goes first. */
  sourcesMax: number;
}

interface Source {
  /** When all failures will be forgotten. */
  emptyAtMs: number;
  good: Set<string>;
}

const FAILURES_MAX = 20;
const SOURCES_MAX = 10_000;
const FAILURE_LIMIT: FailureLimitOptions = { burst: FAILURES_MAX, refillMs: 3_000, sourcesMax: SOURCES_MAX };
/** Secrets that are remembered as good of one address, as digests. */
const GOOD_MAX = 50;

export class FailureLimit {
  readonly #options: FailureLimitOptions;
  readonly #sources = new Map<string, Source>();

  constructor(options: FailureLimitOptions = FAILURE_LIMIT) {
    this.#options = options;
  }

  /**
   * For how long nothing is tried for this address: 0 when it may. Times are monotonic.
   *
   * @param address with a port behind it
   * @param digest of the secret that is shown, if any
   */
  waitMs(address: string, nowMs: number, digest?: string): number {
    const source = this.#sources.get(networkOf(address));
    if (source === undefined || (digest !== undefined && source.good.has(digest))) return 0;
    const { burst, refillMs } = this.#options;
    return Math.max(0, source.emptyAtMs - nowMs - (burst - 1) * refillMs);
  }

  failed(address: string, nowMs: number, digest?: string): void {
    const source = this.#touch(address);
    if (digest !== undefined) source.good.delete(digest);
    source.emptyAtMs = Math.max(source.emptyAtMs, nowMs) + this.#options.refillMs;
  }

  succeeded(address: string, digest: string): void {
    const { good } = this.#touch(address);
    good.delete(digest);
    good.add(digest);
    if (good.size > GOOD_MAX) good.delete(good.values().next().value!);
  }

  get size(): number {
    return this.#sources.size;
  }

  #touch(address: string): Source {
    const key = networkOf(address);
    const source = this.#sources.get(key) ?? { emptyAtMs: 0, good: new Set() };
    this.#sources.delete(key);
    this.#sources.set(key, source);
    if (this.#sources.size > this.#options.sourcesMax)
      this.#sources.delete(this.#sources.keys().next().value!);
    return source;
  }
}
