/** What an agent states of an attempt, from its offer and its outcome. Decides; no I/O. */
import { digestOf } from "../../shared/model/canonical.ts";
import { utf8Bytes } from "../../shared/provenance/encoding.ts";
import { isDataBound, type Receipt } from "../../shared/provenance/receipt.ts";
import type { Offer, Outcome } from "../../shared/wire/attempt.ts";
import { VETO } from "../policy/decision.ts";

/** What is so of this agent and its host, whatever the step. */
export interface AgentFacts {
  environment: string;
  name: string;
  software: string;
  sandbox: { summary: string; boxes: boolean };
}

/** What is so at the moment when the attempt has ended. */
export interface MomentFacts {
  offerDigest: string | null;
  /** Null: the control plane's time was never heard. */
  aheadOfCentreMs: number | null;
  connected: boolean;
}

/** Undefined for a step that has nothing to do with data. */
export function receiptOf(
  offer: Offer,
  outcome: Outcome,
  agent: AgentFacts,
  { offerDigest, ...moment }: MomentFacts,
): Receipt | undefined {
  const { step } = offer;
  if (!isDataBound(step)) return undefined;
  const classified = (names: readonly string[]): Receipt["reads"] =>
    names.map((dataset) => ({
      dataset,
      classification: offer.datasets.find(({ name }) => name === dataset)?.classification ?? null,
    }));
  const { environment, name, software, sandbox } = agent;
  const { status, exitCode, signal, error, startedAtMs, finishedAtMs, sitePolicy } = outcome;
  const decision = error?.code === VETO ? "veto" : "allow";
  return {
    attempt: offer.lease,
    pipeline: { name: offer.pipeline, version: offer.version },
    step: { digest: digestOf(step), executor: step.executor.kind, command: digestOf(step.executor) },
    offer: offerDigest,
    agent: { environment, name, software },
    host: { sandbox: wellFormed(sandbox.summary), boxed: sandbox.boxes, attestation: "none" },
    sandbox: outcome.sandbox ?? null,
    reads: classified(step.reads),
    writes: classified(step.writes),
    inputs: Object.entries(offer.inputs).flatMap(([from, outputs]) =>
      Object.entries(outputs).map(([output, { digest, bytes }]) => ({ step: from, output, digest, bytes })),
    ),
    outputs: Object.entries(outcome.outputs).map(([output, { digest, bytes }]) => ({
      name: output,
      digest,
      bytes,
    })),
    artifacts: outcome.artifacts.map((artifact) => ({
      name: artifact.name,
      digest: artifact.digest,
      bytes: artifact.bytes,
    })),
    egress: outcome.egress,
    folded: [],
    policy: {
      centre: { version: offer.policyVersion },
      site: sitePolicy === undefined ? null : { version: sitePolicy, decision },
    },
    log: { entries: outcome.logLastSeq, bytes: outcome.logBytes, droppedBytes: outcome.logDroppedBytes },
    time: { startedAtMs, finishedAtMs, clock: "agent", ...moment },
    result: { status, exitCode, signal, error: error?.code ?? null },
  };
}

/** A text that was cut may end with half a character, of which there is no canonical JSON. */
function wellFormed(text: string): string {
  return new TextDecoder().decode(utf8Bytes(text));
}
