import fc from "fast-check";
import { expect, test } from "vitest";
import { coreOf, encodingsOf, SECRET_MIN_BYTES } from "./encodings.ts";
import { MASK, Masker, masked, Needles } from "./masker.ts";

const bytes = fc.uint8Array({ minLength: SECRET_MIN_BYTES, maxLength: 80 });
const text = fc.string({ unit: "grapheme", minLength: 6, maxLength: 40 }).map((value) => Buffer.from(value));
/** Few different bytes, so that secrets overlap themselves and each other. */
const abc = (minLength: number, maxLength: number) =>
  fc.array(fc.constantFrom(97, 98, 99), { minLength, maxLength }).map((list) => Buffer.from(list));

function inChunks(needles: Needles, whole: Buffer, cuts: readonly number[]): Buffer {
  const masker = new Masker(needles);
  const parts: Buffer[] = [];
  const at = [...new Set(cuts.map((cut) => cut % (whole.length + 1)))].sort((a, b) => a - b);
  for (const [index, cut] of [...at, whole.length].entries())
    parts.push(masker.push(whole.subarray(index === 0 ? 0 : at[index - 1], cut)));
  return Buffer.concat([...parts, masker.end()]);
}

/** As plain as it can be said: bytes that lie in a secret, each run of overlapping ones as one mask. */
function reference(needles: readonly Buffer[], whole: Buffer): Buffer {
  const spans = needles.flatMap((needle) => {
    const found: [number, number][] = [];
    for (let at = 0; at + needle.length <= whole.length; at++)
      if (whole.subarray(at, at + needle.length).equals(needle)) found.push([at, at + needle.length]);
    return found;
  });
  spans.sort((a, b) => a[0] - b[0]);
  const parts: Buffer[] = [];
  let end = 0;
  for (const [from, to] of spans) {
    if (end === 0 || from >= end) parts.push(whole.subarray(end, from), MASK);
    end = Math.max(end, to);
  }
  return Buffer.concat([...parts, whole.subarray(end)]);
}

test("however a stream is cut, the same is masked as in the whole of it, byte for byte", () => {
  fc.assert(
    fc.property(
      fc.array(abc(SECRET_MIN_BYTES, 9), { minLength: 1, maxLength: 3 }),
      abc(0, 200),
      fc.array(fc.nat(), { maxLength: 30 }),
      (secrets, whole, cuts) => {
        const needles = new Needles(secrets);
        const expected = reference(needles.all, whole);
        expect(masked(needles, whole).bytes.equals(expected)).toBe(true);
        expect(inChunks(needles, whole, cuts).equals(expected)).toBe(true);
      },
    ),
    { numRuns: 3_000 },
  );
});

test("what belongs to a masked secret stays masked while it is held back for another", () => {
  const masker = new Masker(new Needles([Buffer.from("cbaaba"), Buffer.from("aaaaaa")]));
  const parts = [masker.push(Buffer.from("cbaaba")), masker.push(Buffer.alloc(0)), masker.end()];
  expect(Buffer.concat(parts).toString()).toBe("***");
});

test("no form of a secret comes through, whatever stands around it and wherever the chunks end", () => {
  const secret = fc
    .oneof(
      bytes.map((list) => Buffer.from(list)),
      text,
    )
    .filter((value) => encodingsOf(value).length > 0);
  fc.assert(
    fc.property(
      secret,
      bytes,
      fc.array(fc.nat(), { maxLength: 12 }),
      fc.nat(),
      (value, around, cuts, pick) => {
        const forms = encodingsOf(value);
        const whole = Buffer.concat([Buffer.from(around), forms[pick % forms.length]!, Buffer.from(around)]);
        const needles = new Needles([value]);
        const out = inChunks(needles, whole, cuts);
        for (const form of forms) expect(out.includes(form)).toBe(false);
      },
    ),
    { numRuns: 1_000 },
  );
});

test("base64 of a secret is found at every place that it can have in a text", () => {
  fc.assert(
    fc.property(bytes, bytes, bytes, (before, value, after) => {
      fc.pre(coreOf(Buffer.from(value)).length >= SECRET_MIN_BYTES);
      const whole = Buffer.concat([Buffer.from(before), Buffer.from(value), Buffer.from(after)]);
      for (const encoding of ["base64", "base64url"] as const) {
        const { count } = masked(new Needles([Buffer.from(value)]), Buffer.from(whole.toString(encoding)));
        expect(count).toBeGreaterThan(0);
      }
    }),
  );
});
