/** Keeps one agent from pushing the poison of all others out of the store. */
import type { Clock } from "../../shared/system.ts";
import type { Poison, PoisonSink } from "../poison/ports.ts";
import { RateLimit, type RateLimitOptions } from "./rate-limit.ts";

/** Of one agent: copies at once, then one in so long. */
export const POISON_RATE_LIMIT: RateLimitOptions = { burst: 20, refillMs: 60_000, maxAddresses: 10_000 };

export class LimitedPoison implements PoisonSink {
  readonly #sink: PoisonSink;
  readonly #clock: Clock;
  readonly #limit = new RateLimit(POISON_RATE_LIMIT);

  constructor(sink: PoisonSink, clock: Clock) {
    this.#sink = sink;
    this.#clock = clock;
  }

  async put(poison: Poison): Promise<boolean> {
    if (!this.#limit.take(poison.from, this.#clock.monotonicMs())) return false;
    return await this.#sink.put(poison);
  }
}
