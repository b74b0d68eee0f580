/** Chance from a seed: the same seed gives the same numbers on every machine. */

export class Chance {
  #a: number;
  #b: number;
  #c: number;
  #count = 1;

  /** sfc32, warmed up so that seeds beside each other do not give worlds that are alike. */
  constructor(seed: number) {
    this.#a = seed >>> 0;
    this.#b = Math.floor(seed / 2 ** 32) >>> 0;
    this.#c = 0x9e3779b9;
    for (let i = 0; i < 15; i++) this.next();
  }

  /** In [0, 1). */
  next(): number {
    const sum = (((this.#a + this.#b) | 0) + this.#count) | 0;
    this.#count = (this.#count + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum;
    return (sum >>> 0) / 2 ** 32;
  }

  happens(probability: number): boolean {
    return this.next() < probability;
  }

  /** A whole number from `min` to `max`, both included. */
  int(min: number, max: number): number {
    return min + Math.floor(this.next() * (max - min + 1));
  }

  pick<T>(items: readonly T[]): T {
    return items[this.int(0, items.length - 1)]!;
  }

  /** Each item with the probability; at least one. */
  some<T>(items: readonly T[], probability: number): T[] {
    const chosen = items.filter(() => this.happens(probability));
    return chosen.length > 0 ? chosen : [this.pick(items)];
  }

  /** Milliseconds until the next of events that come every `meanMs` on average. */
  wait(meanMs: number): number {
    return Math.ceil(-Math.log(1 - this.next()) * meanMs);
  }
}
