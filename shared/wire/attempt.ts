/** What the two sides say about an attempt: the offer goes down over NATS, reports come up over gRPC. */
import { z } from "zod";
import { Digest, FieldName, Name } from "../model/names.ts";
import { Classification, ParamValue, StepSpec } from "../model/spec.ts";
import { SignedStep } from "../provenance/signed-pipeline.ts";
import { SignedReceipt } from "../provenance/signed-receipt.ts";

/** Names one grant of one attempt. `epoch` is the fencing token: it grows with each grant. */
export const LeaseKey = z.strictObject({
  runId: z.string(),
  stepId: Name,
  attempt: z.int().min(1),
  epoch: z.int().min(1),
});
export type LeaseKey = z.infer<typeof LeaseKey>;

/** A small value that a step passes on. `text` is missing when only the digest left the site. */
export const OutputValue = z.strictObject({
  type: z.enum(["json", "text"]),
  digest: Digest,
  bytes: z.int().min(0),
  text: z.string().optional(),
});
export type OutputValue = z.infer<typeof OutputValue>;

export const ArtifactRef = z.strictObject({
  name: FieldName,
  digest: Digest,
  bytes: z.int().min(0),
  environment: Name,
});
export type ArtifactRef = z.infer<typeof ArtifactRef>;

export const VERDICTS = ["allow", "redact", "digest", "withhold"] as const;
export const Verdict = z.enum(VERDICTS);
export type Verdict = z.infer<typeof Verdict>;

/** What the egress gate did with one thing that could leave the site. */
export const EgressRecord = z.strictObject({
  kind: z.enum(["output", "log", "error", "artifact", "network"]),
  /** Of `network`: `host:port` as on the step's list, or "others" for what is not on it, whose names stay at the site. */
  name: z.string(),
  verdict: Verdict,
  /** Content bytes that left the site. A digest counts as zero. */
  sentBytes: z.int().min(0),
  /** Content bytes that stayed because of the verdict. */
  keptBytes: z.int().min(0),
  /** Of `network`: connections to the target, tries that came to none, and bytes that came back. */
  connections: z.int().min(0).optional(),
  failures: z.int().min(0).optional(),
  receivedBytes: z.int().min(0).optional(),
});
export type EgressRecord = z.infer<typeof EgressRecord>;

export const OUTCOME_STATUSES = [
  "succeeded",
  "failed",
  "timed-out",
  "cancelled",
  "interrupted", // the agent or its host went away under the step, and no exit record is left
  "refused", // the agent would not start it: dataset not mounted, executor missing, policy veto
] as const;
export const OutcomeStatus = z.enum(OUTCOME_STATUSES);
export type OutcomeStatus = z.infer<typeof OutcomeStatus>;

/** What a step's processes ran in. */
export const BoxRecord = z.strictObject({
  kind: z.enum(["bubblewrap", "none"]),
  /** Of the program that made the box; empty for none. */
  version: z.string().max(64),
  /** `allow-list`: the targets of the step alone. `host`: what the host has. */
  network: z.enum(["none", "allow-list", "host"]),
  /** Limit, as a step's `resources` call it, to what held it. */
  limits: z.record(z.string(), z.string()),
  /** Of the container image whose files were the box's root. Missing: those of the host. */
  image: Digest.optional(),
});
export type BoxRecord = z.infer<typeof BoxRecord>;

/** How one attempt ended, as its agent saw it. */
export const Outcome = z.strictObject({
  status: OutcomeStatus,
  exitCode: z.int().nullable(),
  signal: z.string().nullable(),
  /** For people; what may leave the site of it. `code` is one of a small set, like "exit", "timeout", "output.missing". */
  error: z.strictObject({ code: z.string(), message: z.string().max(4096) }).nullable(),
  outputs: z.record(FieldName, OutputValue),
  artifacts: z.array(ArtifactRef),
  egress: z.array(EgressRecord),
  /** The last log entry of the attempt, so that a reader knows when it has them all; 0 for none. */
  logLastSeq: z.int().min(0),
  logBytes: z.int().min(0),
  logDroppedBytes: z.int().min(0),
  startedAtMs: z.int().min(0),
  finishedAtMs: z.int().min(0),
  /** The policy of the site under which the attempt was taken or refused. Missing: the site has none. */
  sitePolicy: Digest.optional(),
  /** Missing: no process was started, or by an agent that does not say. */
  sandbox: BoxRecord.optional(),
  /** What the agent signed of a step that reads or writes datasets. Missing: the step does not, or the agent is older. */
  receipt: SignedReceipt.optional(),
});
export type Outcome = z.infer<typeof Outcome>;

/** Payload of `Report` in agent.proto. */
export const ReportPayload = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("started"), lease: LeaseKey, atMs: z.int().min(0) }),
  z.strictObject({ kind: z.literal("finished"), lease: LeaseKey, outcome: Outcome }),
]);
export type ReportPayload = z.infer<typeof ReportPayload>;

/** A signed message that an attempt may be taken by an agent of one environment. Carries all it needs to start. */
export const Offer = z.strictObject({
  v: z.literal(1),
  lease: LeaseKey,
  environment: Name,
  pipeline: Name,
  version: Digest,
  step: StepSpec,
  params: z.record(FieldName, ParamValue),
  /** Outputs of the steps that this one needs: step, then output. */
  inputs: z.record(Name, z.record(FieldName, OutputValue)),
  files: z.record(z.string(), z.string()),
  /** Facts about the datasets in `step.reads` and `step.writes`, for the egress gate. */
  datasets: z.array(z.strictObject({ name: Name, classification: Classification })),
  /** The policy under which the step was placed here. */
  policyVersion: z.string(),
  issuedAtMs: z.int(),
  expiresAtMs: z.int(),
  /** W3C trace context. */
  traceparent: z.string(),
  /** Of a pipeline that is signed; left out otherwise, so that agents from before take what is not. */
  signed: SignedStep.optional(),
});
export type Offer = z.infer<typeof Offer>;

/** NATS header with the base64 Ed25519 signature over `OFFER_PURPOSE`, a zero byte, and the payload's bytes. */
export const OFFER_SIGNATURE_HEADER = "Insitu-Signature";
export const OFFER_PURPOSE = "insitu.offer.v1";
