/**
 * The only place where time, chance and identifiers come from the machine.
 *
 * Everything else takes a `Clock`, a `Random` or an id as a parameter, so that it can be replayed.
 * `test/architecture.test.ts` looks for `Date.now`, `setTimeout`, `Math.random` and `randomUUID` elsewhere.
 */
import { randomBytes } from "node:crypto";
import { setMaxListeners } from "node:events";

/** Time as the rest of the code may see it. Milliseconds throughout. */
export interface Clock {
  /** Since the Unix epoch: to stamp records, never to measure. */
  wallMs(): number;
  /** Arbitrary origin: leases, timeouts, durations. Meaningless in another process. */
  monotonicMs(): number;
  /** Resolves after `ms`; rejects with `signal.reason` when the signal aborts first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Calls `fn` once after `ms`. The timer does not keep the process alive. */
  after(ms: number, fn: () => void): Timer;
  /** Calls `fn` every `ms` until cancelled. The timer does not keep the process alive. */
  every(ms: number, fn: () => void): Timer;
}

export interface Timer {
  cancel(): void;
}

/** To stop a service with: so many of its waits listen to the one signal that Node would take them for a leak. */
export function newStop(): AbortController {
  const stop = new AbortController();
  setMaxListeners(0, stop.signal);
  return stop;
}

/** A source of numbers in [0, 1). */
export type Random = () => number;

/** Longest delay that a Node timer can hold; a longer one would fire at once. */
const TIMER_MAX_MS = 2_147_483_647;

export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep(ms, signal) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const onAbort = () => {
        clearTimeout(timer);
        reject(signal?.reason);
      };
      const timer = setTimeout(() => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      }, clampDelay(ms));
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  },
  after(ms, fn) {
    const timer = setTimeout(fn, clampDelay(ms));
    timer.unref();
    return { cancel: () => clearTimeout(timer) };
  },
  every(ms, fn) {
    const timer = setInterval(fn, clampDelay(ms));
    timer.unref();
    return { cancel: () => clearInterval(timer) };
  },
};

export const systemRandom: Random = () => Math.random();

function clampDelay(ms: number): number {
  return Math.min(Math.max(0, ms), TIMER_MAX_MS);
}

const CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz";

/**
 * A sortable identifier: 10 characters of time (48 bits of milliseconds), 16 of chance (80 bits),
 * Crockford base 32 in lower case, as in the ULID specification.
 */
export function newId(atMs: number, bytes: Uint8Array = randomBytes(10)): string {
  let time = "";
  let rest = Math.floor(atMs);
  for (let i = 0; i < 10; i++) {
    time = CROCKFORD[rest % 32] + time;
    rest = Math.floor(rest / 32);
  }
  let bits = 0n;
  for (const byte of bytes.subarray(0, 10)) bits = (bits << 8n) | BigInt(byte);
  let chance = "";
  for (let i = 0; i < 16; i++) {
    chance = CROCKFORD[Number(bits & 31n)] + chance;
    bits >>= 5n;
  }
  return time + chance;
}

/** The time with which `newId` made it: milliseconds since the Unix epoch, NaN for what it did not make. */
export function idTimeMs(id: string): number {
  let time = 0;
  for (const digit of id.slice(0, 10)) {
    const value = CROCKFORD.indexOf(digit);
    time = value < 0 ? Number.NaN : time * 32 + value;
  }
  return time;
}

/** Random text for secrets: `bytes` bytes as base64url. */
export function newSecret(bytes = 32): string {
  return randomBytes(bytes).toString("base64url");
}
