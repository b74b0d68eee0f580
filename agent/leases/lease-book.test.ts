import { expect, test } from "vitest";
import { leaseKey, offerOf } from "../agent.fixture.ts";
import { LeaseBook } from "./lease-book.ts";

const offer = (epoch: number, change: Parameters<typeof offerOf>[0] = {}) =>
  offerOf({ lease: leaseKey({ epoch }), ...change });

test("an offer of another environment is refused with both names", () => {
  expect(new LeaseBook("hq").decide(offer(1), 0)).toEqual({
    kind: "refuse",
    reason: "it is for environment dream, this is hq",
  });
});

test("an offer is taken until the moment it expires, and refused after it", () => {
  const book = new LeaseBook("dream");
  expect(book.decide(offer(1, { expiresAtMs: 100 }), 100)).toEqual({ kind: "take" });
  expect(book.decide(offer(1, { expiresAtMs: 100 }), 101)).toEqual({
    kind: "refuse",
    reason: "it has expired",
  });
});

test("the same grant again is a duplicate, an older one is refused, a newer one is taken", () => {
  const book = new LeaseBook("dream");
  book.note(leaseKey({ epoch: 3 }));
  expect(book.decide(offer(3), 0)).toEqual({ kind: "duplicate" });
  expect(book.decide(offer(2), 0)).toEqual({ kind: "refuse", reason: "epoch 2 is older than 3" });
  expect(book.decide(offer(4), 0)).toEqual({ kind: "take" });
});

test("epochs of one step say nothing of another", () => {
  const book = new LeaseBook("dream");
  book.note(leaseKey({ epoch: 9 }));
  expect(book.decide(offerOf({ lease: leaseKey({ stepId: "merge", epoch: 1 }) }), 0)).toEqual({
    kind: "take",
  });
  expect(book.decide(offerOf({ lease: leaseKey({ runId: "run-2", epoch: 1 }) }), 0)).toEqual({
    kind: "take",
  });
});

test("a grant that could not be written is taken when it comes again, and older ones are still refused", () => {
  const book = new LeaseBook("dream");
  book.note(leaseKey({ epoch: 2 }));
  book.forget(leaseKey({ epoch: 2 }));
  expect(book.decide(offer(2), 0)).toEqual({ kind: "take" });
  expect(book.decide(offer(1), 0)).toEqual({ kind: "duplicate" });
  book.note(leaseKey({ epoch: 5 }));
  book.forget(leaseKey({ epoch: 4 }));
  expect(book.decide(offer(5), 0)).toEqual({ kind: "duplicate" });
});
