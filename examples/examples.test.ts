import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, stat, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { explainRules } from "../agent/policy/allow-lists.ts";
import { parseRules } from "../agent/policy/parse-rules.ts";
import { ruleFaults } from "../control-plane/access/cedar-access.ts";
import { readDocumentSet } from "../control-plane/cli/documents.ts";
import { createCedarPlacement } from "../control-plane/placement/cedar-placement.ts";
import { isPlaceable } from "../control-plane/placement/choose.ts";
import { digestOf } from "../shared/model/canonical.ts";
import { loadDocuments } from "../shared/model/load-documents.ts";
import { pipelineTree } from "../shared/provenance/signed-pipeline.ts";
import { comparison } from "./comparison.mjs";
import type { Demo } from "./demo.ts";
import federated from "./federated/demo.mjs";
import flights from "./flights/demo.mjs";
import penguins from "./penguins/demo.mjs";
import { runLocally } from "./run-locally.fixture.ts";

const run = promisify(execFile);
let directory = "";

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-examples-"));
});
afterAll(() => rm(directory, { recursive: true, force: true }));

test("each island's file holds its own penguins, and a second set-up writes nothing", async () => {
  const place = join(directory, "islands");
  const sites = await penguins.setUp(place);
  expect(sites.map(({ environment, rows }) => [environment, rows])).toEqual([
    ["biscoe", 168],
    ["dream", 124],
    ["torgersen", 52],
  ]);
  const path = join(place, "dream", "data", "penguins.json");
  const islands = new Set(
    JSON.parse(await readFile(path, "utf8")).map((row: { Island: string }) => row.Island),
  );
  expect([...islands]).toEqual(["Dream"]);
  await utimes(path, 1, 1);
  await penguins.setUp(place);
  expect((await stat(path)).mtimeMs).toBe(1000);
});

describe("the sites' answers merge into the answer over the pooled data", () => {
  test.each<[Demo]>([[penguins], [flights], [federated]])(
    "$name",
    async (demo) => {
      const place = join(directory, demo.name);
      await demo.setUp(place);
      const result = await demo.compare(await runLocally(demo, place));
      expect(result).toMatchObject({ equal: true });
      expect(result.rows.length).toBeGreaterThan(3);
      for (const { federated: value } of result.rows) expect(value).toBeTypeOf("number");
    },
    120_000,
  );
});

test("the rules about people are rules", async () => {
  const files = ["examples/access/people.yaml"];
  const { documents } = await readDocumentSet(files, {
    cwd: fileURLToPath(new URL("..", import.meta.url)),
    readStdin: async () => "",
  });
  const { resources, errors } = loadDocuments({ files: documents, readAttachment: () => undefined });
  expect(errors).toEqual([]);
  expect(resources).toHaveLength(1);
  for (const resource of resources)
    expect(resource.kind === "access-policy" ? ruleFaults(resource.spec) : resource.kind).toEqual([]);
});

test("a site whose policy is the example's runs the signed pipeline, as the release reads it that has signed it", async () => {
  const folder = fileURLToPath(new URL("signed/", import.meta.url));
  const { documents, attachments } = await readDocumentSet(["pipeline.yaml"], {
    cwd: folder,
    readStdin: async () => "",
  });
  const { resources, errors } = loadDocuments({
    files: documents,
    readAttachment: (path) => attachments[path],
  });
  expect(errors).toEqual([]);
  const [resource] = resources;
  if (resource?.kind !== "pipeline" || resource.document.kind !== "pipeline") throw new Error("no pipeline");
  const { spec, document } = resource;
  const [step] = spec.steps;
  const signed = { envelopes: document.signatures!, ...pipelineTree(spec).provenStep("count")! };
  const rules = parseRules("policy.yaml", await readFile(join(folder, "policy.yaml"), "utf8"));
  const offer = {
    lease: { runId: "r", stepId: "count", attempt: 1, epoch: 1 },
    environment: "clinic",
    pipeline: spec.name,
    version: digestOf(spec),
    step: step!,
    files: spec.files,
    params: { region: "south" },
    inputs: {},
    datasets: [],
    traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01`,
    signed,
  };
  const refused = explainRules(rules, offer, Date.UTC(2026, 11, 1));
  expect(refused.filter(({ allowed }) => !allowed)).toEqual([]);
});

/** Steps with no place, of all that `-f` takes from these files and folders. */
async function nowhere(paths: string[]): Promise<string[]> {
  const cwd = fileURLToPath(new URL("..", import.meta.url));
  const set = await readDocumentSet(paths, { cwd, readStdin: async () => "" });
  const loaded = loadDocuments({ files: set.documents, readAttachment: (path) => set.attachments[path] });
  expect(loaded.errors).toEqual([]);
  const { resources } = loaded;
  const environments = resources.flatMap((one) => (one.kind === "environment" ? [one.spec] : []));
  const datasets = new Map(
    resources.flatMap((one) => (one.kind === "dataset" ? [[one.spec.name, one.spec] as const] : [])),
  );
  const placement = createCedarPlacement();
  return resources.flatMap((one) => {
    if (one.kind !== "pipeline") return [];
    const { name, steps } = one.spec;
    return steps
      .filter((step) => !isPlaceable(placement.explain(name, step, { environments, datasets })))
      .map((step) => `${name}/${step.id}`);
  });
}

test.each([
  ["penguins", []],
  ["flights", []],
  ["federated", ["examples/penguins/resources.yaml"]], // it has the same sites
])("the folder of %s can be applied whole, with all that lies in it", async (name, also) => {
  expect(await nowhere([...also, `examples/${name}/`])).toEqual([]);
});

test("the example of a refusal is one", async () => {
  expect(await nowhere(["examples/penguins/", "examples/refused/"])).toEqual(["penguins-pooled/pool"]);
});

test("an answer that is off by a millionth is told from the right one", async () => {
  const place = join(directory, "off");
  await penguins.setUp(place);
  const outputs = await runLocally(penguins, place);
  const regression = outputs.merge?.regression as { slope: number };
  regression.slope *= 1 + 1e-6;
  expect(await penguins.compare(outputs)).toMatchObject({ equal: false });
});

test("an answer that is no number is unequal", () => {
  const row = { name: "x", unit: "", federated: Number.NaN, pooled: 1 };
  expect(comparison([row], 1e-9).equal).toBe(false);
});

test("federated/pipeline.yaml is what its generator writes", async () => {
  const generator = fileURLToPath(new URL("federated/generate-pipeline.mjs", import.meta.url));
  await expect(run(process.execPath, [generator, "--check"])).resolves.toMatchObject({ stderr: "" });
});
