import fc from "fast-check";
import { expect, test } from "vitest";
import { Fifo } from "./fifo.ts";

test("a queue gives what an array would, also when it is long and taken from in between", () => {
  const bursts = fc.array(fc.record({ push: fc.nat(3_000), shift: fc.nat(3_000) }), { maxLength: 6 });
  fc.assert(
    fc.property(bursts, (list) => {
      const queue = new Fifo<number>();
      const expected: number[] = [];
      const taken: (number | undefined)[] = [];
      let pushed = 0;
      let next = 0;
      for (const { push, shift } of list) {
        for (let n = 0; n < push; n++) queue.push(pushed++);
        for (let n = 0; n < shift; n++) {
          taken.push(queue.shift());
          expected.push(next < pushed ? next++ : Number.NaN);
        }
        expect(queue.length).toBe(pushed - next);
      }
      expect(taken.map((item) => item ?? Number.NaN)).toEqual(expected);
    }),
    { numRuns: 50 },
  );
});
