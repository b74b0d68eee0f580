/** Inputs near the valid ones, where decoders break: valid bytes with a few edits, and words in any order. */
import fc from "fast-check";

/** How many inputs each decoder gets: a thousand in `npm test`, as many as asked for in `npm run fuzz`. */
export const INPUTS = Number(process.env.INSITU_FUZZ_INPUTS ?? 1_000);

type Edit = (bytes: Buffer) => Buffer;

const at = (share: number, bytes: Buffer): number => Math.floor(share * bytes.length);
const share = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

const edit: fc.Arbitrary<Edit> = fc.oneof(
  fc.tuple(share, fc.nat(7)).map(
    ([where, bit]): Edit =>
      (bytes) => {
        const copy = Buffer.from(bytes);
        if (copy.length > 0) copy[at(where, copy)]! ^= 1 << bit;
        return copy;
      },
  ),
  fc.tuple(share, fc.uint8Array({ minLength: 1, maxLength: 12 })).map(
    ([where, more]): Edit =>
      (bytes) =>
        Buffer.concat([bytes.subarray(0, at(where, bytes)), more, bytes.subarray(at(where, bytes))]),
  ),
  fc.tuple(share, share).map(
    ([from, to]): Edit =>
      (bytes) =>
        Buffer.concat([bytes.subarray(0, at(from, bytes)), bytes.subarray(at(to, bytes))]),
  ),
  share.map(
    (where): Edit =>
      (bytes) =>
        bytes.subarray(0, at(where, bytes)),
  ),
);

/** One of the valid inputs with up to six edits, or bytes that never were one. */
export function nearly(...valid: readonly Uint8Array[]): fc.Arbitrary<Buffer> {
  const edited = fc
    .tuple(fc.constantFrom(...valid), fc.array(edit, { maxLength: 6 }))
    .map(([bytes, edits]) => edits.reduce<Buffer>((now, change) => change(now), Buffer.from(bytes)));
  const any = fc.uint8Array({ maxLength: 400 }).map((bytes): Buffer => Buffer.from(bytes));
  return fc.oneof({ arbitrary: edited, weight: 4 }, { arbitrary: any, weight: 1 });
}

/** Text of those words, in any order, any number of times. */
export function soup(words: readonly string[], maxLength = 40): fc.Arbitrary<string> {
  const word = fc.oneof(
    { arbitrary: fc.constantFrom(...words), weight: 8 },
    { arbitrary: fc.string({ maxLength: 8, unit: "binary" }), weight: 1 },
  );
  return fc.array(word, { maxLength }).map((parts) => parts.join(""));
}

/** A value of JSON whose keys and strings are often those words. */
export function jsonOf(words: readonly string[]): fc.Arbitrary<unknown> {
  const text = fc.oneof(fc.constantFrom(...words), fc.string({ maxLength: 12, unit: "binary" }));
  return fc.letrec((tie) => ({
    value: fc.oneof(
      { maxDepth: 4, withCrossShrink: true },
      text,
      fc.constantFrom(null, true, 0, -1, 1e308, Number.MAX_SAFE_INTEGER, 0.1),
      fc.array(tie("value"), { maxLength: 4 }),
      fc.dictionary(text, tie("value"), { maxKeys: 6 }),
    ),
  })).value;
}
