import { expect, test } from "vitest";
import { type Input, step } from "../../shared/engine/engine.ts";
import { compile } from "../../shared/engine/plan.ts";
import { evolve, initialState, type RunState } from "../../shared/engine/state.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import { coversStep, readStatement } from "../../shared/provenance/signed-pipeline.ts";
import { Offer } from "../../shared/wire/attempt.ts";
import { author } from "../../test/support/signing.ts";
import { pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { buildOffer } from "./offers.ts";

const spec = pipelineSpec("p", [stepSpec("a"), stepSpec("b", { files: ["b.txt"] }), stepSpec("c")], {
  files: { "b.txt": "1" },
});
const facts = { policyVersion: "v", classificationOf: () => "internal" as const, issuedAtMs: 1 };

/** A run in which the step is offered. */
function offering(of: PipelineSpec, stepId: string): RunState {
  let state = initialState(compile(of));
  const inputs: Input[] = [
    { kind: "create", atMs: 0, runId: "r", version: digestOf(of), params: {}, by: "ana" },
    { kind: "offer", atMs: 0, step: stepId, environment: "site", policyVersion: "v", expiresAtMs: 9 },
  ];
  for (const input of inputs) for (const event of step(state, input).events) state = evolve(state, event);
  return state;
}

test("an offer of a signed pipeline carries the signatures, and the proof that its step is of it", () => {
  const envelope = author().seal(spec);
  for (const { id } of spec.steps) {
    const offer = buildOffer(offering(spec, id), id, { ...facts, signatures: [envelope] });
    expect(Offer.parse(JSON.parse(JSON.stringify(offer)))).toEqual(offer);
    expect(offer.signed?.envelopes).toEqual([envelope]);
    expect(coversStep(readStatement(envelope)!, offer.step, offer.files, offer.signed!)).toBe(true);
  }
});

test("an offer of one that nobody has signed says nothing of signatures: agents of before take it", () => {
  for (const signatures of [undefined, []])
    expect(buildOffer(offering(spec, "a"), "a", { ...facts, signatures })).not.toHaveProperty("signed");
});
