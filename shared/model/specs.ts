/** From what a person wrote to what is stored, and back. */
import type {
  AccessPolicyDocument,
  AnyDocument,
  DatasetDocument,
  EnvironmentDocument,
  PipelineDocument,
  PoolDocument,
  StepDocument,
} from "./documents.ts";
import type {
  AccessPolicySpec,
  ArtifactSpec,
  DatasetSpec,
  DisconnectSpec,
  EnvironmentSpec,
  ExecutorSpec,
  OutputSpec,
  PipelineSpec,
  PoolSpec,
  Resource,
  ResourcesSpec,
  RetrySpec,
  SecretSpec,
  StepSpec,
} from "./spec.ts";
import { parseTarget, targetText } from "./target.ts";
import { durationMs, formatDuration, sizeBytes } from "./units.ts";

export const DEFAULTS = {
  outputMaxBytes: 64 * 1024,
  artifactMaxBytes: 10 * 1024 * 1024,
  backoff: "1s",
  factor: 2,
  maxBackoff: "1m",
  jitter: 0.2,
  timeout: "1h",
  unplaceable: "5m",
  keep: "0s",
} as const;

/**
 * The resource that a document describes, every default filled in.
 *
 * What is a set is sorted and without repetition, so that the order of writing makes no new version. Steps keep
 * their order. `files` is the content of every file that the steps name, by normal path.
 */
export function specOf(document: AnyDocument, files: Record<string, string> = {}): Resource {
  switch (document.kind) {
    case "pipeline":
      return { kind: "pipeline", spec: pipelineSpec(document, files) };
    case "dataset":
      return { kind: "dataset", spec: datasetSpec(document) };
    case "environment":
      return { kind: "environment", spec: environmentSpec(document) };
    case "pool":
      return { kind: "pool", spec: poolSpec(document) };
    case "access-policy":
      return { kind: "access-policy", spec: accessPolicySpec(document) };
  }
}

function pipelineSpec(document: PipelineDocument, files: Record<string, string>): PipelineSpec {
  const params = mapValues(document.params ?? {}, (param) => {
    const { description, default: fallback, enum: values } = param;
    return { type: param.type, ...given({ description, default: fallback, enum: values }) };
  });
  return {
    name: document.name,
    ...given({ description: document.description, owner: document.owner }),
    params,
    timeoutMs: document.timeout === undefined ? null : durationMs(document.timeout),
    files,
    steps: document.steps.map(stepSpec),
  };
}

function stepSpec(step: StepDocument): StepSpec {
  return {
    id: step.id,
    ...given({ description: step.description }),
    needs: setOf(step.needs),
    executor: executorSpec(step),
    env: step.env ?? {},
    files: setOf(step.files?.map(normalPath)),
    reads: setOf(step.reads),
    writes: setOf(step.writes),
    environments: setOf(step.environment),
    outputs: mapValues(step.outputs ?? {}, outputSpec),
    artifacts: mapValues(step.artifacts ?? {}, artifactSpec),
    retry: retrySpec(step.retries ?? 0),
    timeoutMs: durationMs(step.timeout ?? DEFAULTS.timeout),
    unplaceableMs: durationMs(step.unplaceable ?? DEFAULTS.unplaceable),
    pools: setOf(step.pools),
    ...(step.disconnect ? { disconnect: disconnectSpec(step.disconnect, step.once === true) } : {}),
    ...(step.once === true ? { once: true } : {}),
    ...withoutEmpty({ secrets: secretSpecs(step.secrets ?? {}) }),
    ...(step.resources && Object.keys(step.resources).length > 0
      ? { resources: resourcesSpec(step.resources) }
      : {}),
    ...(step.sandbox ? { sandbox: step.sandbox } : {}),
    ...(step.network ? { network: { allow: setOf(step.network.allow.map(normalTarget)) } } : {}),
  };
}

function executorSpec({ run, container }: StepDocument): ExecutorSpec {
  if (container) {
    const { image, command, args } = container;
    return { kind: "container", image, ...given({ command, args }) };
  }
  if (run === undefined) return { kind: "noop" };
  return { kind: "process", argv: typeof run === "string" ? ["sh", "-ec", run] : run };
}

function executorDocument(executor: ExecutorSpec): Pick<StepDocument, "run" | "uses" | "container"> {
  switch (executor.kind) {
    case "process":
      return { run: executor.argv };
    case "container": {
      const { image, command, args } = executor;
      return { container: { image, ...given({ command, args }) } };
    }
    case "noop":
      return { uses: "noop" };
  }
}

/** What is no target has not passed the schema of documents. */
function normalTarget(text: string): string {
  const target = parseTarget(text);
  return target === undefined ? text : targetText(target);
}

/** In the short form the variable is the name in capitals: `warehouse-password` is WAREHOUSE_PASSWORD. */
export function secretSpecs(secrets: NonNullable<StepDocument["secrets"]>): Record<string, SecretSpec> {
  if (Array.isArray(secrets))
    return Object.fromEntries(secrets.map((name) => [shortVariable(name), { name, as: "file" }]));
  return mapValues(secrets, (secret) =>
    typeof secret === "string"
      ? { name: secret, as: "file" }
      : { name: secret.name, as: secret.as ?? "file" },
  );
}

function shortVariable(name: string): string {
  const variable = name.toUpperCase().replaceAll("-", "_");
  return /^[0-9]/.test(variable) ? `_${variable}` : variable;
}

function resourcesSpec({
  memory,
  cpu,
  processes,
  fileSize,
  openFiles,
}: NonNullable<StepDocument["resources"]>): ResourcesSpec {
  return given({
    memoryBytes: memory === undefined ? undefined : sizeBytes(memory),
    cpus: cpu,
    processes,
    fileSizeBytes: fileSize === undefined ? undefined : sizeBytes(fileSize),
    openFiles,
  });
}

function resourcesDocument(resources: ResourcesSpec): NonNullable<StepDocument["resources"]> {
  const { memoryBytes, cpus, processes, fileSizeBytes, openFiles } = resources;
  return given({ memory: memoryBytes, cpu: cpus, processes, fileSize: fileSizeBytes, openFiles });
}

function disconnectSpec(
  { keep, then }: NonNullable<StepDocument["disconnect"]>,
  once: boolean,
): DisconnectSpec {
  return { keepMs: durationMs(keep ?? DEFAULTS.keep), then: then ?? (once ? "wait" : "reassign") };
}

function disconnectDocument({ keepMs, then }: DisconnectSpec): NonNullable<StepDocument["disconnect"]> {
  return { keep: formatDuration(keepMs), then };
}

export function outputSpec(output: NonNullable<StepDocument["outputs"]>[string]): OutputSpec {
  return { type: output?.type ?? "json", maxBytes: sizeBytes(output?.maxBytes ?? DEFAULTS.outputMaxBytes) };
}

function artifactSpec(artifact: NonNullable<StepDocument["artifacts"]>[string]): ArtifactSpec {
  const { path, maxBytes } = typeof artifact === "string" ? { path: artifact } : artifact;
  return { path: normalPath(path), maxBytes: sizeBytes(maxBytes ?? DEFAULTS.artifactMaxBytes) };
}

export function retrySpec(retries: NonNullable<StepDocument["retries"]>): RetrySpec {
  const { max, backoff, factor, maxBackoff, jitter } =
    typeof retries === "number" ? { max: retries } : retries;
  return {
    max,
    backoffMs: durationMs(backoff ?? DEFAULTS.backoff),
    factor: factor ?? DEFAULTS.factor,
    backoffMaxMs: durationMs(maxBackoff ?? DEFAULTS.maxBackoff),
    jitter: jitter ?? DEFAULTS.jitter,
  };
}

function datasetSpec(document: DatasetDocument): DatasetSpec {
  const { name, description, owner, classification } = document;
  return {
    name,
    ...given({ description }),
    owner,
    classification,
    residency: setOf(document.residency),
    environments: setOf(document.environments),
  };
}

function environmentSpec({
  name,
  description,
  owner,
  jurisdiction,
  labels,
  disconnect,
  identity,
}: EnvironmentDocument): EnvironmentSpec {
  return {
    name,
    ...given({ description, owner }),
    jurisdiction,
    labels: labels ?? {},
    ...(disconnect ? { disconnect: disconnectSpec(disconnect, false) } : {}),
    ...(identity ? { identity: { validForMs: durationMs(identity.validFor) } } : {}),
  };
}

function poolSpec({ name, description, owner, capacity }: PoolDocument): PoolSpec {
  return { name, ...given({ description, owner }), capacity };
}

function accessPolicySpec({ name, description, owner, rules }: AccessPolicyDocument): AccessPolicySpec {
  return { name, ...given({ description, owner }), rules };
}

/** A document that describes the resource: `specOf` gives the same again, with the same digest. */
export function documentOf(resource: Resource): AnyDocument {
  switch (resource.kind) {
    case "pipeline": {
      const { name, description, owner, params, timeoutMs, files, steps } = resource.spec;
      return {
        kind: "pipeline",
        name,
        ...given({ description, owner }),
        ...(Object.keys(params).length > 0 ? { params: mapValues(params, (param) => given(param)) } : {}),
        ...(timeoutMs === null ? {} : { timeout: formatDuration(timeoutMs) }),
        ...(Object.keys(files).length > 0 ? { files } : {}),
        steps: steps.map(stepDocument),
      };
    }
    case "dataset": {
      const { name, description, owner, classification, residency, environments } = resource.spec;
      // A stored residency has passed the schema of documents.
      const kept = residency as DatasetDocument["residency"];
      return {
        kind: "dataset",
        name,
        ...given({ description }),
        owner,
        classification,
        residency: kept,
        environments,
      };
    }
    case "environment": {
      const { name, description, owner, jurisdiction, labels, disconnect, identity } = resource.spec;
      return {
        kind: "environment",
        name,
        ...given({ description, owner }),
        jurisdiction,
        ...(Object.keys(labels).length > 0 ? { labels } : {}),
        ...(disconnect ? { disconnect: disconnectDocument(disconnect) } : {}),
        ...(identity ? { identity: { validFor: formatDuration(identity.validForMs) } } : {}),
      };
    }
    case "pool": {
      const { name, description, owner, capacity } = resource.spec;
      return { kind: "pool", name, ...given({ description, owner }), capacity };
    }
    case "access-policy": {
      const { name, description, owner, rules } = resource.spec;
      return { kind: "access-policy", name, ...given({ description, owner }), rules };
    }
  }
}

function stepDocument(step: StepSpec): StepDocument {
  const { executor, retry } = step;
  const lists = { needs: step.needs, files: step.files, reads: step.reads, writes: step.writes };
  const more = { environment: step.environments, pools: step.pools };
  const maps = { env: step.env, outputs: step.outputs, artifacts: step.artifacts };
  return {
    id: step.id,
    ...given({ description: step.description }),
    ...executorDocument(executor),
    ...withoutEmpty({ ...lists, ...more, ...maps }),
    retries: {
      max: retry.max,
      backoff: formatDuration(retry.backoffMs),
      factor: retry.factor,
      maxBackoff: formatDuration(retry.backoffMaxMs),
      jitter: retry.jitter,
    },
    timeout: formatDuration(step.timeoutMs),
    unplaceable: formatDuration(step.unplaceableMs),
    ...(step.disconnect ? { disconnect: disconnectDocument(step.disconnect) } : {}),
    ...(step.once === true ? { once: true } : {}),
    ...(step.secrets ? { secrets: step.secrets } : {}),
    ...(step.resources ? { resources: resourcesDocument(step.resources) } : {}),
    ...(step.sandbox ? { sandbox: step.sandbox } : {}),
    ...(step.network ? { network: step.network } : {}),
  };
}

/** `./a//b` and `a/b` are one file. */
export function normalPath(path: string): string {
  return path
    .split("/")
    .filter((segment) => segment !== "." && segment !== "")
    .join("/");
}

/** Sorted by code units, each once. */
function setOf(list: string | readonly string[] | undefined): string[] {
  if (list === undefined) return [];
  return [...new Set(typeof list === "string" ? [list] : list)].sort();
}

function mapValues<A, B>(map: Record<string, A>, change: (value: A) => B): Record<string, B> {
  return Object.fromEntries(Object.entries(map).map(([key, value]) => [key, change(value)]));
}

type Given<T> = { [K in keyof T]?: Exclude<T[K], undefined> };

/** Without what is undefined: an absent property and one without a value are not the same to a digest's reader. */
function given<T extends object>(properties: T): Given<T> & { [K in RequiredKeys<T>]: T[K] } {
  return Object.fromEntries(Object.entries(properties).filter(([, value]) => value !== undefined)) as never;
}
type RequiredKeys<T> = { [K in keyof T]-?: undefined extends T[K] ? never : K }[keyof T];

function withoutEmpty<T extends Record<string, object>>(properties: T): Partial<T> {
  return Object.fromEntries(
    Object.entries(properties).filter(([, value]) => Object.keys(value).length > 0),
  ) as Partial<T>;
}
