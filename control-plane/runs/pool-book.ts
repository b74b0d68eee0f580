/** Who holds the places of each pool, and who waits for one, over all runs. No I/O. */

export interface StepRef {
  runId: string;
  stepId: string;
}

export class PoolBook {
  readonly #holders = new Map<string, Set<string>>();
  /** Insertion order is the order of waiting. */
  readonly #waiting = new Map<string, StepRef & { pools: readonly string[] }>();

  /**
   * Takes a place in every one of the pools, or in none and says which is full.
   * `capacityOf` gives undefined for a pool that does not exist: nothing may run in it.
   */
  acquire(
    ref: StepRef,
    pools: readonly string[],
    capacityOf: (pool: string) => number | undefined,
  ): { acquired: true } | { acquired: false; message: string } {
    const key = keyOf(ref);
    for (const pool of pools) {
      const holders = this.#holders.get(pool);
      if (holders?.has(key)) continue;
      const capacity = capacityOf(pool);
      if (capacity === undefined) {
        this.#waiting.set(key, { ...ref, pools });
        return { acquired: false, message: `pool ${pool} does not exist` };
      }
      if ((holders?.size ?? 0) >= capacity) {
        this.#waiting.set(key, { ...ref, pools });
        return { acquired: false, message: `pool ${pool} is full (${capacity} of ${capacity} in use)` };
      }
    }
    for (const pool of pools) this.hold(ref, pool);
    this.#waiting.delete(key);
    return { acquired: true };
  }

  /** Counts a place without asking: it was granted before a restart. */
  hold(ref: StepRef, pool: string): void {
    const holders = this.#holders.get(pool) ?? new Set();
    holders.add(keyOf(ref));
    this.#holders.set(pool, holders);
  }

  /** Gives the places back. Returns who waits for one of these pools, first come first. */
  release(ref: StepRef, pools: readonly string[]): StepRef[] {
    const key = keyOf(ref);
    const freed = new Set(pools.filter((pool) => this.#holders.get(pool)?.delete(key)));
    if (freed.size === 0) return [];
    return [...this.#waiting.values()].filter((waiting) => waiting.pools.some((pool) => freed.has(pool)));
  }

  /** Takes nothing yet: it is asked again with all others that wait. */
  wait(ref: StepRef, pools: readonly string[]): void {
    this.#waiting.set(keyOf(ref), { ...ref, pools });
  }

  waiting(): StepRef[] {
    return [...this.#waiting.values()];
  }

  forget(ref: StepRef): void {
    this.#waiting.delete(keyOf(ref));
  }
}

function keyOf(ref: StepRef): string {
  return `${ref.runId}/${ref.stepId}`;
}
