/** The placement port over Cedar: every question that a step raises at an environment is one authorisation request. */
import {
  type AuthorizationAnswer,
  type DetailedError,
  type EntityJson,
  preparsePolicySet,
  preparseSchema,
  statefulIsAuthorized,
  validate,
} from "@cedar-policy/cedar-wasm/nodejs";
import { InsituError } from "../../shared/errors.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import { expandResidency } from "../../shared/model/jurisdictions.ts";
import type { DatasetSpec, EnvironmentSpec, StepSpec } from "../../shared/model/spec.ts";
import { DEFAULT_POLICIES, type PolicyBundle } from "./default-policies.ts";
import type { EnvironmentVerdict, Placement, PlacementFacts, PlacementReason } from "./placement.ts";
import { VerdictCache, verdictKey } from "./verdict-cache.ts";

type DataAction = "read" | "write";

/**
 * Loads a policy set. Reads nothing but its argument.
 *
 * @throws InsituError `document.invalid` when a rule does not parse or does not fit the schema.
 */
export function createCedarPlacement(bundle: PolicyBundle = DEFAULT_POLICIES): Placement {
  const version = digestOf({ schema: bundle.schema, rules: bundle.rules });
  const policies = { staticPolicies: { ...bundle.rules } };
  const checked = validate({ schema: bundle.schema, policies });
  const faults =
    checked.type === "failure"
      ? checked.errors.map(describe)
      : checked.validationErrors.map((fault) => `rule ${fault.policyId}: ${describe(fault.error)}`);
  // Cedar keeps what is parsed here for the life of the process, by name; the digest makes a second load a no-op.
  const parsed =
    faults.length === 0 ? [preparseSchema(version, bundle.schema), preparsePolicySet(version, policies)] : [];
  for (const answer of parsed) if (answer.type === "failure") faults.push(...answer.errors.map(describe));
  if (faults.length > 0) {
    throw new InsituError("document.invalid", `the placement policies cannot be used: ${faults.join("; ")}`);
  }
  return new CedarPlacement(version);
}

function describe(error: DetailedError): string {
  return error.help === null ? error.message : `${error.message} (${error.help})`;
}

class CedarPlacement implements Placement {
  readonly version: string;
  readonly #cache = new VerdictCache();

  constructor(version: string) {
    this.version = version;
  }

  explain(pipeline: string, step: StepSpec, facts: PlacementFacts): EnvironmentVerdict[] {
    const key = verdictKey(pipeline, step, facts);
    const known = this.#cache.get(key);
    if (known !== undefined) return known;
    const verdicts = [...facts.environments]
      .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
      .map((environment) => this.#explainAt(environment, pipeline, step, facts));
    this.#cache.set(key, verdicts);
    return verdicts;
  }

  #explainAt(
    environment: EnvironmentSpec,
    pipeline: string,
    step: StepSpec,
    facts: PlacementFacts,
  ): EnvironmentVerdict {
    const reasons = [
      ...pinnedElsewhere(step, environment),
      ...this.#place(pipeline, environment),
      ...step.reads.flatMap((name) => this.#touch("read", pipeline, name, environment, facts)),
      ...step.writes.flatMap((name) => this.#touch("write", pipeline, name, environment, facts)),
    ];
    // A dataset that is both read and written is refused for one reason, not for the same one twice.
    const distinct = new Map(reasons.map((reason) => [`${reason.policy}\0${reason.message}`, reason]));
    return { environment: environment.name, allowed: reasons.length === 0, reasons: [...distinct.values()] };
  }

  #place(pipeline: string, environment: EnvironmentSpec): PlacementReason[] {
    const resource = { type: "Environment", id: environment.name };
    const subject = `placing steps of pipeline ${pipeline} in ${environment.name}`;
    return this.#ask(pipeline, "place", resource, {}, [environmentEntity(environment)], (rule) => ({
      policy: rule ?? "default-deny",
      dataset: null,
      message: rule === null ? `no rule permits ${subject}` : `rule ${rule} forbids ${subject}`,
    }));
  }

  #touch(
    action: DataAction,
    pipeline: string,
    name: string,
    environment: EnvironmentSpec,
    facts: PlacementFacts,
  ): PlacementReason[] {
    const dataset = facts.datasets.get(name);
    if (dataset === undefined) {
      return [
        {
          policy: "unknown-dataset",
          dataset: name,
          message: `dataset ${name} is not known (rule unknown-dataset)`,
        },
      ];
    }
    const context = { environment: { __entity: { type: "Environment", id: environment.name } } };
    const entities = [environmentEntity(environment), datasetEntity(dataset)];
    return this.#ask(pipeline, action, { type: "Dataset", id: name }, context, entities, (rule) => ({
      policy: rule ?? "default-deny",
      dataset: name,
      message: refusal(rule, action, dataset, environment),
    }));
  }

  /** The reasons to refuse; none when it is allowed. Whatever goes wrong is a reason. */
  #ask(
    pipeline: string,
    action: DataAction | "place",
    resource: { type: string; id: string },
    context: Record<string, { __entity: { type: string; id: string } }>,
    entities: EntityJson[],
    reasonOf: (rule: string | null) => PlacementReason,
  ): PlacementReason[] {
    const failed = (rule: string, why: string): PlacementReason => ({
      policy: rule,
      dataset: resource.type === "Dataset" ? resource.id : null,
      message: `rule ${rule} could not be evaluated for ${resource.id}, so it is denied: ${why}`,
    });
    let answer: AuthorizationAnswer;
    try {
      const principal = { type: "Step", id: pipeline };
      answer = statefulIsAuthorized({
        principal,
        action: { type: "Action", id: action },
        resource,
        context,
        entities: [{ uid: principal, attrs: { pipeline }, parents: [] }, ...entities],
        preparsedPolicySetId: this.version,
        preparsedSchemaName: this.version,
        validateRequest: true,
      });
    } catch (err) {
      return [failed("policy-error", String(err))];
    }
    if (answer.type === "failure") return [failed("policy-error", answer.errors.map(describe).join("; "))];
    const { decision, diagnostics } = answer.response;
    // An error inside one rule leaves the decision to the others, which may well be "allow".
    const errors = diagnostics.errors.map((error) => failed(error.policyId, describe(error.error)));
    if (decision === "allow") return errors;
    const rules: (string | null)[] = diagnostics.reason.length > 0 ? [...diagnostics.reason].sort() : [null];
    return [...rules.map(reasonOf), ...errors];
  }
}

/** A step's own list narrows what policy allows; it is said in the same words, though no policy is asked. */
function pinnedElsewhere(step: StepSpec, environment: EnvironmentSpec): PlacementReason[] {
  if (step.environments.length === 0 || step.environments.includes(environment.name)) return [];
  const message = `the step is pinned to ${step.environments.join(", ")}, not to ${environment.name} (rule pinned)`;
  return [{ policy: "pinned", dataset: null, message }];
}

function refusal(
  rule: string | null,
  action: DataAction,
  dataset: DatasetSpec,
  environment: EnvironmentSpec,
): string {
  const { name, environments: holders } = dataset;
  if (rule === "holds") {
    return holders.length === 0
      ? `dataset ${name} is held by no environment (rule holds)`
      : `dataset ${name} is held by ${holders.join(", ")}, not by ${environment.name} (rule holds)`;
  }
  if (rule === "residency") {
    const residency = dataset.residency.join(", ");
    // Without the environment's name: several of one jurisdiction share the sentence.
    return `dataset ${name} must stay in ${residency}; ${environment.jurisdiction} is not part of it (rule residency)`;
  }
  const doing = `${action === "read" ? "reading" : "writing"} dataset ${name} in ${environment.name}`;
  return rule === null ? `no rule permits ${doing}` : `rule ${rule} forbids ${doing}`;
}

function environmentEntity({ name, jurisdiction }: EnvironmentSpec): EntityJson {
  return { uid: { type: "Environment", id: name }, attrs: { jurisdiction }, parents: [] };
}

function datasetEntity(dataset: DatasetSpec): EntityJson {
  return {
    uid: { type: "Dataset", id: dataset.name },
    attrs: {
      classification: dataset.classification,
      residency: [...expandResidency(dataset.residency)],
      holders: dataset.environments.map((id) => ({ __entity: { type: "Environment", id } })),
    },
    parents: [],
  };
}
