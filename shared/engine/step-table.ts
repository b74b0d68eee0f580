const BITS = 5;
const WIDTH = 1 << BITS;

/**
 * An immutable vector of two levels: replacing one entry copies one chunk and the spine.
 *
 * A plain array would make every event of a run of n steps cost n copies, and a fan-out of 10,000 steps a
 * hundred million.
 */
export class StepTable<T> {
  readonly length: number;
  readonly #chunks: readonly (readonly T[])[];

  private constructor(chunks: readonly (readonly T[])[], length: number) {
    this.#chunks = chunks;
    this.length = length;
  }

  static from<T>(items: readonly T[]): StepTable<T> {
    const chunks: T[][] = [];
    for (let i = 0; i < items.length; i += WIDTH) chunks.push(items.slice(i, i + WIDTH));
    return new StepTable(chunks, items.length);
  }

  get(index: number): T {
    return this.#chunks[index >> BITS]![index & (WIDTH - 1)]!;
  }

  with(index: number, value: T): StepTable<T> {
    const chunks = this.#chunks.slice();
    const chunk = chunks[index >> BITS]!.slice();
    chunk[index & (WIDTH - 1)] = value;
    chunks[index >> BITS] = chunk;
    return new StepTable(chunks, this.length);
  }

  *[Symbol.iterator](): IterableIterator<T> {
    for (const chunk of this.#chunks) yield* chunk;
  }
}
