import { describe, expect, test } from "vitest";
import { digestOf } from "../../shared/model/canonical.ts";
import { loadDocuments } from "../../shared/model/load-documents.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import { author } from "../../test/support/signing.ts";
import type { StoredResource } from "../api/services.ts";
import { planApply, signaturesOf, usersOf } from "./plan-apply.ts";

const SET = `
kind: environment
name: biscoe
jurisdiction: AQ
---
kind: dataset
name: penguins
owner: lter
classification: internal
residency: AQ
environments: biscoe
---
kind: pool
name: licences
capacity: 2
---
kind: pipeline
name: count
steps:
  - { id: a, run: [wc, -l], reads: [penguins], pools: licences }
  - { id: b, run: [sort], needs: [a], environment: biscoe }
`;

function load(text: string) {
  const { resources, errors } = loadDocuments({
    files: [{ file: "set.yaml", text }],
    readAttachment: () => undefined,
  });
  expect(errors).toEqual([]);
  return resources;
}

function stored(text: string): Map<string, StoredResource> {
  const resources = load(text);
  const changes = planApply(new Map(), resources);
  return new Map(
    resources.map((resource, index) => {
      const { kind, spec } = resource;
      const version = changes[index]?.version ?? null;
      const value = { kind, name: spec.name, version, spec, revision: 1, appliedAtMs: 0, appliedBy: "test" };
      return [`${kind}/${spec.name}`, value];
    }),
  );
}

const actions = (before: string, after: string) =>
  planApply(stored(before), load(after)).map(({ kind, action }) => `${kind} ${action}`);

describe("an apply", () => {
  test("creates what is not there, and gives pipelines alone a version", () => {
    const changes = planApply(new Map(), load(SET));
    expect(changes.map(({ action }) => action)).toEqual(["created", "created", "created", "created"]);
    expect(changes.map(({ version }) => version?.slice(0, 7))).toEqual([
      undefined,
      undefined,
      undefined,
      "sha256:",
    ]);
  });

  test("changes nothing when it is done again", () => {
    expect(new Set(planApply(stored(SET), load(SET)).map(({ action }) => action))).toEqual(
      new Set(["unchanged"]),
    );
  });

  test("of the same set in another order of writing changes nothing", () => {
    const other = SET.replace("run: [wc, -l], reads: [penguins]", "reads: penguins, run: [wc, -l]");
    expect(other).not.toBe(SET);
    expect(new Set(planApply(stored(SET), load(other)).map(({ action }) => action))).toEqual(
      new Set(["unchanged"]),
    );
  });

  test("makes a new version of a pipeline, and updates the rest in place", () => {
    expect(actions(SET, SET.replace("capacity: 2", "capacity: 3").replace("[sort]", "[sort, -n]"))).toEqual([
      "environment unchanged",
      "dataset unchanged",
      "pool updated",
      "pipeline new-version",
    ]);
  });
});

test("a signature more or less is an update of the same version, and the same ones again are none", () => {
  const spec = load(SET).find(({ kind }) => kind === "pipeline")!.spec as PipelineSpec;
  const signed = `${SET}signatures: ${JSON.stringify([author().seal(spec)])}\n`;
  const before = stored(SET);
  const [change] = planApply(before, load(signed)).slice(-1);
  expect(change).toEqual({ kind: "pipeline", name: "count", action: "updated", version: digestOf(spec) });
  const pipeline = { ...before.get("pipeline/count")!, signatures: signaturesOf(load(signed).at(-1)!) };
  const after = new Map(before).set("pipeline/count", pipeline);
  expect(planApply(after, load(signed)).at(-1)?.action).toBe("unchanged");
  expect(planApply(after, load(SET)).at(-1)?.action).toBe("updated");
});

describe("those who would miss a resource", () => {
  test.each([
    ["dataset", "penguins", ["pipeline count"]],
    ["environment", "biscoe", ["dataset penguins", "pipeline count"]],
    ["pool", "licences", ["pipeline count"]],
    ["pipeline", "count", []],
  ] as const)("of %s %s are %j", (kind, name, users) => {
    expect(usersOf(stored(SET), kind, name)).toEqual(users);
  });
});
