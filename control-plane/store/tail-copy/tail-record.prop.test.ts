import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeRecords, encodeRecord, type TailRecord } from "./tail-record.ts";

const name = fc.string({ minLength: 1, maxLength: 20 });
const record: fc.Arbitrary<TailRecord> = fc.oneof(
  fc.record({
    kind: fc.constant("message" as const),
    stream: name,
    seq: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
    subject: name,
    headers: fc.array(fc.tuple(fc.string(), fc.string()), { maxLength: 4 }),
    data: fc.uint8Array({ maxLength: 200 }),
  }),
  fc.record({
    kind: fc.constant("stream" as const),
    stream: name,
    config: fc.dictionary(
      fc.string().filter((key) => key !== "__proto__"),
      fc.oneof(fc.string(), fc.integer(), fc.boolean()),
      { noNullPrototype: true, maxKeys: 5 },
    ),
    floor: fc.nat(),
  }),
  fc.record({ kind: fc.constant("batch" as const), begins: fc.nat() }),
);

function plain(records: readonly TailRecord[]): unknown[] {
  return records.map((each) => (each.kind === "message" ? { ...each, data: [...each.data] } : each));
}

test("what was written is read again, and a torn end takes the torn record alone", () => {
  fc.assert(
    fc.property(fc.array(record, { maxLength: 8 }), record, fc.nat(), (whole, last, cut) => {
      const before = Buffer.concat(whole.map(encodeRecord));
      const torn = encodeRecord(last);
      const bytes = Buffer.concat([before, torn.subarray(0, cut % torn.length)]);
      const read = decodeRecords(bytes);
      expect(plain(read.records.map((placed) => placed.record))).toEqual(plain(whole));
      expect(read.wholeBytes).toBe(before.length);
    }),
  );
});

test("a byte that a bad disk has changed ends what is read there", () => {
  fc.assert(
    fc.property(
      fc.array(record, { minLength: 1, maxLength: 6 }),
      fc.nat(),
      fc.integer({ min: 1, max: 255 }),
      (all, at, flip) => {
        const frames = all.map(encodeRecord);
        const bytes = Buffer.concat(frames);
        const place = at % bytes.length;
        bytes[place] = bytes[place]! ^ flip;
        let [hit, end] = [0, frames[0]!.length];
        while (end <= place) end += frames[++hit]!.length;
        expect(decodeRecords(bytes).records).toHaveLength(hit);
      },
    ),
  );
});
