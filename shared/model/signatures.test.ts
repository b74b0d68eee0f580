/** Signatures in documents: what an apply keeps, and what it refuses with its place. */
import { expect, test } from "vitest";
import { stringify } from "yaml";
import { author } from "../../test/support/signing.ts";
import type { Envelope } from "../provenance/dsse.ts";
import { digestOf } from "./canonical.ts";
import { loadDocuments } from "./load-documents.ts";
import type { PipelineSpec } from "./spec.ts";

const document = { kind: "pipeline", name: "p", steps: [{ id: "a", run: ["wc"] }] };
const ada = author();

function load(value: object) {
  return loadDocuments({
    files: [{ file: "p.yaml", text: stringify(value) }],
    readAttachment: () => undefined,
  });
}
const spec = load(document).resources[0]!.spec as PipelineSpec;
const envelope = ada.seal(spec);
const errorsOf = (signatures: unknown) => load({ ...document, signatures }).errors;

test("signatures are no part of the pipeline nor of its version", () => {
  const { resources, errors } = load({ ...document, signatures: [envelope] });
  expect(errors).toEqual([]);
  expect(digestOf(resources[0]!.spec)).toBe(digestOf(spec));
  expect(resources[0]!.document).toMatchObject({ signatures: [envelope] });
});

test("one of another version or of no pipeline is refused with its line", () => {
  const edited = load({ ...document, owner: "eve", signatures: [envelope] });
  expect(edited.resources).toEqual([]);
  expect(edited.errors).toMatchObject([
    {
      file: "p.yaml",
      line: 9,
      path: "signatures[0]",
      code: "signature.stale",
      message: expect.stringContaining(
        `signature 1 is of pipeline p in version ${digestOf(spec)}, and this is p`,
      ),
      hint: expect.stringContaining("insitu sign"),
    },
  ]);
  const other: Envelope = { ...envelope, payload: Buffer.from("{}").toString("base64") };
  expect(errorsOf([envelope, other])).toMatchObject([
    { path: "signatures[1]", message: expect.stringContaining("no statement about a pipeline") },
  ]);
});

test.each<[string, unknown]>([
  ["too many", Array(5).fill(envelope)],
  ["a payload that is not base64", [{ ...envelope, payload: "%" }]],
  ["another payload type", [{ ...envelope, payloadType: "application/vnd.in-toto+json" }]],
  ["no signature in it", [{ ...envelope, signatures: [] }]],
  ["a signature without the id of its key", [{ ...envelope, signatures: [{ sig: "AAAA" }] }]],
  ["more than there is to be in it", [{ ...envelope, trusted: true }]],
  ["a text", "signed"],
])("%s is refused", (_what, signatures) => {
  const [error] = errorsOf(signatures);
  expect(error?.path).toMatch(/^signatures/);
});

test("an empty list is as good as none", () => {
  expect(errorsOf([])).toEqual([]);
});
