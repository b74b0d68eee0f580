/**
 * Resources as they are stored: every default filled in, every unit explicit.
 *
 * What a person writes is in `documents.ts`; it is turned into these once, when it is applied. A pipeline's
 * version is the SHA-256 of the canonical JSON (RFC 8785) of its `PipelineSpec`.
 */
import { z } from "zod";
import { isImage } from "./image.ts";
import { FieldName, Name, VARIABLE_PATTERN } from "./names.ts";
import { parseTarget, TARGETS_MAX, targetText } from "./target.ts";

export const CLASSIFICATIONS = ["public", "internal", "confidential", "restricted", "secret"] as const;
export const Classification = z.enum(CLASSIFICATIONS);
export type Classification = z.infer<typeof Classification>;

export const ProcessExecutor = z.strictObject({
  kind: z.literal("process"),
  argv: z.array(z.string()).min(1),
});
export const NoopExecutor = z.strictObject({ kind: z.literal("noop") });
/** A program of an image that is at the site. */
export const ContainerExecutor = z.strictObject({
  kind: z.literal("container"),
  /** `name@sha256:…` */
  image: z.string().refine(isImage),
  /** In place of the image's entrypoint and its own arguments. */
  command: z.array(z.string()).min(1).optional(),
  /** In place of the image's own arguments. */
  args: z.array(z.string()).min(1).optional(),
});
export type ContainerExecutor = z.infer<typeof ContainerExecutor>;
export const ExecutorSpec = z.discriminatedUnion("kind", [ProcessExecutor, NoopExecutor, ContainerExecutor]);
export type ExecutorSpec = z.infer<typeof ExecutorSpec>;

export const RetrySpec = z.strictObject({
  /** Further tries after the first. */
  max: z.int().min(0).max(100),
  backoffMs: z.int().min(0),
  factor: z.number().min(1).max(10),
  backoffMaxMs: z.int().min(0),
  /** Share of the delay that is drawn by chance, 0 to 1. */
  jitter: z.number().min(0).max(1),
});
export type RetrySpec = z.infer<typeof RetrySpec>;

export const OutputSpec = z.strictObject({ type: z.enum(["json", "text"]), maxBytes: z.int().min(1) });
export type OutputSpec = z.infer<typeof OutputSpec>;
export const ArtifactSpec = z.strictObject({ path: z.string().min(1), maxBytes: z.int().min(1) });
export type ArtifactSpec = z.infer<typeof ArtifactSpec>;

/** What becomes of an attempt whose agent no longer renews its lease. */
export const DisconnectSpec = z.strictObject({
  /** How long the agent may be away after its lease has run out before `then` applies. */
  keepMs: z.int().min(0),
  /** `wait`: until the agent returns or an operator decides; `keepMs` does not end it. */
  then: z.enum(["reassign", "wait", "fail"]),
});
export type DisconnectSpec = z.infer<typeof DisconnectSpec>;

/** A secret that the agent resolves at its site. The centre has its name and never its value. */
export const SecretSpec = z.strictObject({
  name: Name,
  /** `file`: in memory, its path in the variable with `_FILE` behind it. `env`: the variable has the value. */
  as: z.enum(["file", "env"]),
});
export type SecretSpec = z.infer<typeof SecretSpec>;
/** Of one step. */
export const SECRETS_MAX = 32;

/** What one attempt may take of its host, all its processes together. Missing: what the agent's configuration says. */
export const ResourcesSpec = z.strictObject({
  memoryBytes: z.int().min(1).optional(),
  /** Cores' worth of processor time; 0.5 is half of one. */
  cpus: z.number().positive().optional(),
  /** Threads count as processes. */
  processes: z.int().min(1).optional(),
  /** Of any one file that it writes. */
  fileSizeBytes: z.int().min(1).optional(),
  /** Of each of its processes. */
  openFiles: z.int().min(1).optional(),
});
export type ResourcesSpec = z.infer<typeof ResourcesSpec>;

/** Where a boxed step is let out to. Missing: nowhere. */
export const NetworkSpec = z.strictObject({
  /** `host:port`, in the one form of `targetText`; sorted. */
  allow: z.array(z.string().refine(isTargetText)).min(1).max(TARGETS_MAX),
});
export type NetworkSpec = z.infer<typeof NetworkSpec>;

function isTargetText(text: string): boolean {
  const target = parseTarget(text);
  return target !== undefined && targetText(target) === text;
}

export const StepSpec = z.strictObject({
  id: Name,
  description: z.string().optional(),
  needs: z.array(Name),
  executor: ExecutorSpec,
  env: z.record(z.string(), z.string()),
  /** Names in `PipelineSpec.files` that lie in the step's working directory when it starts. */
  files: z.array(z.string()),
  reads: z.array(Name),
  writes: z.array(Name),
  /** Where the step may run, on top of what policy says. Empty: wherever policy allows. */
  environments: z.array(Name),
  outputs: z.record(FieldName, OutputSpec),
  artifacts: z.record(FieldName, ArtifactSpec),
  retry: RetrySpec,
  timeoutMs: z.int().min(1),
  /** How long the step waits for an environment that may run it before it fails. */
  unplaceableMs: z.int().min(0),
  pools: z.array(Name),
  // These came later and are left out when a document does not say them: a version that was saved before them keeps
  // its digest, and an agent that does not know them takes the offers that do not need them.
  /** Missing or null: the default of the environment that the attempt is offered to. */
  disconnect: DisconnectSpec.nullable().optional(),
  /** Never offered again while the fate of an agent that started it is unknown. Missing: false. */
  once: z.boolean().optional(),
  /** Variable → secret. Missing: none. */
  secrets: z.record(z.string().regex(VARIABLE_PATTERN), SecretSpec).optional(),
  resources: ResourcesSpec.optional(),
  /** Never started without a box, whatever its data. Missing: as the agent's configuration says for the class of it. */
  sandbox: z.literal("required").optional(),
  network: NetworkSpec.optional(),
});
export type StepSpec = z.infer<typeof StepSpec>;

export const ParamSpec = z.strictObject({
  type: z.enum(["string", "number", "boolean"]),
  description: z.string().optional(),
  default: z.union([z.string(), z.number(), z.boolean()]).optional(),
  enum: z.array(z.union([z.string(), z.number()])).optional(),
});
export type ParamSpec = z.infer<typeof ParamSpec>;
export const ParamValue = z.union([z.string(), z.number(), z.boolean()]);
export type ParamValue = z.infer<typeof ParamValue>;

export const PipelineSpec = z.strictObject({
  name: Name,
  description: z.string().optional(),
  owner: z.string().optional(),
  params: z.record(FieldName, ParamSpec),
  /** Deadline of the whole run; null for none. */
  timeoutMs: z.int().min(1).nullable(),
  /** Text files that steps bring along, by relative path. */
  files: z.record(z.string(), z.string()),
  steps: z.array(StepSpec).min(1),
});
export type PipelineSpec = z.infer<typeof PipelineSpec>;

export const DatasetSpec = z.strictObject({
  name: Name,
  description: z.string().optional(),
  owner: z.string(),
  classification: Classification,
  /** ISO 3166-1 alpha-2 codes, or the groups of `jurisdictions.ts` ("EU", "EEA"). Never empty. */
  residency: z.array(z.string()).min(1),
  /** The environments that hold it. */
  environments: z.array(Name),
});
export type DatasetSpec = z.infer<typeof DatasetSpec>;

export const EnvironmentSpec = z.strictObject({
  name: Name,
  description: z.string().optional(),
  owner: z.string().optional(),
  /** ISO 3166-1 alpha-2 code of the country whose law applies. */
  jurisdiction: z.string(),
  labels: z.record(z.string(), z.string()),
  /** Of steps that run there and say nothing themselves. Missing: reassigned when the lease runs out. */
  disconnect: DisconnectSpec.optional(),
  /** Of its agents' certificates. Missing: 30 days. */
  identity: z.strictObject({ validForMs: z.int() }).optional(),
});
export type EnvironmentSpec = z.infer<typeof EnvironmentSpec>;

export const PoolSpec = z.strictObject({
  name: Name,
  description: z.string().optional(),
  owner: z.string().optional(),
  /** How many attempts may hold the pool at once, over all runs. */
  capacity: z.int().min(0).max(1_000_000),
});
export type PoolSpec = z.infer<typeof PoolSpec>;

/** Rules in Cedar about who may do what, by name. What they may speak of is checked where they are applied. */
export const AccessPolicySpec = z.strictObject({
  name: Name,
  description: z.string().optional(),
  owner: z.string().optional(),
  rules: z.record(Name, z.string()),
});
export type AccessPolicySpec = z.infer<typeof AccessPolicySpec>;

export const KINDS = ["pipeline", "dataset", "environment", "pool", "access-policy"] as const;
export type Kind = (typeof KINDS)[number];

export type Resource =
  | { kind: "pipeline"; spec: PipelineSpec }
  | { kind: "dataset"; spec: DatasetSpec }
  | { kind: "environment"; spec: EnvironmentSpec }
  | { kind: "pool"; spec: PoolSpec }
  | { kind: "access-policy"; spec: AccessPolicySpec };
