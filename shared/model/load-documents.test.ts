import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { loadDocuments } from "./load-documents.ts";

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
