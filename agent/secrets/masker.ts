/**
 * Replaces secrets in a stream of bytes, wherever the chunks of it end. Pure but for what it holds back: the longest
 * end of the stream that may be the beginning of a secret.
 */
import { encodingsOf } from "./encodings.ts";

export const MASK = Buffer.from("***");

interface Span {
  start: number;
  end: number;
  /** Its mask was given out with an earlier chunk. */
  told: boolean;
}

/** What is looked for. Shared by the streams of a step. */
export class Needles {
  readonly #byFirst = new Map<number, Buffer[]>();
  readonly all: readonly Buffer[];
  readonly longest: number;

  constructor(secrets: readonly Buffer[]) {
    const forms = secrets.flatMap(encodingsOf);
    this.all = [...new Map(forms.map((form) => [form.toString("latin1"), form])).values()];
    this.longest = Math.max(0, ...this.all.map(({ length }) => length));
    for (const needle of this.all)
      this.#byFirst.set(needle[0]!, [...(this.#byFirst.get(needle[0]!) ?? []), needle]);
  }

  /** Where the longest end of `bytes` starts that is the beginning of a needle, and not all of it. */
  openFrom(bytes: Buffer): number {
    for (let at = Math.max(0, bytes.length - this.longest + 1); at < bytes.length; at++) {
      const length = bytes.length - at;
      for (const needle of this.#byFirst.get(bytes[at]!) ?? [])
        if (needle.length > length && needle.compare(bytes, at, bytes.length, 0, length) === 0) return at;
    }
    return bytes.length;
  }

  /** In order of their start; overlapping ones are one. */
  spansIn(bytes: Buffer, covered: number): Span[] {
    const found: Span[] = covered > 0 ? [{ start: 0, end: covered, told: true }] : [];
    for (const needle of this.all) {
      for (let at = bytes.indexOf(needle); at >= 0; at = bytes.indexOf(needle, at + 1))
        found.push({ start: at, end: at + needle.length, told: false });
    }
    found.sort((a, b) => a.start - b.start || Number(b.told) - Number(a.told));
    const merged: Span[] = [];
    for (const span of found) {
      const last = merged.at(-1);
      if (last && span.start < last.end) last.end = Math.max(last.end, span.end);
      else merged.push(span);
    }
    return merged;
  }
}

export class Masker {
  readonly #needles: Needles;
  #held: Buffer = Buffer.alloc(0);
  /** So much of what is held belongs to a secret whose mask has been given out. */
  #covered = 0;
  /** Masks given out. */
  count = 0;

  constructor(needles: Needles) {
    this.#needles = needles;
  }

  /** What can be said now; the rest follows with the next chunk, or with the end. */
  push(chunk: Buffer): Buffer {
    const bytes = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    return this.#advance(bytes, this.#needles.openFrom(bytes));
  }

  /** The stream has ended. */
  end(): Buffer {
    return this.#advance(this.#held, this.#held.length);
  }

  #advance(bytes: Buffer, until: number): Buffer {
    const parts: Buffer[] = [];
    let at = 0;
    for (const { start, end, told } of this.#needles.spansIn(bytes, this.#covered)) {
      // What was told stays covered, also when all of it is held back again.
      if (start >= until && !told) break;
      parts.push(bytes.subarray(at, start));
      if (!told) {
        parts.push(MASK);
        this.count++;
      }
      at = end;
    }
    if (at < until) parts.push(bytes.subarray(at, until));
    this.#covered = Math.max(0, at - until);
    // A copy: the pipe's buffer is not kept for a few bytes of it.
    this.#held = Buffer.from(bytes.subarray(until));
    return Buffer.concat(parts);
  }
}

/** All at once. */
export function masked(needles: Needles, bytes: Buffer): { bytes: Buffer; count: number } {
  const masker = new Masker(needles);
  return { bytes: Buffer.concat([masker.push(bytes), masker.end()]), count: masker.count };
}
