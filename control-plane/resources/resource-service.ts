/** Applies, plans and removes resources: loads documents, decides, and appends to the resource log. */
import { InsituError } from "../../shared/errors.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import type { DocumentError } from "../../shared/model/document-errors.ts";
import { type LocatedResource, loadDocuments } from "../../shared/model/load-documents.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import type {
  AccessPolicySpec,
  DatasetSpec,
  EnvironmentSpec,
  Kind,
  PipelineSpec,
} from "../../shared/model/spec.ts";
import { type KnownResources, validateSet } from "../../shared/model/validate-set.ts";
import { type Clock, newId } from "../../shared/system.ts";
import type { PipelineFacts } from "../access/access-decision.ts";
import type { AppliedChange, PlanView } from "../api/schemas.ts";
import type {
  ApplyOptions,
  AskedChange,
  DocumentSet,
  ResourceService,
  StoredResource,
} from "../api/services.ts";
import { describeStep, explainRefusal, isPlaceable, refusalLines } from "../placement/choose.ts";
import type { Placement, PlacementFacts } from "../placement/placement.ts";
import { type BoxingAgent, withSandbox } from "../placement/with-sandbox.ts";
import { planApply, signaturesOf, usersOf } from "./plan-apply.ts";
import type { ResourceChange, ResourceJournal } from "./resource-journal.ts";

/** How often an apply is planned again because somebody else was faster. */
const CONFLICTS_MAX = 5;

export interface ResourceServiceOptions {
  journal: ResourceJournal;
  placement: Placement;
  clock: Clock;
  /** What is wrong with the rules of an access policy. */
  ruleFaults(spec: AccessPolicySpec): { rule: string; line: number; message: string; hint?: string }[];
  /** Agents connected now. */
  agentsOf(environment: string): readonly BoxingAgent[];
}

export class Resources implements ResourceService {
  readonly #options: ResourceServiceOptions;
  /** The facts of one state of the journal: a thousand pipelines are asked about one after the other. */
  #factsAt: { seq: number; facts: PlacementFacts } | undefined;

  constructor(options: ResourceServiceOptions) {
    this.#options = options;
  }

  async apply(set: DocumentSet, options: ApplyOptions): Promise<AppliedChange[]> {
    const { journal, clock } = this.#options;
    for (let conflicts = 0; ; conflicts++) {
      const expectedSeq = journal.seq;
      const incoming = this.#load(set);
      const changes = planApply(journal.all(), incoming);
      await options.allow(incoming.map((resource) => this.#asked(resource)));
      this.#refuseUnplaceable(incoming);
      const wanted = changes.filter((change) => change.action !== "unchanged");
      if (options.dryRun || wanted.length === 0) return changes;
      const writes = wanted.map((change) => toWrite(change, incoming));
      for (const { version, spec } of pipelinesOf(incoming)) await journal.keepVersion(version, spec);
      const atMs = clock.wallMs();
      try {
        await journal.append(writes, { by: options.by(), atMs, expectedSeq, id: newId(atMs) });
        return changes;
      } catch (err) {
        if (InsituError.from(err).code !== "conflict" || conflicts >= CONFLICTS_MAX) throw err;
      }
    }
  }

  async plan(set: DocumentSet): Promise<PlanView[]> {
    const incoming = this.#load(set);
    const facts = this.#facts(incoming);
    return pipelinesOf(incoming).map(({ version, spec }) => this.#plan(version, spec, facts));
  }

  async planStored(pipeline: string, version?: string): Promise<PlanView> {
    const stored = this.#options.journal.get("pipeline", pipeline);
    const wanted = version ?? stored?.version;
    if (!stored || !wanted) throw this.#notFound("pipeline", pipeline);
    const spec = await this.version(wanted);
    // Versions are found by digest alone, and this one may be of a pipeline that the caller may not view.
    if (spec?.name !== pipeline)
      throw new InsituError("not-found", `pipeline ${pipeline} has no version ${wanted}`);
    return this.#plan(wanted, spec, this.facts());
  }

  list(kind: Kind): StoredResource[] {
    return this.#options.journal.list(kind);
  }

  get(kind: Kind, name: string): StoredResource | undefined {
    return this.#options.journal.get(kind, name);
  }

  versions(pipeline: string) {
    return this.#options.journal.versionsOf(pipeline);
  }

  async version(digest: string): Promise<PipelineSpec | undefined> {
    try {
      return (await this.#options.journal.load(digest)).spec;
    } catch (err) {
      if (InsituError.from(err).code === "not-found") return undefined;
      throw err;
    }
  }

  async remove(kind: Kind, name: string, by: string): Promise<AppliedChange> {
    const { journal, clock } = this.#options;
    const stored = journal.get(kind, name);
    if (!stored) throw this.#notFound(kind, name);
    const users = usersOf(journal.all(), kind, name);
    if (users.length > 0) {
      throw new InsituError(
        "conflict",
        `${kind} ${name} is used by ${users.join(", ")}; change or delete these first`,
      );
    }
    const expectedSeq = journal.seq;
    const atMs = clock.wallMs();
    await journal.append([{ action: "deleted", kind, name }], { by, atMs, expectedSeq, id: newId(atMs) });
    return { kind, name, action: "deleted", version: stored.version };
  }

  factsOf(spec: PipelineSpec): PipelineFacts {
    return { team: spec.owner ?? null, environments: this.#environmentsOf(spec) };
  }

  /** Where at least one step of it may run, by policy alone. */
  #environmentsOf(spec: PipelineSpec): string[] {
    const { placement } = this.#options;
    const { seq } = this.#options.journal;
    if (this.#factsAt?.seq !== seq) this.#factsAt = { seq, facts: this.facts() };
    const { facts } = this.#factsAt;
    const verdicts = spec.steps.flatMap((step) => placement.explain(spec.name, step, facts));
    return [
      ...new Set(verdicts.filter(({ allowed }) => allowed).map(({ environment }) => environment)),
    ].sort();
  }

  /** What placement rests on now. */
  facts(): PlacementFacts {
    return this.#facts([]);
  }

  #notFound(kind: Kind, name: string): InsituError {
    const known = this.list(kind).map((resource) => resource.name);
    return new InsituError("not-found", unknownName({ kind, name, known }));
  }

  /** @throws document.invalid with every error of every document in `details.errors` */
  #load(set: DocumentSet): LocatedResource[] {
    const loaded = loadDocuments({
      files: set.documents,
      // Own keys only: "constructor" is no attachment.
      readAttachment: (path) => (Object.hasOwn(set.attachments, path) ? set.attachments[path] : undefined),
    });
    const errors = [
      ...loaded.errors,
      ...validateSet(loaded.resources, this.#known(), loaded.broken),
      ...loaded.resources.flatMap((resource) => this.#ruleErrors(resource)),
    ];
    if (errors.length === 0) return loaded.resources;
    const [first] = errors;
    const more = errors.length > 1 ? ` (and ${errors.length - 1} more)` : "";
    const where = first ? `${first.file}:${first.line}:${first.column}: ${first.message}` : "";
    throw new InsituError("document.invalid", `${where}${more}`, { details: { errors } });
  }

  #ruleErrors(resource: LocatedResource): DocumentError[] {
    if (resource.kind !== "access-policy") return [];
    const { file, spec } = resource;
    return this.#options.ruleFaults(spec).map(({ rule, line, message, hint }) => ({
      file,
      ...resource.locate(["rules", rule]),
      path: `rules.${rule}`,
      message: `rule ${rule} of access policy ${spec.name}, in its line ${line}: ${message}`,
      ...(hint === undefined ? {} : { hint }),
      code: "rule.invalid",
    }));
  }

  #asked({ kind, spec }: LocatedResource): AskedChange {
    const { journal } = this.#options;
    // The name of a pipeline that was deleted still has its runs and their logs.
    const gone = kind === "pipeline" ? journal.pipelinesEver().get(spec.name) : undefined;
    const before = journal.get(kind, spec.name)?.spec ?? gone;
    return { kind, name: spec.name, before, after: spec };
  }

  #known(): KnownResources {
    const { journal } = this.#options;
    return {
      has: (kind, name) => journal.get(kind, name) !== undefined,
      names: (kind) => journal.list(kind).map((resource) => resource.name),
    };
  }

  /** A pipeline that cannot be placed legally is refused when it is saved. */
  #refuseUnplaceable(incoming: readonly LocatedResource[]): void {
    const facts = this.#facts(incoming);
    const { placement } = this.#options;
    const refusals = incoming.flatMap((resource) => {
      if (resource.kind !== "pipeline") return [];
      return resource.spec.steps.flatMap((step, index) => {
        const verdicts = placement.explain(resource.spec.name, step, facts);
        if (isPlaceable(verdicts)) return [];
        const { line, column } = resource.locate(["steps", index]);
        const path = `steps[${index}]`;
        const message = describeStep(step);
        const hint = refusalLines(step, verdicts).join("\n");
        const whole = explainRefusal(step, verdicts);
        return [{ whole, error: { file: resource.file, line, column, path, message, hint } }];
      });
    });
    const [first] = refusals;
    if (!first) return;
    const more = refusals.length > 1 ? ` (and ${refusals.length - 1} more)` : "";
    const errors = refusals.map(({ error }) => error);
    throw new InsituError("placement.denied", `${first.whole}${more}`, { details: { errors } });
  }

  #facts(incoming: readonly LocatedResource[]): PlacementFacts {
    const { journal } = this.#options;
    const environments = new Map<string, EnvironmentSpec>();
    const datasets = new Map<string, DatasetSpec>();
    for (const { spec } of journal.list("environment")) environments.set(spec.name, spec as EnvironmentSpec);
    for (const { spec } of journal.list("dataset")) datasets.set(spec.name, spec as DatasetSpec);
    for (const resource of incoming) {
      if (resource.kind === "environment") environments.set(resource.spec.name, resource.spec);
      if (resource.kind === "dataset") datasets.set(resource.spec.name, resource.spec);
    }
    return { environments: [...environments.values()], datasets };
  }

  #plan(version: string, spec: PipelineSpec, facts: PlacementFacts): PlanView {
    const { placement, agentsOf } = this.#options;
    const steps = spec.steps.map((step) => ({
      step: step.id,
      reads: [...step.reads],
      writes: [...step.writes],
      environments: withSandbox(placement.explain(spec.name, step, facts), step, {
        classificationOf: (dataset) => facts.datasets.get(dataset)?.classification ?? "secret",
        agentsOf,
      }).map((verdict) => ({
        environment: verdict.environment,
        allowed: verdict.allowed,
        agents: agentsOf(verdict.environment).length,
        reasons: verdict.reasons.map((reason) => ({ ...reason })),
      })),
    }));
    const placeable = steps.every((step) => step.environments.some((environment) => environment.allowed));
    return { pipeline: spec.name, version, policyVersion: placement.version, placeable, steps };
  }
}

function pipelinesOf(resources: readonly LocatedResource[]): { version: string; spec: PipelineSpec }[] {
  return resources.flatMap((resource) =>
    resource.kind === "pipeline" ? [{ version: digestOf(resource.spec), spec: resource.spec }] : [],
  );
}

function toWrite(change: AppliedChange, incoming: readonly LocatedResource[]): ResourceChange {
  const resource = incoming.find((item) => item.kind === change.kind && item.spec.name === change.name)!;
  const { name } = change;
  if (resource.kind === "pipeline") {
    const signatures = signaturesOf(resource);
    const signed = signatures.length > 0 ? { signatures } : {};
    return { action: "set", kind: "pipeline", name, version: change.version!, ...signed };
  }
  if (resource.kind === "dataset") return { action: "set", kind: "dataset", name, spec: resource.spec };
  if (resource.kind === "environment")
    return { action: "set", kind: "environment", name, spec: resource.spec };
  if (resource.kind === "access-policy")
    return { action: "set", kind: "access-policy", name, spec: resource.spec };
  return { action: "set", kind: "pool", name, spec: resource.spec };
}
