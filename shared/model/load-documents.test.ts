import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { stringify } from "yaml";
import { digestOf } from "./canonical.ts";
import type { PipelineDocument } from "./documents.ts";
import { loadDocuments } from "./load-documents.ts";
import { NAME_PATTERN } from "./names.ts";
import type { PipelineSpec } from "./spec.ts";
import { documentOf } from "./specs.ts";
import { durationMs, formatDuration, sizeBytes } from "./units.ts";
import { validateSet } from "./validate-set.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

function loadExample(name: string) {
  const directory = join("examples", name);
  const files = readdirSync(join(ROOT, directory))
    .filter((file) => file.endsWith(".yaml"))
    .map((file) => ({
      file: join(directory, file),
      text: readFileSync(join(ROOT, directory, file), "utf8"),
    }));
  return loadDocuments({
    files,
    readAttachment: (path) => readFileSync(join(ROOT, path), "utf8"),
  });
}

describe("the examples", () => {
  test.each([["penguins"], ["flights"], ["federated"]])("%s loads without an error", (name) => {
    const { errors, resources, attachments } = loadExample(name);
    expect(errors).toEqual([]);
    const pipeline = resources.find((resource) => resource.kind === "pipeline");
    const named = new Set(pipeline?.spec.steps.flatMap((step) => step.files));
    expect(Object.keys(pipeline?.spec.files ?? {})).toEqual([...named].sort());
    expect(Object.keys(attachments)[0]).toMatch(`examples/${name}/`);
  });
});

function loadOne(text: string, file = "p.yaml") {
  const { resources, errors } = loadDocuments({ files: [{ file, text }], readAttachment: () => undefined });
  expect(errors).toEqual([]);
  expect(resources).toHaveLength(1);
  return resources[0]!;
}

describe("what is written and what is stored", () => {
  test("defaults are filled in", () => {
    const { spec } = loadOne(
      "kind: pipeline\nname: p\nsteps: [{ id: a, run: make, outputs: { x: null }, artifacts: { y: out.bin } }]",
    );
    expect(spec).toEqual({
      name: "p",
      params: {},
      timeoutMs: null,
      files: {},
      steps: [
        {
          id: "a",
          needs: [],
          executor: { kind: "process", argv: ["sh", "-ec", "make"] },
          env: {},
          files: [],
          reads: [],
          writes: [],
          environments: [],
          outputs: { x: { type: "json", maxBytes: 65_536 } },
          artifacts: { y: { path: "out.bin", maxBytes: 10_485_760 } },
          retry: { max: 0, backoffMs: 1_000, factor: 2, backoffMaxMs: 60_000, jitter: 0.2 },
          timeoutMs: 3_600_000,
          unplaceableMs: 300_000,
          pools: [],
        },
      ],
    });
  });

  test("JSON is read as YAML is, and a byte order mark is no text", () => {
    const json = JSON.stringify({ kind: "pool", name: "p", capacity: 2 });
    expect(loadOne(`\uFEFF${json}`).spec).toEqual(loadOne("kind: pool\nname: p\ncapacity: 2").spec);
  });

  test("files written out in the document are taken before those beside it", () => {
    const text =
      "kind: pipeline\nname: p\nfiles: { ./lib/a.mjs: inline }\nsteps: [{ id: a, run: [x], files: [lib/a.mjs] }]";
    const read: string[] = [];
    const { resources } = loadDocuments({
      files: [{ file: "dir/p.yaml", text }],
      readAttachment: (path) => {
        read.push(path);
        return "beside";
      },
    });
    expect(resources[0]?.spec).toMatchObject({ files: { "lib/a.mjs": "inline" } });
    expect(read).toEqual([]);
  });

  const name = fc.stringMatching(NAME_PATTERN);
  const names = fc.uniqueArray(name, { maxLength: 4 });
  const text = fc.string({ unit: "grapheme", maxLength: 12 }).filter((value) => !value.includes("\0"));
  const field = fc.stringMatching(/^[a-zA-Z][a-zA-Z0-9_-]{0,8}$/);
  const ms = fc.integer({ min: 1, max: 40 * 86_400_000 });
  const bytes = fc.integer({ min: 1, max: 2 ** 30 });
  const path = fc.stringMatching(/^[a-z]{1,5}(\/[a-z. ]{0,5}[a-z])?$/);
  const disconnect = fc.record({
    keepMs: ms,
    then: fc.constantFrom("reassign" as const, "wait" as const, "fail" as const),
  });
  const oldStepSpec = fc.record({
    id: name,
    needs: names,
    executor: fc.oneof(
      fc.constant({ kind: "noop" as const }),
      fc.record({
        kind: fc.constant("process" as const),
        argv: fc.array(text, { minLength: 1, maxLength: 3 }),
      }),
    ),
    env: fc.dictionary(
      fc.stringMatching(/^[A-Za-z_][A-Za-z0-9_]{0,8}$/).filter((key) => key !== "__proto__"),
      text,
    ),
    files: fc.constant([]).map((): string[] => []),
    reads: names,
    writes: names,
    environments: names,
    outputs: fc.dictionary(
      field,
      fc.record({ type: fc.constantFrom("json" as const, "text" as const), maxBytes: bytes }),
    ),
    artifacts: fc.dictionary(field, fc.record({ path, maxBytes: bytes })),
    retry: fc.record({
      max: fc.integer({ min: 0, max: 100 }),
      backoffMs: fc.integer({ min: 0, max: 1_000 }),
      factor: fc.double({ min: 1, max: 10, noNaN: true }),
      backoffMaxMs: fc.integer({ min: 1_000, max: 100_000 }),
      jitter: fc.double({ min: 0, max: 1, noNaN: true }),
    }),
    timeoutMs: ms,
    unplaceableMs: ms,
    pools: names,
  });
  const resources = fc
    .record(
      {
        memoryBytes: fc.integer({ min: 2 ** 24, max: 2 ** 40 }),
        cpus: fc.constantFrom(0.01, 0.5, 2, 1024),
        processes: fc.integer({ min: 1, max: 1_000_000 }),
        fileSizeBytes: fc.integer({ min: 1024, max: 2 ** 40 }),
        openFiles: fc.integer({ min: 16, max: 1_048_576 }),
      },
      { requiredKeys: [] },
    )
    .filter((some) => Object.keys(some).length > 0);
  const targets = fc.constantFrom("a.example:1", "db.site.example:5432", "10.20.0.7:22", "[2001:db8::7]:443");
  const network = fc.record({
    allow: fc.uniqueArray(targets, { minLength: 1 }).map((allow) => [...allow].sort()),
  });
  const lateFields = fc.record(
    { disconnect, once: fc.constant(true), resources, sandbox: fc.constant("required" as const), network },
    { requiredKeys: [] },
  );
  const stepSpec = fc.tuple(oldStepSpec, lateFields).map(([old, late]) => ({ ...old, ...late }));
  const pipelineSpec = fc.record({
    name,
    description: text,
    params: fc.dictionary(field, fc.record({ type: fc.constant("string" as const), default: text })),
    timeoutMs: fc.option(ms),
    files: fc.dictionary(path, text),
    steps: fc.array(stepSpec, { minLength: 1, maxLength: 3 }),
  });
  const sorted = (list: readonly string[]) => [...list].sort();
  const normal = pipelineSpec.map(
    ({ steps, ...rest }): PipelineSpec => ({
      ...rest,
      steps: steps.map((step) => ({
        ...step,
        needs: sorted(step.needs),
        reads: sorted(step.reads),
        writes: sorted(step.writes),
        environments: sorted(step.environments),
        pools: sorted(step.pools),
      })),
    }),
  );

  test("a pipeline printed as YAML or JSON and loaded again is the same version", () => {
    fc.assert(
      fc.property(normal, (spec) => {
        const document = documentOf({ kind: "pipeline", spec });
        for (const printed of [stringify(document), JSON.stringify(document)]) {
          expect(digestOf(loadOne(printed).spec)).toBe(digestOf(spec));
        }
      }),
    );
  });

  test("the order in which sets and keys are written never makes a new version", () => {
    fc.assert(
      fc.property(normal, (spec) => {
        const reversed = (value: unknown): unknown =>
          typeof value !== "object" || value === null || Array.isArray(value)
            ? value
            : Object.fromEntries(
                Object.entries(value)
                  .reverse()
                  .map(([key, member]) => [key, reversed(member)]),
              );
        const document = documentOf({ kind: "pipeline", spec }) as PipelineDocument;
        const steps = document.steps.map((step) => {
          const { needs = [], reads = [] } = step;
          const backwards = { needs: [...needs].reverse(), reads: [...reads, ...reads].reverse() };
          return reversed({ ...step, ...backwards });
        });
        const { steps: _, ...rest } = reversed(document) as PipelineDocument;
        expect(digestOf(loadOne(stringify({ steps, ...rest })).spec)).toBe(digestOf(spec));
      }),
    );
  });

  test.each([
    "kind: dataset\nname: d\nowner: o\nclassification: secret\nresidency: [US, EU]\nenvironments: [b, a]",
    "kind: environment\nname: e\ndescription: Site\njurisdiction: AQ\nlabels: { tier: gold }",
    "kind: environment\nname: e\njurisdiction: AQ\ndisconnect: { keep: 6h, then: fail }",
    "kind: environment\nname: e\njurisdiction: AQ\nidentity: { validFor: 7d }",
    "kind: pool\nname: p\nowner: o\ncapacity: 0",
  ])("%j printed and loaded again is the same", (text) => {
    const resource = loadOne(text);
    expect(loadOne(stringify(documentOf(resource))).spec).toEqual(resource.spec);
  });

  test("10,000 steps in a chain load, and every one is there", () => {
    const steps = Array.from(
      { length: 10_000 },
      (_, i) => `- { id: s${i}, uses: noop, needs: [${i > 0 ? `s${i - 1}` : ""}] }`,
    );
    const resource = loadOne(`kind: pipeline\nname: p\nsteps:\n${steps.join("\n")}`);
    expect(validateSet([resource], { has: () => false, names: () => [] })).toEqual([]);
    expect(resource.kind === "pipeline" && resource.spec.steps.at(-1)?.needs).toEqual(["s9998"]);
    expect(resource.locate(["steps", 9_999, "needs", 0])).toMatchObject({ line: 10_003 });
  });
});

describe("units", () => {
  test.each([
    [500, "500ms"],
    [30_000, "30s"],
    [90_000, "90s"],
    [300_000, "5m"],
    [86_400_000, "1d"],
    [0, "0ms"],
  ])("%i ms is %s and back", (ms, text) => {
    expect(formatDuration(ms)).toBe(text);
    expect(durationMs(text)).toBe(ms);
  });

  test.each([
    ["64KiB", 65_536],
    ["1MiB", 1_048_576],
    ["10MB", 10_000_000],
    [4096, 4_096],
  ])("%s has %i bytes", (size, bytes) => {
    expect(sizeBytes(size)).toBe(bytes);
  });
});
