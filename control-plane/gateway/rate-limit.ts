/** How often one address may try. Pure but for what it remembers; it is told the time. */

export interface RateLimitOptions {
  /** Tries that an address has when it comes first. */
  burst: number;
  /** How long it takes to get one try back. */
  refillMs: number;
  /** Addresses that are remembered; the one that was quiet for longest is forgotten first. */
  maxAddresses: number;
}

export class RateLimit {
  readonly #options: RateLimitOptions;
  readonly #buckets = new Map<string, { tokens: number; atMs: number }>();

  constructor(options: RateLimitOptions) {
    this.#options = options;
  }

  /** Takes `cost` tries of the address; false when it has not got them. `nowMs` is monotonic. */
  take(address: string, nowMs: number, cost = 1): boolean {
    const { burst, refillMs, maxAddresses } = this.#options;
    const key = networkOf(address);
    const old = this.#buckets.get(key);
    const tokens = old === undefined ? burst : Math.min(burst, old.tokens + (nowMs - old.atMs) / refillMs);
    const granted = tokens >= cost;
    this.#buckets.delete(key);
    this.#buckets.set(key, { tokens: granted ? tokens - cost : tokens, atMs: nowMs });
    if (this.#buckets.size > maxAddresses) {
      const quietest = this.#buckets.keys().next().value;
      if (quietest !== undefined) this.#buckets.delete(quietest);
    }
    return granted;
  }

  /** Takes more after the fact, down to an empty bucket: for a try that turned out to be a bad one. */
  punish(address: string, cost: number): void {
    const bucket = this.#buckets.get(networkOf(address));
    if (bucket !== undefined) bucket.tokens = Math.max(0, bucket.tokens - cost);
  }
}

/** The address without its port; of IPv6 the first 64 bits, which one host can have all to itself. */
export function networkOf(peer: string): string {
  const address = peer.replace(/:\d+$/, "");
  if (!address.includes(":") || address.includes(".")) return address;
  const [head = "", tail] = address.split("::");
  const front = head === "" ? [] : head.split(":");
  const back = tail === undefined || tail === "" ? [] : tail.split(":");
  const gap = tail === undefined ? 0 : 8 - front.length - back.length;
  const groups = [...front, ...Array.from({ length: gap }, () => "0"), ...back];
  return `${groups
    .slice(0, 4)
    .map((group) => group.replace(/^0+(?=.)/, ""))
    .join(":")}::/64`;
}
