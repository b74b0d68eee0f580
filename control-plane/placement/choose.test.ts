import { describe, expect, test } from "vitest";
import {
  chooseEnvironment,
  type EnvironmentLoad,
  explainRefusal,
  isPlaceable,
  refusalLines,
} from "./choose.ts";
import type { EnvironmentVerdict } from "./placement.ts";

const yes = (environment: string): EnvironmentVerdict => ({ environment, allowed: true, reasons: [] });
const no = (environment: string, policy = "holds"): EnvironmentVerdict => ({
  environment,
  allowed: false,
  reasons: [{ policy, dataset: "rows", message: `dataset rows is not in ${environment} (rule ${policy})` }],
});
const load = (agents: number, freeSlots: number, outstandingOffers = 0): EnvironmentLoad => ({
  agents,
  freeSlots,
  outstandingOffers,
});
const choose = (verdicts: EnvironmentVerdict[], loads: Record<string, EnvironmentLoad>) =>
  chooseEnvironment(verdicts, new Map(Object.entries(loads)));

describe("the choice of an environment", () => {
  test("prefers a free slot to an agent that is busy, and that to no agent", () => {
    expect(choose([yes("a"), yes("b"), yes("c")], { a: load(0, 0), b: load(2, 0), c: load(1, 1, 0) })).toBe(
      "c",
    );
    expect(choose([yes("a"), yes("b")], { a: load(0, 0), b: load(2, 0, 7) })).toBe("b");
  });

  test("counts a slot as taken when an offer for it is on its way", () => {
    expect(choose([yes("a"), yes("b")], { a: load(1, 1, 1), b: load(1, 2, 1) })).toBe("b");
  });

  test("takes the one with the fewest outstanding offers, then the first name", () => {
    expect(choose([yes("a"), yes("b")], { a: load(1, 9, 2), b: load(1, 9, 1) })).toBe("b");
    expect(choose([yes("b"), yes("a")], { a: load(1, 9), b: load(1, 9) })).toBe("a");
  });

  test("falls back to an allowed environment without agents, where the offer waits", () => {
    expect(choose([no("a"), yes("b")], { a: load(5, 5) })).toBe("b");
  });

  test("is none when policy allows none", () => {
    expect(choose([no("a")], { a: load(5, 5) })).toBeNull();
    expect(isPlaceable([no("a")])).toBe(false);
  });
});

describe("the refusal of a step", () => {
  const step = { id: "merge", reads: ["rows"], writes: [], environments: [] as string[] };

  test("lists what forbids each environment when the step is pinned nowhere", () => {
    expect(explainRefusal(step, [no("a"), no("b", "residency")])).toBe(
      "step merge reads rows; rule holds forbids it in a (dataset rows is not in a); " +
        "rule residency forbids it in b (dataset rows is not in b); no environment may run it as it is written",
    );
  });

  test("names an environment that the step is pinned to and that does not exist", () => {
    expect(explainRefusal({ ...step, environments: ["moon"] }, [no("a", "pinned")])).toBe(
      "step merge reads rows and is pinned to moon; environment moon does not exist; it could run in: a",
    );
  });

  test("is a list for a terminal, where environments that share a reason share a line", () => {
    expect(refusalLines(step, [no("a"), no("b"), no("c", "residency")])).toEqual([
      "a, b: dataset rows is not in these (rule holds)",
      "c: dataset rows is not in c (rule residency)",
      "no environment may run it as it is written",
    ]);
    const pinned = { ...step, environments: ["a", "moon"] };
    expect(refusalLines(pinned, [no("a"), no("b"), no("c", "pinned")])).toEqual([
      "environment moon does not exist",
      "a: dataset rows is not in a (rule holds)",
      "it could run in: c",
    ]);
    expect(refusalLines(step, [])).toEqual(["there is no environment at all"]);
  });

  test("says so when there is no environment at all", () => {
    expect(explainRefusal(step, [])).toBe("step merge reads rows; there is no environment at all");
  });
});
