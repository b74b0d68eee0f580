import { createPrivateKey, createPublicKey, sign } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { author } from "../../test/support/signing.ts";
import { pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { PipelineSpec } from "../model/spec.ts";
import { authorKeyOf, readPublicKey } from "./author-key.ts";
import { unseal } from "./dsse.ts";
import {
  coversStep,
  PIPELINE_PAYLOAD,
  pipelineTree,
  readStatement,
  STATEMENT_MAX_BYTES,
  saysTheSame,
  sealStatement,
  statementOf,
} from "./signed-pipeline.ts";

const word = fc.stringMatching(/^[a-z]{1,5}$/);
/** Of up to 40 steps, each of which may need those before it and brings files along. */
const pipelines: fc.Arbitrary<PipelineSpec> = fc
  .array(
    fc.record({
      argv: fc.array(word, { minLength: 1, maxLength: 3 }),
      out: word,
      file: word,
      back: fc.nat(5),
    }),
    { minLength: 1, maxLength: 40 },
  )
  .map((parts) =>
    pipelineSpec(
      "p",
      parts.map(({ argv, out, file, back }, index) =>
        stepSpec(`s${index}`, {
          executor: { kind: "process", argv },
          needs: back > 0 && index - back >= 0 ? [`s${index - back}`] : [],
          outputs: { [out]: { type: "text", maxBytes: 8 } },
          files: [file],
        }),
      ),
      { files: Object.fromEntries(parts.map(({ file, argv }) => [file, argv.join()])) },
    ),
  );
const filesOf = (spec: PipelineSpec, index: number) =>
  Object.fromEntries(spec.steps[index]!.files.map((path) => [path, spec.files[path]!]));

describe("the statement about a pipeline", () => {
  test("covers each step of it by its proof, and none in the place of another or changed in any part", () => {
    fc.assert(
      fc.property(pipelines, fc.nat(), fc.nat(), word, (spec, one, two, text) => {
        const statement = statementOf(spec, { signedAtMs: 1 });
        const tree = pipelineTree(spec);
        const [a, b] = [one % spec.steps.length, two % spec.steps.length];
        const step = spec.steps[a]!;
        const files = filesOf(spec, a);
        const proof = tree.provenStep(step.id)!;
        expect(coversStep(statement, step, files, proof)).toBe(true);
        if (a !== b) expect(coversStep(statement, spec.steps[b]!, filesOf(spec, b), proof)).toBe(false);
        const env = { ...step, env: { X: text } };
        expect(coversStep(statement, env, files, proof)).toBe(false);
        expect(coversStep(statement, step, { ...files, [`${text}.x`]: "" }, proof)).toBe(false);
        const inputs = { ...proof.inputs, [`x${text}`]: { [text]: { type: "json" as const, maxBytes: 1 } } };
        expect(coversStep(statement, step, files, { ...proof, inputs })).toBe(false);
      }),
    );
  });

  test("is of one version: any change of the pipeline makes another, whether of a step or not", () => {
    const spec = pipelineSpec("p", [stepSpec("a")]);
    const statement = statementOf(spec, { signedAtMs: 1, expiresAtMs: 2 });
    expect(saysTheSame(statement, statementOf(spec, { signedAtMs: 3 }))).toBe(true);
    for (const change of [
      { name: "q" },
      { owner: "somebody" },
      { timeoutMs: 1 },
      { files: { x: "" } },
      { params: { n: { type: "number" as const } } },
      { steps: [stepSpec("b")] },
    ])
      expect(saysTheSame(statement, statementOf({ ...spec, ...change }, { signedAtMs: 1 }))).toBe(false);
  });

  test("survives its envelope; what is no statement, or too large a one, is none", () => {
    const ada = author();
    const spec = pipelineSpec("p", [stepSpec("a")], { params: { n: { type: "number", default: 1 } } });
    const envelope = ada.seal(spec, { signedAtMs: 5, expiresAtMs: 6 });
    expect(readStatement(envelope)).toEqual(statementOf(spec, { signedAtMs: 5, expiresAtMs: 6 }));
    const payload = (text: string) => ({ ...envelope, payload: Buffer.from(text).toString("base64") });
    for (const text of ["", "{", "[]", "{}", '{"v":2}', `"${"x".repeat(STATEMENT_MAX_BYTES)}"`])
      expect(readStatement(payload(text))).toBeUndefined();
    expect(readStatement({ ...envelope, payloadType: "application/json" })).toBeUndefined();
    const large = { n: { type: "string" as const, enum: ["x".repeat(STATEMENT_MAX_BYTES)] } };
    expect(readStatement(ada.seal({ ...spec, params: large }))).toBeUndefined();
  });

  test("is signed as the same bytes by every release: a signature is older than the agent that reads it", () => {
    // Ed25519 gives one signature for a key and a message; the key is that of RFC 8032, section 7.1, test 1.
    const key = createPrivateKey({
      key: Buffer.from(
        "302e020100300506032b6570042204209d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "hex",
      ),
      format: "der",
      type: "pkcs8",
    });
    const known = authorKeyOf(createPublicKey(key))!;
    const spec = pipelineSpec(
      "nightly",
      [
        stepSpec("a", { outputs: { n: { type: "json", maxBytes: 9 } } }),
        stepSpec("b", { needs: ["a"], files: ["x"] }),
      ],
      { params: { year: { type: "number", default: 2025 } }, files: { x: "1" } },
    );
    const statement = statementOf(spec, { signedAtMs: 1_764_000_000_000, expiresAtMs: 1_771_776_000_000 });
    const envelope = sealStatement(statement, {
      keyid: known.id,
      sign: (message) => sign(null, message, key),
    });
    expect(envelope).toMatchInlineSnapshot(`
      {
        "payload": "eyJleHBpcmVzQXRNcyI6MTc3MTc3NjAwMDAwMCwibmFtZSI6Im5pZ2h0bHkiLCJwYXJhbXMiOnsieWVhciI6eyJkZWZhdWx0IjoyMDI1LCJ0eXBlIjoibnVtYmVyIn19LCJyb290Ijoic2hhMjU2OjFlYzhlOTljMjhmODM3MmMzMDgwNTVjZGQzODkzMTk5NWNiYzE0ZDM3NmIxYWIzMTYzZDM0ZWM1MDVlNDE0Y2MiLCJzaWduZWRBdE1zIjoxNzY0MDAwMDAwMDAwLCJzdGVwcyI6MiwidiI6MSwidmVyc2lvbiI6InNoYTI1Njo2YTcyMmFkODk2MTc1M2YwZmYwMzI4Y2YwM2E4NTc5ZmQwNDVhYmU4NGY0NmU1OWJmNzgxZWRiZjgyMWMyYzZlIn0=",
        "payloadType": "application/vnd.insitu.pipeline.v1+json",
        "signatures": [
          {
            "keyid": "sha256:06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9",
            "sig": "gLO51AGYKCZlARchXtncz5guPYEKdNGt2dHXKFXv1yrtoijdd1ghblcTUEyjYrBHRJcqHxEcCJ/OaV9jYzHTAg==",
          },
        ],
      }
    `);
    expect(unseal(envelope, PIPELINE_PAYLOAD, known.verify)).toBeDefined();
  });
});

describe("a key of an author", () => {
  test.each(["ed25519", "p256"] as const)(
    "of type %s verifies what its owner has signed, and nothing else",
    (type) => {
      const [ada, eve] = [author(type), author(type)];
      const key = readPublicKey(ada.publicPem)!;
      const message = Buffer.from("message");
      expect(key.id).toBe(ada.id);
      expect(key.verify(message, ada.sign(message))).toBe(true);
      expect(key.verify(message, eve.sign(message))).toBe(false);
      expect(key.verify(Buffer.from("another"), ada.sign(message))).toBe(false);
      for (const bytes of [Buffer.alloc(0), Buffer.alloc(64), Buffer.alloc(72, 1)])
        expect(key.verify(message, bytes)).toBe(false);
    },
  );
});
