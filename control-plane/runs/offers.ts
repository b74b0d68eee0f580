/** Builds the offer of a grant from the run's state: it carries everything that the agent needs. No I/O. */
import { createHash } from "node:crypto";
import { environmentOf, type RunState, stepOf } from "../../shared/engine/state.ts";
import { invariant } from "../../shared/errors.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import { type PipelineTree, pipelineTree } from "../../shared/provenance/signed-pipeline.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import type { OfferOwners } from "../../shared/wire/offer-owners.ts";

export interface OfferFacts {
  policyVersion: string;
  classificationOf(dataset: string): Offer["datasets"][number]["classification"];
  /** Of the run's version of the pipeline. Missing or empty: nobody has signed it. */
  signatures?: readonly Envelope[] | undefined;
  issuedAtMs: number;
}

/** Of signed pipelines, while their plans are in memory: hashed once, and not for each of ten thousand offers. */
const trees = new WeakMap<PipelineSpec, PipelineTree>();

export function buildOffer(state: RunState, stepId: string, facts: OfferFacts): Offer {
  const index = state.plan.indexOf.get(stepId);
  const current = stepOf(state, stepId);
  invariant(index !== undefined && current, `run ${state.runId} has no step ${stepId}`);
  const spec = state.plan.steps[index]!;
  const inputs: Offer["inputs"] = {};
  for (const need of spec.needs) inputs[need] = { ...stepOf(state, need)!.outputs };
  const files: Record<string, string> = {};
  for (const path of spec.files) files[path] = state.plan.spec.files[path]!;
  return {
    v: 1,
    lease: { runId: state.runId, stepId, attempt: current.attempt, epoch: current.epoch },
    environment: environmentOf(current, current.epoch)!,
    pipeline: state.plan.spec.name,
    version: state.version,
    step: spec,
    params: { ...state.params },
    inputs,
    files,
    datasets: [...new Set([...spec.reads, ...spec.writes])].map((name) => ({
      name,
      classification: facts.classificationOf(name),
    })),
    policyVersion: facts.policyVersion,
    issuedAtMs: facts.issuedAtMs,
    expiresAtMs: current.offerExpiresAtMs,
    traceparent: traceparentOf(state.runId, `${stepId}/${current.epoch}`),
    ...signedOf(state.plan.spec, stepId, facts.signatures ?? []),
  };
}

/** Who answers for what the offer names. `ownerOf`: of a dataset as it is now. */
export function ownersOf(
  state: RunState,
  { datasets }: Offer,
  ownerOf: (dataset: string) => string | undefined,
): OfferOwners {
  const known = datasets.flatMap(({ name }): [string, string][] => {
    const owner = ownerOf(name);
    return owner === undefined ? [] : [[name, owner]];
  });
  return { pipeline: state.plan.spec.owner ?? null, datasets: Object.fromEntries(known) };
}

function signedOf(spec: PipelineSpec, stepId: string, envelopes: readonly Envelope[]): Pick<Offer, "signed"> {
  if (envelopes.length === 0) return {};
  let tree = trees.get(spec);
  if (tree === undefined) {
    tree = pipelineTree(spec);
    trees.set(spec, tree);
  }
  const proven = tree.provenStep(stepId);
  return proven === undefined ? {} : { signed: { envelopes: [...envelopes], ...proven } };
}

/** W3C trace context, version 00: one trace a run, one parent span a grant; both follow from their ids. */
function traceparentOf(runId: string, grant: string): string {
  const trace = createHash("sha256").update(runId).digest("hex").slice(0, 32);
  const span = createHash("sha256").update(`${runId}/${grant}`).digest("hex").slice(0, 16);
  return `00-${trace}-${span}-01`;
}
