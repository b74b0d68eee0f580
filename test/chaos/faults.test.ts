import { expect, test } from "vitest";
import { FAULT_KINDS, isOfNetwork, scheduleFaults } from "./faults.ts";

const CAST = { replicas: ["r1", "r2"], nats: ["n1"], sites: { a: ["a1", "a2"], b: ["b1"] } };
const OPTIONS = {
  seed: 3,
  cast: CAST,
  kinds: FAULT_KINDS,
  durationMs: 3_600_000,
  meanMs: 1_000,
  concurrentMax: 3,
};

test("the same seed gives the same faults, another seed others", () => {
  expect(scheduleFaults(OPTIONS)).toEqual(scheduleFaults(OPTIONS));
  expect(scheduleFaults({ ...OPTIONS, seed: 4 })).not.toEqual(scheduleFaults(OPTIONS));
});

test("an hour has every kind of fault, for everyone whom it can befall", () => {
  const faults = scheduleFaults(OPTIONS);
  expect(new Set(faults.map(({ kind }) => kind))).toEqual(new Set(FAULT_KINDS));
  expect(new Set(faults.filter(({ kind }) => kind === "kill host").map(({ target }) => target))).toEqual(
    new Set(["a1", "a2", "b1"]),
  );
});

test("never more at the same time than allowed, and a party is under one at a time", () => {
  const faults = scheduleFaults(OPTIONS);
  for (const { id, atMs, kind, target } of faults) {
    const others = faults.filter((one) => one.id < id && one.atMs + one.lengthMs > atMs);
    expect(others.length).toBeLessThan(OPTIONS.concurrentMax);
    if (!isOfNetwork(kind))
      expect(others.filter((one) => one.target === target && !isOfNetwork(one.kind))).toEqual([]);
  }
});

test("a fault of the network stands between others than those of one side", () => {
  const pairs = scheduleFaults(OPTIONS)
    .filter(({ target }) => target === "site a")
    .flatMap((fault) => fault.pairs);
  expect(pairs.length).toBeGreaterThan(0);
  for (const [one, other] of pairs)
    expect(["a1", "a2"].includes(one) && !["a1", "a2"].includes(other)).toBe(true);
});
