/** The evidence of a run of the demonstration: receipts of the steps that read data, proved to be in the ledger. */
import { InsituError } from "../../../shared/errors.ts";
import type { PipelineSpec } from "../../../shared/model/spec.ts";
import { isDataBound } from "../../../shared/provenance/receipt.ts";
import { checkStepProof } from "../../../shared/provenance/step-proof.ts";
import type { Clock } from "../../../shared/system.ts";
import type { RunDetail } from "../../api/schemas.ts";
import type { ApiClient } from "../client.ts";
import { tableLines } from "../output.ts";
import { type Paint, wrap } from "../text.ts";

export interface StepEvidence {
  step: string;
  reads: string[];
  agent: string;
  /** Of the receipt in the ledger. */
  leaf: number;
  /** Leaves of the checkpoint that it is proved against. */
  size: number;
  origin: string;
  /** Of all that could leave the site, as the agent has signed it. */
  sentBytes: number;
}

/** A receipt is in the ledger a moment after its outcome. */
const APPEARS_MS = 10_000;
const LOOK_MS = 100;

/** @throws evidence.refused when a step has no receipt, or a proof does not verify */
export async function evidenceOf(
  client: ApiClient,
  { run, pipeline }: { run: RunDetail; pipeline: PipelineSpec },
  { clock, signal }: { clock: Clock; signal: AbortSignal },
): Promise<StepEvidence[]> {
  const steps = pipeline.steps.filter(isDataBound);
  const giveUpAtMs = clock.monotonicMs() + APPEARS_MS;
  const found: StepEvidence[] = [];
  for (const step of steps) {
    for (;;) {
      const one = await provenStep(client, { run: run.id, step: step.id }, signal);
      if (one) found.push(one);
      if (one) break;
      if (clock.monotonicMs() > giveUpAtMs)
        throw new InsituError("evidence.refused", `step ${step.id} of run ${run.id} has left no receipt`);
      await clock.sleep(LOOK_MS, signal);
    }
  }
  return found;
}

/** The receipt of the last attempt; undefined when it is not there yet. */
async function provenStep(
  client: ApiClient,
  { run, step }: { run: string; step: string },
  signal: AbortSignal,
): Promise<StepEvidence | undefined> {
  const proof = await client.ledgerProof(run, step, signal);
  const checked = checkStepProof(proof, proof.key);
  if (checked.kind === "refused")
    throw new InsituError(
      "evidence.refused",
      `the receipt of step ${step} does not verify: ${checked.reason}`,
    );
  const last = checked.leaves.findLast(({ receipt }) => receipt);
  if (!last?.receipt) return undefined;
  const { agent, reads, egress } = last.receipt.receipt;
  return {
    step,
    reads: reads.map(({ dataset }) => dataset),
    agent: `${agent.environment}/${agent.name}`,
    leaf: last.index,
    size: checked.size,
    origin: checked.origin,
    sentBytes: egress.reduce((sum, { sentBytes }) => sum + sentBytes, 0),
  };
}

export function evidenceLines(
  evidence: readonly StepEvidence[],
  { width, paint, run }: { width: number; paint: Paint; run: string },
): string[] {
  const [first] = evidence;
  if (!first) return ["No step reads or writes a dataset, so there is no receipt."];
  const size = Math.max(...evidence.map((one) => one.size));
  const table = tableLines(
    evidence,
    [
      { title: "STEP", value: ({ step }) => step },
      { title: "READS", value: ({ reads }) => reads.join(", ") || "-" },
      { title: "SIGNED BY", value: ({ agent }) => agent },
      { title: "BYTES LEFT", value: ({ sentBytes }) => String(sentBytes), right: true },
      { title: "LEAF", value: ({ leaf }) => String(leaf), right: true },
    ],
    { width, paint },
  );
  const said = `receipts verified, from the agents' certificates to the ledger's checkpoint of ${size} leaves (${first.origin})`;
  return [
    ...table,
    "",
    ...wrap(`✓ ${evidence.length} ${said}`, width).map((line, i) => (i === 0 ? paint("green", line) : line)),
    paint("dim", `insitu audit prove ${run}/${first.step}`),
  ];
}
