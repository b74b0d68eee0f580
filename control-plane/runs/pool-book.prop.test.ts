import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { PoolBook, type StepRef } from "./pool-book.ts";

const POOLS = ["cpu", "gpu", "licence"];
const step = (n: number): StepRef => ({ runId: `r${n % 3}`, stepId: `s${n}` });
const keyOf = ({ runId, stepId }: StepRef) => `${runId}/${stepId}`;

test("a pool never has more holders than places, and a step holds all of its pools or none", () => {
  const steps = fc.array(fc.subarray(POOLS, { minLength: 1 }), { minLength: 1, maxLength: 10 });
  const capacities = fc.record({ cpu: fc.nat(3), gpu: fc.nat(2), licence: fc.nat(1) });
  const actions = fc.array(fc.record({ step: fc.nat(9), release: fc.boolean() }), { maxLength: 80 });
  fc.assert(
    fc.property(steps, capacities, actions, (pools, capacity, list) => {
      const book = new PoolBook();
      const capacityOf = (pool: string) => capacity[pool as keyof typeof capacity];
      const holding = new Map<number, readonly string[]>();
      const holdersOf = (pool: string) => [...holding.values()].filter((held) => held.includes(pool)).length;
      for (const action of list) {
        const n = action.step % pools.length;
        const wanted = pools[n]!;
        if (action.release) {
          const held = holding.get(n);
          const waiting = book.waiting().map(keyOf);
          const woken = book.release(step(n), wanted).map(keyOf);
          holding.delete(n);
          const sharers = waiting.filter((key) =>
            pools.some((theirs, m) => keyOf(step(m)) === key && theirs.some((pool) => wanted.includes(pool))),
          );
          expect(woken).toEqual(held ? sharers : []);
        } else {
          const fits = holding.has(n) || wanted.every((pool) => holdersOf(pool) < capacityOf(pool));
          expect(book.acquire(step(n), wanted, capacityOf).acquired).toBe(fits);
          if (fits) holding.set(n, wanted);
          expect(
            book
              .waiting()
              .map(keyOf)
              .includes(keyOf(step(n))),
          ).toBe(!fits);
        }
        for (const pool of POOLS) expect(holdersOf(pool)).toBeLessThanOrEqual(capacityOf(pool));
      }
    }),
  );
});

describe("a place", () => {
  const one = () => 1;

  test("that was granted before a restart counts, also beyond what the pool now holds", () => {
    const book = new PoolBook();
    book.hold(step(1), "cpu");
    book.hold(step(2), "cpu");
    expect(book.acquire(step(3), ["cpu"], one)).toEqual({
      acquired: false,
      message: "pool cpu is full (1 of 1 in use)",
    });
    expect(book.release(step(1), ["cpu"])).toMatchObject([step(3)]);
    expect(book.acquire(step(3), ["cpu"], one).acquired).toBe(false);
    book.release(step(2), ["cpu"]);
    expect(book.acquire(step(3), ["cpu"], one).acquired).toBe(true);
  });

  test("is offered to those who wait, first come first", () => {
    const book = new PoolBook();
    for (const n of [1, 5, 3, 4]) book.acquire(step(n), ["cpu"], one);
    book.forget(step(3));
    expect(book.release(step(1), ["cpu"])).toMatchObject([step(5), step(4)]);
  });

  test("in a pool that does not exist is given to nobody", () => {
    const book = new PoolBook();
    expect(book.acquire(step(1), ["cpu", "none"], (pool) => (pool === "cpu" ? 1 : undefined))).toEqual({
      acquired: false,
      message: "pool none does not exist",
    });
    expect(book.acquire(step(2), ["cpu"], one).acquired).toBe(true);
  });
});
