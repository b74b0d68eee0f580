import { expect, test } from "vitest";
import { digestOfImage, isImage } from "./image.ts";
import { loadDocuments } from "./load-documents.ts";
import { documentOf } from "./specs.ts";

const DIGEST = `sha256:${"4f".repeat(32)}`;

test.each([
  [`stats@${DIGEST}`, true],
  [`registry.example:5000/team/stats:1.2-Rc@${DIGEST}`, true],
  ["stats", false],
  ["stats:latest", false],
  [DIGEST, false],
  [`@${DIGEST}`, false],
  [`stats@${DIGEST}0`, false],
  [`stats@${DIGEST.toUpperCase()}`, false],
  [`a b@${DIGEST}`, false],
  [`../../etc@${DIGEST}`, false],
  [`${"a".repeat(600)}@${DIGEST}`, false],
])("%s names an image by its digest: %s", (text, expected) => {
  expect(isImage(text)).toBe(expected);
  if (expected) expect(digestOfImage(text)).toBe(DIGEST);
});

function load(step: string) {
  const text = `kind: pipeline\nname: p\nsteps:\n  - id: fit\n    ${step}\n`;
  return loadDocuments({ files: [{ file: "p.yaml", text }], readAttachment: () => undefined });
}

test("a step with a container is stored as one, and written out the same", () => {
  const loaded = load(`container: { image: "stats@${DIGEST}", command: [fit], args: [--fast] }`);
  expect(loaded.errors).toEqual([]);
  const [resource] = loaded.resources;
  const container = { image: `stats@${DIGEST}`, command: ["fit"], args: ["--fast"] };
  expect(resource).toMatchObject({ spec: { steps: [{ executor: { kind: "container", ...container } }] } });
  expect(documentOf(resource!)).toMatchObject({ steps: [{ container }] });
});

test.each([
  ['container: { image: "stats:latest" }', /an image by its digest.*skopeo inspect/],
  [`container: { image: "stats@${DIGEST}", command: [] }`, /a list of one text or more/],
  [`{ run: make, container: { image: "stats@${DIGEST}" } }`, /both 'run' and 'container'/],
])("%s is refused, and the message says what to do", (step, message) => {
  const { errors } = load(
    step.startsWith("{") ? step.slice(2, -2).replace(", container", "\n    container") : step,
  );
  expect(errors.map((error) => error.message).join("; ")).toMatch(message);
});
