/** Access policies over Cedar: rules are checked when they are applied, and asked one request at a time. */
import {
  type AuthorizationAnswer,
  type DetailedError,
  type EntityJson,
  preparsePolicySet,
  preparseSchema,
  statefulIsAuthorized,
  type ValidationAnswer,
  validate,
} from "@cedar-policy/cedar-wasm/nodejs";
import { InsituError } from "../../shared/errors.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import type { AccessPolicySpec } from "../../shared/model/spec.ts";
import type { PipelineFacts, RulesAnswer, Target } from "./access-decision.ts";
import { ACCESS_SCHEMA, INSTALLATION } from "./access-schema.ts";
import type { Right } from "./rights.ts";

export interface RuleFault {
  rule: string;
  /** In the text of the rule, from 1. */
  line: number;
  message: string;
  hint?: string;
}

/** What would make a rule unusable, or one that can never apply: somebody counts on it. */
export function ruleFaults(spec: Pick<AccessPolicySpec, "rules">): RuleFault[] {
  return Object.entries(spec.rules).flatMap(([rule, text]) => {
    const checked = validate({ schema: ACCESS_SCHEMA, policies: { staticPolicies: { [rule]: text } } });
    const errors = checked.type === "failure" ? checked.errors : worst(checked);
    return errors.map((error) => {
      const start = error.sourceLocations?.[0]?.start ?? 0;
      const line = Buffer.from(text).subarray(0, start).toString().split("\n").length;
      const message = error.message
        .replace(`failed to parse policy with id \`${rule}\` from string: `, "")
        .replace(`for policy \`${rule}\`, `, "");
      return { rule, line, message, ...(error.help === null ? {} : { hint: error.help }) };
    });
  });
}

/** Warnings alone when there is no error: they mostly follow from one. */
function worst({ validationErrors, validationWarnings }: Extract<ValidationAnswer, { type: "success" }>) {
  const found = validationErrors.length > 0 ? validationErrors : validationWarnings;
  return found.map(({ error }) => error);
}

export interface RulesQuestion {
  name: string;
  groups: readonly string[];
  right: Right;
  target: Target;
  approved: boolean;
  pipeline?: PipelineFacts | undefined;
  environment?: { jurisdiction: string; labels: Readonly<Record<string, string>> } | undefined;
}

/** A set of rules that is ready to be asked. */
export class CedarRules {
  readonly version: string;

  /** @throws InsituError `document.invalid` when a rule cannot be used */
  constructor(policies: readonly AccessPolicySpec[]) {
    const rules = Object.fromEntries(
      policies.flatMap((policy) =>
        Object.entries(policy.rules).map(([rule, text]) => [`${policy.name}/${rule}`, text] as const),
      ),
    );
    this.version = digestOf({ schema: ACCESS_SCHEMA, rules });
    const faults = policies.flatMap((policy) =>
      ruleFaults(policy).map((fault) => `${policy.name}/${fault.rule}: ${fault.message}`),
    );
    if (faults.length === 0) {
      // Cedar keeps what is parsed here for the life of the process, by name; the digest makes a second load a no-op.
      const parsed = [
        preparseSchema(this.version, ACCESS_SCHEMA),
        preparsePolicySet(this.version, { staticPolicies: rules }),
      ];
      for (const answer of parsed) if (answer.type === "failure") faults.push(...answer.errors.map(describe));
    }
    if (faults.length > 0) {
      throw new InsituError("document.invalid", `the access policies cannot be used: ${faults.join("; ")}`);
    }
  }

  /** Never throws: whatever goes wrong is an error in the answer. */
  ask(question: RulesQuestion): RulesAnswer {
    let answer: AuthorizationAnswer;
    const { resource, entities } = entitiesOf(question);
    try {
      answer = statefulIsAuthorized({
        principal: { type: "User", id: question.name },
        action: { type: "Action", id: question.right },
        resource,
        context: { approved: question.approved },
        entities,
        preparsedPolicySetId: this.version,
        preparsedSchemaName: this.version,
        validateRequest: true,
      });
    } catch (err) {
      return { permits: [], forbids: [], errors: [String(err)] };
    }
    if (answer.type === "failure") return { permits: [], forbids: [], errors: answer.errors.map(describe) };
    const { decision, diagnostics } = answer.response;
    const reasons = [...diagnostics.reason].sort();
    return {
      permits: decision === "allow" ? reasons : [],
      forbids: decision === "allow" ? [] : reasons,
      errors: diagnostics.errors.map(({ policyId, error }) => `rule ${policyId}: ${describe(error)}`),
    };
  }
}

function entitiesOf({ name, groups, target, pipeline, environment }: RulesQuestion) {
  const user: EntityJson = {
    uid: { type: "User", id: name },
    attrs: { name },
    parents: groups.map((id) => ({ type: "Group", id })),
  };
  const installation: EntityJson = { uid: INSTALLATION, attrs: {}, parents: [] };
  if (target === null) return { resource: INSTALLATION, entities: [user, installation] };
  if (target.kind === "environment") {
    const resource = { type: "Environment", id: target.name };
    const { jurisdiction = "", labels = {} } = environment ?? {};
    const attrs = { name: target.name, jurisdiction };
    const site: EntityJson = { uid: resource, attrs, parents: [INSTALLATION], tags: { ...labels } };
    return { resource, entities: [user, installation, site] };
  }
  const resource = { type: "Pipeline", id: target.name };
  const { team = null, environments = [] } = pipeline ?? {};
  const refs = environments.map((id) => ({ __entity: { type: "Environment", id } }));
  const parents = [INSTALLATION, ...(team === null ? [] : [{ type: "Team", id: team }])];
  const attrs = { name: target.name, environments: refs };
  return { resource, entities: [user, installation, { uid: resource, attrs, parents }] };
}

function describe(error: DetailedError): string {
  return error.help === null ? error.message : `${error.message} (${error.help})`;
}
