/**
 * Many timers, one at a time per key, over a binary heap. No clock of its own: the owner asks what is due.
 *
 * A replaced or deleted timer stays in the heap until it comes up or the heap is mostly stale.
 */
export interface Due<T> {
  key: string;
  atMs: number;
  value: T;
}

const COMPACT_AT = 1024;

export class TimerQueue<T> {
  readonly #live = new Map<string, Due<T>>();
  #heap: Due<T>[] = [];

  set(key: string, atMs: number, value: T): void {
    const due = { key, atMs, value };
    this.#live.set(key, due);
    this.#push(due);
    if (this.#heap.length > COMPACT_AT && this.#heap.length > 2 * this.#live.size) this.#compact();
  }

  delete(key: string): void {
    this.#live.delete(key);
  }

  get size(): number {
    return this.#live.size;
  }

  /** When the next timer is due; undefined when there is none. */
  nextAtMs(): number | undefined {
    this.#dropStale();
    return this.#heap[0]?.atMs;
  }

  /** Removes and returns all that is due. */
  take(nowMs: number): Due<T>[] {
    const due: Due<T>[] = [];
    for (this.#dropStale(); this.#heap[0] && this.#heap[0].atMs <= nowMs; this.#dropStale()) {
      const top = this.#pop()!;
      this.#live.delete(top.key);
      due.push(top);
    }
    return due;
  }

  #dropStale(): void {
    while (this.#heap[0] && this.#live.get(this.#heap[0].key) !== this.#heap[0]) this.#pop();
  }

  #compact(): void {
    const entries = [...this.#live.values()].sort((a, b) => a.atMs - b.atMs);
    this.#heap = entries;
  }

  #push(due: Due<T>): void {
    const heap = this.#heap;
    heap.push(due);
    for (let child = heap.length - 1; child > 0; ) {
      const parent = (child - 1) >> 1;
      if (heap[parent]!.atMs <= heap[child]!.atMs) return;
      [heap[parent], heap[child]] = [heap[child]!, heap[parent]!];
      child = parent;
    }
  }

  #pop(): Due<T> | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (heap.length === 0 || last === undefined) return top;
    heap[0] = last;
    for (let parent = 0; ; ) {
      let least = parent;
      for (const child of [2 * parent + 1, 2 * parent + 2]) {
        if (child < heap.length && heap[child]!.atMs < heap[least]!.atMs) least = child;
      }
      if (least === parent) return top;
      [heap[parent], heap[least]] = [heap[least]!, heap[parent]!];
      parent = least;
    }
  }
}
