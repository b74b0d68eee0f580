/** Which sequences of one stream the tail copy holds. */
export class Coverage {
  #floor: number;
  /** All above the floor up to this are held, or were looked for and are not in the stream. */
  #covered: number;
  readonly #ahead = new Set<number>();

  constructor(floor: number) {
    this.#floor = floor;
    this.#covered = floor;
  }

  /** What has a sequence up to this is not held. */
  get floor(): number {
    return this.#floor;
  }

  get covered(): number {
    return this.#covered;
  }

  add(seq: number): void {
    if (seq <= this.#covered) return;
    this.#ahead.add(seq);
    while (this.#ahead.delete(this.#covered + 1)) this.#covered += 1;
  }

  /** Sequences up to this one that are not held and are not known to be gone; at most so many. */
  missing(upToSeq: number, max: number): number[] {
    const found: number[] = [];
    for (let seq = this.#covered + 1; seq <= upToSeq && found.length < max; seq++)
      if (!this.#ahead.has(seq)) found.push(seq);
    return found;
  }

  raiseFloor(seq: number): void {
    this.#floor = Math.max(this.#floor, seq);
    if (seq <= this.#covered) return;
    this.#covered = seq;
    for (const held of this.#ahead) if (held <= seq) this.#ahead.delete(held);
    while (this.#ahead.delete(this.#covered + 1)) this.#covered += 1;
  }
}
