/**
 * What memory says about the store, changed together with a transaction: when the transaction fails, memory
 * goes back too. Otherwise a full disk would leave counts of things that were never written.
 */
export class Undo {
  #steps: (() => void)[] = [];

  set<K, V>(map: Map<K, V>, key: K, value: V): void {
    const had = map.has(key);
    const former = map.get(key);
    map.set(key, value);
    this.#steps.push(() => (had ? map.set(key, former as V) : map.delete(key)));
  }

  delete<K, V>(map: Map<K, V>, key: K): void {
    if (!map.has(key)) return;
    const former = map.get(key) as V;
    map.delete(key);
    // It comes back as the newest key: `Map` keeps the order of insertion. Callers that need order sort.
    this.#steps.push(() => map.set(key, former));
  }

  add<N extends string>(numbers: Record<N, number>, name: N, change: number): number {
    numbers[name] += change;
    this.#steps.push(() => {
      numbers[name] -= change;
    });
    return numbers[name];
  }

  keep(): void {
    this.#steps = [];
  }

  back(): void {
    for (const step of this.#steps.reverse()) step();
    this.#steps = [];
  }
}
