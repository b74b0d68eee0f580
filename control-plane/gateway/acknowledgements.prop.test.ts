import fc from "fast-check";
import { expect, test } from "vitest";
import { Acknowledgements } from "./acknowledgements.ts";

test("nothing is acknowledged before everything that came up to it is settled, and in the end all is, once", () => {
  const scenario = fc
    .uniqueArray(fc.integer({ min: 1, max: 1_000 }), { minLength: 1, maxLength: 40 })
    .map((seqs) => seqs.sort((a, b) => a - b))
    .chain((seqs) =>
      fc.record({
        seqs: fc.constant(seqs),
        order: fc.shuffledSubarray(seqs, { minLength: seqs.length }),
        rejected: fc.subarray(seqs),
      }),
    );
  fc.assert(
    fc.property(scenario, ({ seqs, order, rejected }) => {
      const acks = new Acknowledgements();
      const settle = new Map(seqs.map((seq) => [seq, acks.begin(seq)]));
      const settled = new Set<number>();
      const told: number[] = [];
      let acked = 0;
      for (const seq of order) {
        settle.get(seq)!(rejected.includes(seq) ? { code: "request.invalid", message: "no" } : undefined);
        settled.add(seq);
        const ack = acks.take();
        if (ack === undefined) continue;
        expect(ack.ackedSeq).toBeGreaterThan(acked);
        acked = ack.ackedSeq;
        told.push(...ack.rejected.map((r) => r.seq));
        for (const came of seqs) if (came <= acked) expect(settled.has(came)).toBe(true);
      }
      expect(acked).toBe(seqs.at(-1));
      expect(told).toEqual(rejected);
      expect(acks.pending).toBe(0);
      expect(acks.take()).toBeUndefined();
    }),
  );
});

test("a number that comes again holds back what comes after it, and never lowers what is acknowledged", () => {
  const acks = new Acknowledgements();
  const [five, six] = [acks.begin(5), acks.begin(6)];
  const again = acks.begin(5);
  five();
  six();
  expect(acks.take()?.ackedSeq).toBe(6);
  const seven = acks.begin(7);
  seven();
  expect(acks.take()).toBeUndefined();
  again();
  expect(acks.take()?.ackedSeq).toBe(7);
});
