/** What is wrong between documents: names that are there twice or not at all, cycles, sums over a limit. */
import { OUTPUTS_MAX_BYTES } from "../wire/protocol.ts";
import type { DocumentError, DocumentPath } from "./document-errors.ts";
import { pathText } from "./document-errors.ts";
import type { PipelineDocument, StepDocument } from "./documents.ts";
import { findCycles } from "./find-cycles.ts";
import type { LocatedResource } from "./load-documents.ts";
import { didYouMean } from "./nearest.ts";
import { ERRORS_PER_DOCUMENT_MAX } from "./parse-yaml.ts";
import type { Kind } from "./spec.ts";
import { outputSpec, secretSpecs } from "./specs.ts";
import { formatSize } from "./units.ts";

/** What is stored already. */
export interface KnownResources {
  has(kind: Kind, name: string): boolean;
  names(kind: Kind): readonly string[];
}

/** Environment variables with this prefix are the agent's. */
export const RESERVED_ENV_PREFIX = "INSITU_";

/** Searching twenty thousand names for the nearest takes a while; a reader needs it for the first mistakes. */
const NEAREST_PER_DOCUMENT_MAX = 20;

/** A cycle of a thousand steps is not written out. */
const CYCLE_SHOWN_MAX = 12;

interface ResourceNames {
  has(name: string): boolean;
  readonly all: readonly string[];
}

/**
 * Checks resources against each other and against what is stored.
 *
 * `broken` names documents of the same set that did not load: what refers to them is not told again.
 */
export function validateSet(
  resources: readonly LocatedResource[],
  known: KnownResources,
  broken: readonly { kind: Kind; name: string }[] = [],
): DocumentError[] {
  const errors = duplicates(resources);
  const names = {
    dataset: namesOf("dataset", resources, known, broken),
    environment: namesOf("environment", resources, known, broken),
    pool: namesOf("pool", resources, known, broken),
  };
  for (const resource of resources) {
    if (resource.kind === "pipeline") errors.push(...firstOf(resource, checkPipeline(resource, names)));
    if (resource.kind === "dataset" && resource.document.kind === "dataset") {
      const uses = entries(resource.document.environments, ["environments"]);
      const subject = `dataset ${resource.spec.name} is held by`;
      const unknown = unknownNames(uses, "environment", names.environment, subject);
      errors.push(...firstOf(resource, unknown));
    }
  }
  return errors;
}

/** An error before its place and its hint are looked up: both cost time, and only the first errors are shown. */
interface Fault {
  path: DocumentPath;
  message: string;
  code: string;
  expected?: string;
  hint?: string;
  nearest?: () => { hint?: string };
  on?: "key";
}

function firstOf(resource: LocatedResource, faults: readonly Fault[]): DocumentError[] {
  const errors = faults.slice(0, ERRORS_PER_DOCUMENT_MAX).map((fault, index) => {
    const { nearest, ...rest } = fault;
    const hint = nearest && index < NEAREST_PER_DOCUMENT_MAX ? nearest() : {};
    return errorAt(resource, { ...rest, ...hint });
  });
  const more = faults.length - ERRORS_PER_DOCUMENT_MAX;
  if (more > 0) {
    const message = `${more} more errors in ${resource.kind} ${resource.spec.name} are not shown`;
    const { line, column } = errors.at(-1) ?? resource.locate([]);
    errors.push({ file: resource.file, line, column, path: "", message, code: "limit.errors" });
  }
  return errors;
}

type Names = Record<"dataset" | "environment" | "pool", ResourceNames>;

function namesOf(
  kind: Kind,
  resources: readonly LocatedResource[],
  known: KnownResources,
  broken: readonly { kind: Kind; name: string }[],
): ResourceNames {
  const here = new Set<string>();
  for (const resource of resources) if (resource.kind === kind) here.add(resource.spec.name);
  for (const item of broken) if (item.kind === kind) here.add(item.name);
  return { has: (name) => here.has(name) || known.has(kind, name), all: [...here, ...known.names(kind)] };
}

function errorAt(resource: LocatedResource, fault: Omit<Fault, "nearest">): DocumentError {
  const { path, on = "value", ...rest } = fault;
  return { file: resource.file, ...resource.locate(path, on), path: pathText(path), ...rest };
}

/** Both places are named: the second as the error's own, the first in its message. */
function duplicates(resources: readonly LocatedResource[]): DocumentError[] {
  const seen = new Map<string, LocatedResource>();
  return resources.flatMap((resource) => {
    const { name } = resource.spec;
    const key = `${resource.kind}/${name}`;
    const first = seen.get(key);
    if (first === undefined) {
      seen.set(key, resource);
      return [];
    }
    const { line, column } = first.locate(["name"]);
    const message = `${resource.kind} ${name} is described twice; first at ${first.file}:${line}:${column}`;
    return [errorAt(resource, { path: ["name"], message, code: "name.twice" })];
  });
}

function checkPipeline(resource: LocatedResource, names: Names): Fault[] {
  const document = resource.document as PipelineDocument;
  const stepIds = new Map<string, number>();
  const errors: Fault[] = [];
  for (const [index, { id }] of document.steps.entries()) {
    const first = stepIds.get(id);
    if (first === undefined) {
      stepIds.set(id, index);
      continue;
    }
    const { line, column } = resource.locate(["steps", first, "id"]);
    const message = `step ${id} is described twice; first at ${resource.file}:${line}:${column}`;
    errors.push({ path: ["steps", index, "id"], message, code: "name.twice" });
  }
  const steps: ResourceNames = { has: (id) => stepIds.has(id), all: [...stepIds.keys()] };
  for (const [index, step] of document.steps.entries())
    for (const fault of checkStep(index, step, steps, names)) errors.push(fault);
  return errors.concat(cycles(document));
}

function checkStep(index: number, step: StepDocument, steps: ResourceNames, names: Names): Fault[] {
  const at = ["steps", index];
  const subject = `step ${step.id}`;
  const unknown = (
    key: "needs" | "reads" | "writes" | "environment" | "pools",
    kind: string,
    valid: ResourceNames,
    verb: string,
  ) => unknownNames(entries(step[key], [...at, key]), kind, valid, `${subject} ${verb}`);
  const needs = entries(step.needs, [...at, "needs"]);
  return [
    ...needs
      .filter(({ name }) => name === step.id)
      .map(({ path }) => ({ path, message: `${subject} needs itself`, code: "cycle" })),
    ...unknown("needs", "step", steps, "needs"),
    ...unknown("reads", "dataset", names.dataset, "reads"),
    ...unknown("writes", "dataset", names.dataset, "writes"),
    ...unknown("environment", "environment", names.environment, "is narrowed to"),
    ...unknown("pools", "pool", names.pool, "holds"),
    ...reservedEnv(at, step),
    ...badSecrets(at, step),
    ...outputsTooLarge(at, step),
    ...startedTwice(at, step),
  ];
}

/** `once` promises what a second attempt would break. */
function startedTwice(at: DocumentPath, step: StepDocument): Fault[] {
  if (step.once !== true) return [];
  const faults: Fault[] = [];
  if (step.disconnect?.then === "reassign") {
    const message = `step ${step.id} is 'once' and would be reassigned while its first holder may still run it`;
    const hint = "say 'then: wait' or 'then: fail', or leave 'then' out";
    faults.push({ path: [...at, "disconnect", "then"], message, hint, code: "once.reassign" });
  }
  const { retries = 0 } = step;
  if ((typeof retries === "number" ? retries : retries.max) > 0) {
    const path = [...at, "retries", ...(typeof retries === "number" ? [] : ["max"])];
    const message = `step ${step.id} is 'once' and has retries: a retry starts it again`;
    faults.push({ path, message, hint: "leave out 'retries' or 'once'", code: "once.retries" });
  }
  return faults;
}

function unknownNames(
  uses: readonly { name: string; path: DocumentPath }[],
  kind: string,
  valid: ResourceNames,
  subject: string,
): Fault[] {
  return uses
    .filter(({ name }) => !valid.has(name))
    .map(({ name, path }) => {
      const message = `${subject} ${kind} ${name}, which does not exist`;
      const expected = `the name of ${kind === "environment" ? "an" : "a"} ${kind}`;
      const nearest = () =>
        valid.all.length === 0 ? { hint: `there is no ${kind} yet` } : didYouMean(name, valid.all);
      return { path, message, expected, nearest, code: "name.unknown" };
    });
}

function reservedEnv(at: DocumentPath, step: StepDocument): Fault[] {
  return Object.keys(step.env ?? {})
    .filter(isReserved)
    .map((name) => {
      const message = `step ${step.id} sets ${name}, which the agent sets; names that start with ${RESERVED_ENV_PREFIX} are its own`;
      return { path: [...at, "env", name], message, code: "env.reserved", on: "key" };
    });
}

function badSecrets(at: DocumentPath, step: StepDocument): Fault[] {
  if (step.secrets === undefined) return [];
  const path = [...at, "secrets"];
  if (step.uses !== undefined) {
    const message = `step ${step.id} uses a built-in, which takes no secrets`;
    return [
      {
        path,
        message,
        hint: "give the secrets to a step with 'run' or 'container'",
        code: "secrets.unused",
        on: "key",
      },
    ];
  }
  const place = (variable: string): Pick<Fault, "path" | "on"> =>
    Array.isArray(step.secrets) ? { path } : { path: [...path, variable], on: "key" };
  const taken = new Set(Object.keys(step.env ?? {}));
  return Object.entries(secretSpecs(step.secrets)).flatMap(([variable, { as }]) => {
    const seen = as === "file" ? `${variable}_FILE` : variable;
    if (isReserved(variable)) {
      const message = `step ${step.id} asks for a secret in ${variable}, which the agent sets`;
      return [{ ...place(variable), message, code: "secrets.reserved" }];
    }
    if (taken.has(seen)) {
      const message = `step ${step.id} sets ${seen} twice: in 'env', or for another secret`;
      return [{ ...place(variable), message, code: "secrets.twice" }];
    }
    taken.add(seen);
    return [];
  });
}

function isReserved(variable: string): boolean {
  return variable.toUpperCase().startsWith(RESERVED_ENV_PREFIX) || variable === "TRACEPARENT";
}

function outputsTooLarge(at: DocumentPath, step: StepDocument): Fault[] {
  const sum = Object.values(step.outputs ?? {}).reduce(
    (bytes, output) => bytes + outputSpec(output).maxBytes,
    0,
  );
  if (sum <= OUTPUTS_MAX_BYTES) return [];
  const message = `the outputs of step ${step.id} may have ${formatSize(sum)} together; ${formatSize(OUTPUTS_MAX_BYTES)} are allowed`;
  const hint = "lower their maxBytes, or make large ones artifacts";
  return [{ path: [...at, "outputs"], message, hint, code: "limit.outputs", on: "key" }];
}

function cycles(document: PipelineDocument): Fault[] {
  const needs = new Map<string, string[]>();
  const indexes = new Map<string, number>();
  for (const [index, step] of document.steps.entries()) {
    if (indexes.has(step.id)) continue;
    indexes.set(step.id, index);
    // A step that needs itself has an error of its own.
    needs.set(
      step.id,
      entries(step.needs, [])
        .map(({ name }) => name)
        .filter((name) => name !== step.id),
    );
  }
  return findCycles(needs).map((cycle) => {
    const [first = "", second = first] = cycle;
    const index = indexes.get(first) ?? 0;
    const step = document.steps[index];
    const use = entries(step?.needs, ["steps", index, "needs"]).find(({ name }) => name === second);
    const shown =
      cycle.length > CYCLE_SHOWN_MAX
        ? [
            ...cycle.slice(0, CYCLE_SHOWN_MAX - 1),
            `… ${cycle.length - CYCLE_SHOWN_MAX} more …`,
            cycle.at(-1),
            first,
          ]
        : [...cycle, first];
    const message = `steps need each other in a circle: ${shown.join(" → ")}`;
    const path = use?.path ?? ["steps", index];
    return { path, message, hint: "an arrow reads 'needs'", code: "cycle" };
  });
}

/** A name or a list of names, each with its place. */
function entries(
  value: string | readonly string[] | undefined,
  path: DocumentPath,
): { name: string; path: DocumentPath }[] {
  if (value === undefined) return [];
  if (typeof value === "string") return [{ name: value, path }];
  return value.map((name, index) => ({ name, path: [...path, index] }));
}
