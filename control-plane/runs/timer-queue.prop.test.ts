import fc from "fast-check";
import { expect, test } from "vitest";
import { type Due, TimerQueue } from "./timer-queue.ts";

const actions = fc.array(
  fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ do: fc.constant("set" as const), key: fc.nat(20), atMs: fc.nat(100) }),
    },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("delete" as const), key: fc.nat(20) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("take" as const), nowMs: fc.nat(100) }) },
  ),
  { maxLength: 200 },
);

const byTimeAndKey = (a: Due<number>, b: Due<number>) => a.atMs - b.atMs || (a.key < b.key ? -1 : 1);

test("the queue gives what a sorted list would: each timer once, when it is due, the replaced and deleted never", () => {
  fc.assert(
    fc.property(actions, (list) => {
      const queue = new TimerQueue<number>();
      const model = new Map<string, Due<number>>();
      for (const [value, action] of list.entries()) {
        if (action.do === "set") {
          const key = `k${action.key}`;
          queue.set(key, action.atMs, value);
          model.set(key, { key, atMs: action.atMs, value });
        } else if (action.do === "delete") {
          queue.delete(`k${action.key}`);
          model.delete(`k${action.key}`);
        } else {
          const taken = queue.take(action.nowMs);
          const due = [...model.values()].filter(({ atMs }) => atMs <= action.nowMs);
          for (const { key } of due) model.delete(key);
          expect(taken.map(({ atMs }) => atMs)).toEqual(due.map(({ atMs }) => atMs).sort((a, b) => a - b));
          expect([...taken].sort(byTimeAndKey)).toEqual(due.sort(byTimeAndKey));
        }
        const earliest = Math.min(...[...model.values()].map(({ atMs }) => atMs));
        expect(queue.nextAtMs()).toBe(model.size === 0 ? undefined : earliest);
        expect(queue.size).toBe(model.size);
      }
    }),
  );
});

test("timers that are replaced again and again do not pile up, and come in order", () => {
  const queue = new TimerQueue<number>();
  for (let round = 0; round < 50; round++) {
    for (let n = 0; n < 100; n++) queue.set(`k${n}`, (n * 37 + round) % 101, round);
  }
  const taken = queue.take(1_000);
  expect(taken.map(({ atMs }) => atMs)).toEqual(
    Array.from({ length: 100 }, (_, n) => (n * 37 + 49) % 101).sort((a, b) => a - b),
  );
  expect(taken.every(({ value }) => value === 49)).toBe(true);
  expect(queue.size).toBe(0);
});
