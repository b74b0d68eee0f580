import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findCycles } from "./find-cycles.ts";
import { loadDocuments } from "./load-documents.ts";
import { type KnownResources, validateSet } from "./validate-set.ts";

const NOTHING: KnownResources = { has: () => false, names: () => [] };

function validate(texts: Record<string, string>, known = NOTHING): string[] {
  const files = Object.entries(texts).map(([file, text]) => ({ file, text }));
  const { resources, errors, broken } = loadDocuments({ files, readAttachment: () => undefined });
  return [...errors, ...validateSet(resources, known, broken)].map(
    ({ file, line, column, message, hint }) =>
      `${file}:${line}:${column} ${message}${hint ? ` (${hint})` : ""}`,
  );
}

const SITES = `
kind: environment
name: biscoe
jurisdiction: AQ
---
kind: dataset
name: penguins-biscoe
owner: lter
classification: internal
residency: AQ
environments: biscoe
---
kind: pool
name: licences
capacity: 2
`;

const pipeline = (steps: string) => `kind: pipeline\nname: p\nsteps:\n${steps}`;

describe("a step with secrets", () => {
  const spec = (keys: string) => {
    const { resources, errors } = loadDocuments({
      files: [{ file: "p.yaml", text: pipeline(`- { id: a, run: [x], ${keys} }`) }],
      readAttachment: () => undefined,
    });
    expect(errors).toEqual([]);
    const [resource] = resources;
    return resource?.kind === "pipeline" ? resource.spec.steps[0] : undefined;
  };

  test.each([
    ["secrets: [warehouse-password]", { WAREHOUSE_PASSWORD: { name: "warehouse-password", as: "file" } }],
    ["secrets: [2fa]", { _2FA: { name: "2fa", as: "file" } }],
    ["secrets: { DB: warehouse }", { DB: { name: "warehouse", as: "file" } }],
    ["secrets: { DB: { name: warehouse } }", { DB: { name: "warehouse", as: "file" } }],
    ["secrets: { DB: { name: warehouse, as: env } }", { DB: { name: "warehouse", as: "env" } }],
  ])("%s names them and says how they are given", (keys, secrets) => {
    expect(spec(keys)?.secrets).toEqual(secrets);
  });

  test("a step that asks for none has no such key, so that its version stays the same", () => {
    expect(spec("secrets: {}")).toEqual(spec("env: {}"));
    expect(spec("env: {}")).not.toHaveProperty("secrets");
  });

  test.each([
    ["run: [x], secrets: { INSITU_X: a }", "4:33 step a asks for a secret in INSITU_X, which the agent sets"],
    [
      "run: [x], env: { DB: x }, secrets: { DB: { name: a, as: env } }",
      "4:49 step a sets DB twice: in 'env', or for another secret",
    ],
    [
      "run: [x], env: { DB_FILE: x }, secrets: [db]",
      "4:52 step a sets DB_FILE twice: in 'env', or for another secret",
    ],
    [
      "run: [x], secrets: { DB: a, DB_FILE: { name: b, as: env } }",
      "4:40 step a sets DB_FILE twice: in 'env', or for another secret",
    ],
    [
      "uses: noop, secrets: [a]",
      "4:24 step a uses a built-in, which takes no secrets (give the secrets to a step with 'run' or 'container')",
    ],
    ["run: [x], secrets: { 1X: a }", "4:33 the name '1X' must be a name of letters"],
    ["run: [x], secrets: { X: { name: a, value: b } }", "4:47 unknown key 'value'"],
  ])("%s is refused", (keys, message) => {
    const [found, ...more] = validate({ "p.yaml": pipeline(`- { id: a, ${keys} }`) });
    expect(found).toContain(`p.yaml:${message}`);
    expect(more).toEqual([]);
  });
});

describe("a step that is started once", () => {
  test.each([
    ["disconnect: { keep: 6h }", []],
    ["disconnect: { keep: 6h, then: fail }, retries: 0", []],
    [
      "disconnect: { keep: 6h, then: reassign }",
      [
        "4:66 step a is 'once' and would be reassigned while its first holder may still run it (say 'then: wait' or 'then: fail', or leave 'then' out)",
      ],
    ],
    [
      "retries: 1",
      ["4:45 step a is 'once' and has retries: a retry starts it again (leave out 'retries' or 'once')"],
    ],
    [
      "retries: { max: 2 }",
      ["4:52 step a is 'once' and has retries: a retry starts it again (leave out 'retries' or 'once')"],
    ],
  ])("with %s", (keys, errors) => {
    const found = validate({ "p.yaml": pipeline(`- { id: a, uses: noop, once: true, ${keys} }`) });
    expect(found).toEqual(errors.map((error) => `p.yaml:${error}`));
  });

  test("waits when it says how long an agent may be away and not what then", () => {
    const text = pipeline("- { id: a, uses: noop, once: true, disconnect: { keep: 6h } }");
    const { resources } = loadDocuments({
      files: [{ file: "p.yaml", text }],
      readAttachment: () => undefined,
    });
    expect(resources[0]?.spec).toMatchObject({
      steps: [{ once: true, disconnect: { keepMs: 21_600_000, then: "wait" } }],
    });
  });
});

describe("names between documents", () => {
  test("a whole set that fits has no error", () => {
    const steps = `  - { id: a, uses: noop, reads: penguins-biscoe, environment: biscoe, pools: licences }\n  - { id: b, uses: noop, needs: a }`;
    expect(validate({ "sites.yaml": SITES, "p.yaml": pipeline(steps) })).toEqual([]);
  });

  test.each([
    [
      "- { id: merge, uses: noop }\n- { id: b, uses: noop, needs: [merg] }",
      "5:32 step b needs step merg, which does not exist (did you mean 'merge'?)",
    ],
    [
      "- { id: a, uses: noop, reads: [penguin-biscoe] }",
      "4:32 step a reads dataset penguin-biscoe, which does not exist (did you mean 'penguins-biscoe'?)",
    ],
    ["- { id: a, uses: noop, writes: else }", "4:32 step a writes dataset else, which does not exist"],
    [
      "- { id: a, uses: noop, environment: bisceo }",
      "4:37 step a is narrowed to environment bisceo, which does not exist (did you mean 'biscoe'?)",
    ],
    [
      "- { id: a, uses: noop, pools: [licence] }",
      "4:32 step a holds pool licence, which does not exist (did you mean 'licences'?)",
    ],
    ["- { id: a, uses: noop, needs: a }", "4:31 step a needs itself"],
    [
      "- { id: a, uses: noop, needs: [c] }\n- { id: b, uses: noop, needs: [a] }\n- { id: c, uses: noop, needs: [b] }",
      "4:32 steps need each other in a circle: a → c → b → a (an arrow reads 'needs')",
    ],
    [
      "- { id: a, uses: noop, env: { INSITU_RUN_ID: x } }",
      "4:31 step a sets INSITU_RUN_ID, which the agent sets; names that start with INSITU_ are its own",
    ],
    [
      "- { id: a, uses: noop, outputs: { x: { maxBytes: 500KiB }, y: { maxBytes: 13KiB } } }",
      "4:24 the outputs of step a may have 513 KiB together; 512 KiB are allowed (lower their maxBytes, or make large ones artifacts)",
    ],
    [
      "- { id: a, uses: noop }\n- { id: a, uses: noop }",
      "5:9 step a is described twice; first at p.yaml:4:9",
    ],
  ])("%s", (steps, error) => {
    expect(validate({ "sites.yaml": SITES, "p.yaml": pipeline(steps) })).toEqual([`p.yaml:${error}`]);
  });

  test("a resource that two files describe is told with both places", () => {
    expect(validate({ "a.yaml": SITES, "b.yaml": "kind: pool\nname: licences\ncapacity: 3" })).toEqual([
      "b.yaml:2:7 pool licences is described twice; first at a.yaml:14:7",
    ]);
  });

  test("a name that is stored already need not be in the set", () => {
    const known: KnownResources = {
      has: (kind, name) => kind === "dataset" && name === "stored",
      names: (kind) => (kind === "dataset" ? ["stored"] : []),
    };
    const steps = "- { id: a, uses: noop, reads: [stored, storde] }";
    expect(validate({ "p.yaml": pipeline(steps) }, known)).toEqual([
      "p.yaml:4:40 step a reads dataset storde, which does not exist (did you mean 'stored'?)",
    ]);
  });

  test("a dataset whose own document is wrong is not called unknown as well", () => {
    const sites = SITES.replace("classification: internal", "classification: inside");
    expect(
      validate({
        "sites.yaml": sites,
        "p.yaml": pipeline("- { id: a, uses: noop, reads: penguins-biscoe }"),
      }),
    ).toEqual([
      "sites.yaml:9:17 classification is 'inside'; it must be one of public, internal, confidential, restricted, secret",
    ]);
  });

  test("a dataset that is held by nowhere known is refused", () => {
    const set =
      "kind: dataset\nname: d\nowner: o\nclassification: public\nresidency: EU\nenvironments: [nowhere]";
    expect(validate({ "d.yaml": set })).toEqual([
      "d.yaml:6:16 dataset d is held by environment nowhere, which does not exist (there is no environment yet)",
    ]);
  });

  test("every error of every file comes at once", () => {
    const first = pipeline("- { id: a, uses: noop, needs: x }\n- { id: b, uses: noop, reads: y }");
    const errors = validate({ "1.yaml": first, "2.yaml": "kind: pool\nname: q", "3.yaml": "kind: poool" });
    expect(errors).toHaveLength(4);
    expect(new Set(errors.map((error) => error.slice(0, 6)))).toEqual(
      new Set(["1.yaml", "2.yaml", "3.yaml"]),
    );
  });
});

describe("cycles", () => {
  const graph = fc
    .integer({ min: 1, max: 12 })
    .chain((size) =>
      fc.array(fc.array(fc.integer({ min: 0, max: size - 1 })), { minLength: size, maxLength: size }),
    )
    .map((lists) => new Map(lists.map((list, step) => [String(step), list.map(String)])));

  /** Takes away steps without needs until none is left or the rest is in or behind a cycle. */
  function isAcyclic(needs: ReadonlyMap<string, readonly string[]>): boolean {
    const left = new Map(needs);
    for (let before = -1; before !== left.size; ) {
      before = left.size;
      for (const [step, list] of left) if (!list.some((need) => left.has(need))) left.delete(step);
    }
    return left.size === 0;
  }

  test("one is found when, and only when, there is one; each is a circle; no two share a step", () => {
    fc.assert(
      fc.property(graph, (needs) => {
        const cycles = findCycles(needs);
        expect(cycles.length === 0).toBe(isAcyclic(needs));
        for (const cycle of cycles) {
          for (const [index, step] of cycle.entries()) {
            expect(needs.get(step)).toContain(cycle[(index + 1) % cycle.length]);
          }
        }
        const steps = cycles.flat();
        expect(new Set(steps).size).toBe(steps.length);
      }),
    );
  });

  test("a chain of 20,000 steps that closes is found without running out of stack", () => {
    const needs = new Map(
      Array.from({ length: 20_000 }, (_, i) => [`s${i}`, [`s${(i + 1) % 20_000}`]] as const),
    );
    expect(findCycles(needs)[0]).toHaveLength(20_000);
  });
});
