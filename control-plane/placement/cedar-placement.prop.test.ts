import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { DatasetSpec, EnvironmentSpec, StepSpec } from "../../shared/model/spec.ts";
import { createCedarPlacement } from "./cedar-placement.ts";
import { chooseEnvironment } from "./choose.ts";
import type { PlacementFacts } from "./placement.ts";

const COUNTRIES = ["DE", "FR", "US", "CH"];
const SITES = ["a", "b", "c", "d"];
const DATASETS = ["x", "y", "z"];
const placement = createCedarPlacement();

const environments = fc
  .tuple(
    ...SITES.map((name) =>
      fc.constantFrom(...COUNTRIES).map((jurisdiction) => ({ name, jurisdiction, labels: {} })),
    ),
  )
  .chain((all) => fc.shuffledSubarray<EnvironmentSpec>(all));
const datasets = fc.tuple(
  ...DATASETS.map((name) =>
    fc.record<DatasetSpec>({
      name: fc.constant(name),
      owner: fc.constant("lab"),
      classification: fc.constantFrom("public", "secret"),
      residency: fc.subarray(COUNTRIES, { minLength: 1 }),
      environments: fc.subarray(SITES),
    }),
  ),
);
/** May name one that is not known. */
const names = fc.subarray([...DATASETS, "unknown"]);
const facts = fc
  .record({ environments, datasets })
  .map((of): PlacementFacts => ({ ...of, datasets: new Map(of.datasets.map((spec) => [spec.name, spec])) }));
const steps = fc.record({ reads: names, writes: names, environments: fc.subarray(SITES) }).map(
  ({ reads, writes, environments }): StepSpec => ({
    id: "s",
    needs: [],
    executor: { kind: "noop" },
    env: {},
    files: [],
    reads,
    writes,
    environments,
    outputs: {},
    artifacts: {},
    retry: { max: 0, backoffMs: 0, factor: 1, backoffMaxMs: 0, jitter: 0 },
    timeoutMs: 1,
    unplaceableMs: 0,
    pools: [],
  }),
);

function allowed(step: StepSpec, of: PlacementFacts): string[] {
  return placement
    .explain("p", step, of)
    .filter((verdict) => verdict.allowed)
    .map((verdict) => verdict.environment);
}

describe("placement", () => {
  test("a step may run exactly where every dataset it touches is held and may be, within its own list", () => {
    fc.assert(
      fc.property(facts, steps, (of, step) => {
        const touched = [...step.reads, ...step.writes].map((name) => of.datasets.get(name));
        const expected = of.environments
          .filter(({ name }) => step.environments.length === 0 || step.environments.includes(name))
          .filter(({ name, jurisdiction }) =>
            touched.every((set) => set?.environments.includes(name) && set.residency.includes(jurisdiction)),
          )
          .map(({ name }) => name);
        expect(allowed(step, of)).toEqual(expected.sort());
      }),
    );
  });

  test("one more dataset never widens where a step may run", () => {
    fc.assert(
      fc.property(facts, steps, fc.constantFrom(...DATASETS, "unknown"), (of, step, more) => {
        const before = new Set(allowed(step, of));
        const after = allowed({ ...step, reads: [...step.reads, more] }, of);
        expect(after.filter((name) => !before.has(name))).toEqual([]);
      }),
    );
  });

  test("a refused environment always has a reason, and an allowed one has none", () => {
    fc.assert(
      fc.property(facts, steps, (of, step) => {
        for (const verdict of placement.explain("p", step, of)) {
          expect(verdict.allowed).toBe(verdict.reasons.length === 0);
        }
      }),
    );
  });

  test("whatever the load, the choice is one of the environments that policy allows", () => {
    const load = fc.record({ agents: fc.nat(3), freeSlots: fc.nat(3), outstandingOffers: fc.nat(3) });
    fc.assert(
      fc.property(facts, steps, fc.array(fc.tuple(fc.constantFrom(...SITES), load)), (of, step, loads) => {
        const verdicts = placement.explain("p", step, of);
        const chosen = chooseEnvironment(verdicts, new Map(loads));
        const options = allowed(step, of);
        if (options.length === 0) expect(chosen).toBeNull();
        else expect(options).toContain(chosen);
      }),
    );
  });
});
