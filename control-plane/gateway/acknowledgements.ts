/** Which sequence may be acknowledged when things become durable out of order. Pure. */

export interface Rejection {
  seq: number;
  code: string;
  message: string;
}

export interface Acknowledgement {
  ackedSeq: number;
  rejected: Rejection[];
}

interface Entry {
  seq: number;
  done: boolean;
  rejection: Rejection | undefined;
}

/**
 * Keeps the order in which things came. Numbers may be missing (an agent that ran out of room gave some up), and
 * may come again: what is acknowledged is that everything which came up to here is durable or set aside.
 */
export class Acknowledgements {
  readonly #entries: Entry[] = [];
  #ackedSeq = 0;

  /** Notes that `seq` came. The answer is to be called once, when it is durable, or with why it never will be. */
  begin(seq: number): (rejection?: { code: string; message: string }) => void {
    const entry: Entry = { seq, done: false, rejection: undefined };
    this.#entries.push(entry);
    return (rejection) => {
      entry.done = true;
      entry.rejection = rejection === undefined ? undefined : { seq, ...rejection };
    };
  }

  /** What can be said now and was not said before; undefined for nothing. */
  take(): Acknowledgement | undefined {
    const count = this.#entries.findIndex((entry) => !entry.done);
    const done = this.#entries.splice(0, count === -1 ? this.#entries.length : count);
    if (done.length === 0) return undefined;
    for (const entry of done) this.#ackedSeq = Math.max(this.#ackedSeq, entry.seq);
    return { ackedSeq: this.#ackedSeq, rejected: done.flatMap((entry) => entry.rejection ?? []) };
  }

  get pending(): number {
    return this.#entries.length;
  }
}
