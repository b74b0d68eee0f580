import { describe, expect, test } from "vitest";
import type { DatasetSpec, EnvironmentSpec, StepSpec } from "../../shared/model/spec.ts";
import { createCedarPlacement } from "./cedar-placement.ts";
import { explainRefusal, refusalLines } from "./choose.ts";
import { DEFAULT_POLICIES } from "./default-policies.ts";
import type { PlacementFacts } from "./placement.ts";

function aStep(over: Partial<StepSpec> = {}): StepSpec {
  return {
    id: "summarise",
    needs: [],
    executor: { kind: "noop" },
    env: {},
    files: [],
    reads: [],
    writes: [],
    environments: [],
    outputs: {},
    artifacts: {},
    retry: { max: 0, backoffMs: 0, factor: 1, backoffMaxMs: 0, jitter: 0 },
    timeoutMs: 1000,
    unplaceableMs: 1000,
    pools: [],
    ...over,
  };
}

function environment(name: string, jurisdiction: string): EnvironmentSpec {
  return { name, jurisdiction, labels: {} };
}

function dataset(name: string, over: Partial<DatasetSpec> = {}): DatasetSpec {
  return {
    name,
    owner: "lab",
    classification: "restricted",
    residency: ["DE"],
    environments: ["biscoe"],
    ...over,
  };
}

function facts(environments: EnvironmentSpec[], ...datasets: DatasetSpec[]): PlacementFacts {
  return { environments, datasets: new Map(datasets.map((spec) => [spec.name, spec])) };
}

const SITES = [environment("hq", "US"), environment("biscoe", "DE"), environment("dream", "DE")];
const PENGUINS = dataset("penguins-biscoe");

function allowed(step: StepSpec, of: PlacementFacts, placement = createCedarPlacement()): string[] {
  return placement
    .explain("penguins", step, of)
    .filter((verdict) => verdict.allowed)
    .map((verdict) => verdict.environment);
}

describe("the default policies", () => {
  test("a step without data may run everywhere", () => {
    expect(allowed(aStep(), facts(SITES))).toEqual(["biscoe", "dream", "hq"]);
  });

  test("a step that reads a dataset runs only where it is held and may be", () => {
    expect(allowed(aStep({ reads: ["penguins-biscoe"] }), facts(SITES, PENGUINS))).toEqual(["biscoe"]);
  });

  test("an environment that holds the data outside its residency is refused by the rule residency alone", () => {
    const stray = dataset("penguins-biscoe", { environments: ["hq", "biscoe"] });
    const [, , hq] = createCedarPlacement().explain(
      "penguins",
      aStep({ reads: [stray.name] }),
      facts(SITES, stray),
    );
    expect(hq).toEqual({
      environment: "hq",
      allowed: false,
      reasons: [
        {
          policy: "residency",
          dataset: "penguins-biscoe",
          message: "dataset penguins-biscoe must stay in DE; US is not part of it (rule residency)",
        },
      ],
    });
  });

  test("writing is bound to the holders as reading is", () => {
    expect(allowed(aStep({ writes: ["penguins-biscoe"] }), facts(SITES, PENGUINS))).toEqual(["biscoe"]);
  });

  test("a dataset that is read and written gives each reason once", () => {
    const step = aStep({ reads: ["penguins-biscoe"], writes: ["penguins-biscoe"] });
    const [, dream] = createCedarPlacement().explain("penguins", step, facts(SITES, PENGUINS));
    expect(dream?.reasons.map((reason) => reason.message)).toEqual([
      "dataset penguins-biscoe is held by biscoe, not by dream (rule holds)",
    ]);
  });

  test("a dataset that nobody knows is refused everywhere, by name", () => {
    const verdicts = createCedarPlacement().explain(
      "penguins",
      aStep({ reads: ["penguin"] }),
      facts(SITES, PENGUINS),
    );
    expect(verdicts.map((verdict) => verdict.allowed)).toEqual([false, false, false]);
    expect(verdicts[0]?.reasons[0]).toMatchObject({ policy: "unknown-dataset", dataset: "penguin" });
  });

  test("a residency of EU admits its member states and nobody else", () => {
    const held = dataset("penguins-biscoe", { residency: ["EU"], environments: ["biscoe", "hq", "zurich"] });
    expect(
      allowed(aStep({ reads: [held.name] }), facts([...SITES, environment("zurich", "CH")], held)),
    ).toEqual(["biscoe"]);
  });

  test("a step's own list narrows, and is named as the reason elsewhere", () => {
    const verdicts = createCedarPlacement().explain(
      "penguins",
      aStep({ environments: ["hq"] }),
      facts(SITES),
    );
    expect(verdicts.map((verdict) => verdict.allowed)).toEqual([false, false, true]);
    expect(verdicts[0]?.reasons).toEqual([
      { policy: "pinned", dataset: null, message: "the step is pinned to hq, not to biscoe (rule pinned)" },
    ]);
  });

  test("a step's own list never widens what policy allows", () => {
    const step = aStep({ reads: ["penguins-biscoe"], environments: ["hq"] });
    expect(allowed(step, facts(SITES, PENGUINS))).toEqual([]);
  });

  test("a reason that several environments share is a sentence about them all", () => {
    const here = [environment("hq", "US"), environment("lab", "US")];
    const step = aStep({ reads: ["penguins-biscoe"] });
    const verdicts = createCedarPlacement().explain("penguins", step, facts(here, PENGUINS));
    expect(refusalLines(step, verdicts)).toEqual([
      "hq, lab: dataset penguins-biscoe is held by biscoe, not by these (rule holds)",
      "hq, lab: dataset penguins-biscoe must stay in DE; US is not part of it (rule residency)",
      "no environment may run it as it is written",
    ]);
  });

  test("the refusal of a pipeline names the step, the data, the rules and where it could run", () => {
    const step = aStep({ id: "merge", reads: ["penguins-biscoe"], environments: ["hq"] });
    const verdicts = createCedarPlacement().explain("penguins", step, facts(SITES, PENGUINS));
    expect(explainRefusal(step, verdicts)).toBe(
      "step merge reads penguins-biscoe and is pinned to hq; rules holds, residency forbid it in hq " +
        "(dataset penguins-biscoe is held by biscoe, not by hq; dataset penguins-biscoe must stay in DE; US is not part of it); " +
        "it could run in: biscoe",
    );
  });
});

describe("a verdict that is remembered", () => {
  test("is not used after the facts behind it changed, even in place", () => {
    const placement = createCedarPlacement();
    const held = dataset("penguins-biscoe", { environments: ["biscoe"] });
    const of = facts(SITES, held);
    const step = aStep({ reads: [held.name] });
    expect(allowed(step, of, placement)).toEqual(["biscoe"]);
    held.environments = ["dream"];
    expect(allowed(step, of, placement)).toEqual(["dream"]);
    held.residency = ["US"];
    expect(allowed(step, of, placement)).toEqual([]);
  });

  test("is shared by steps that differ only in their ids", () => {
    const placement = createCedarPlacement();
    const of = facts(SITES, PENGUINS);
    const first = placement.explain("penguins", aStep({ id: "a", reads: [PENGUINS.name] }), of);
    expect(placement.explain("penguins", aStep({ id: "b", reads: [PENGUINS.name] }), of)).toBe(first);
    expect(placement.explain("other", aStep({ id: "b", reads: [PENGUINS.name] }), of)).not.toBe(first);
  });

  test("cannot be changed by whoever receives it", () => {
    const verdicts = createCedarPlacement().explain(
      "penguins",
      aStep({ environments: ["hq"] }),
      facts(SITES),
    );
    expect(() => verdicts[0]?.reasons.pop()).toThrow(TypeError);
  });
});

describe("another policy set", () => {
  const withRule = (name: string, text: string) =>
    createCedarPlacement({ ...DEFAULT_POLICIES, rules: { ...DEFAULT_POLICIES.rules, [name]: text } });

  test("that leaves the permit out allows nothing, and says so", () => {
    const { baseline: _, ...rules } = DEFAULT_POLICIES.rules;
    const [first] = createCedarPlacement({ ...DEFAULT_POLICIES, rules }).explain(
      "penguins",
      aStep(),
      facts(SITES),
    );
    expect(first).toMatchObject({ allowed: false, reasons: [{ policy: "default-deny", dataset: null }] });
  });

  test("whose rule fails while it is evaluated denies, though every other rule allows", () => {
    const placement = withRule(
      "overflow",
      `forbid (principal, action == Action::"place", resource)
       when { 9223372036854775807 + (if resource.jurisdiction == "US" then 1 else 0) == 0 };`,
    );
    const verdicts = placement.explain("penguins", aStep(), facts(SITES));
    expect(verdicts.map((verdict) => verdict.allowed)).toEqual([true, true, false]);
    expect(verdicts[2]?.reasons[0]?.policy).toBe("overflow");
    expect(verdicts[2]?.reasons[0]?.message).toContain("could not be evaluated");
  });

  test("is named by its own rule in the refusal", () => {
    const placement = withRule(
      "no-secrets",
      `forbid (principal, action == Action::"read", resource) when { resource.classification == "secret" };`,
    );
    const secret = dataset("keys", { classification: "secret" });
    const [biscoe] = placement.explain("penguins", aStep({ reads: ["keys"] }), facts(SITES, secret));
    expect(biscoe?.reasons).toEqual([
      {
        policy: "no-secrets",
        dataset: "keys",
        message: "rule no-secrets forbids reading dataset keys in biscoe",
      },
    ]);
  });

  test("that does not fit the schema is refused when it is loaded, with the rule's name", () => {
    expect(() =>
      withRule("typo", `forbid (principal, action, resource) when { resource.residence == "DE" };`),
    ).toThrow(/rule typo/);
  });

  test("that does not parse is refused when it is loaded", () => {
    expect(() => withRule("broken", "forbid (")).toThrow(/placement policies cannot be used/);
  });

  test("has another version; the same one has the same", () => {
    expect(createCedarPlacement().version).toBe(createCedarPlacement({ ...DEFAULT_POLICIES }).version);
    expect(withRule("more", "permit (principal, action, resource);").version).not.toBe(
      createCedarPlacement().version,
    );
  });
});
