/**
 * The part of a site's policy that is written in Cedar. The evaluator is WebAssembly and takes memory that a process
 * does not give back, so an agent has it in another process: see `cedar-process.ts`.
 */
import {
  type AuthorizationAnswer,
  type DetailedError,
  isAuthorized,
  policySetTextToParts,
  policyToJson,
  type StaticPolicySet,
  validate,
} from "@cedar-policy/cedar-wasm/nodejs";
import { InsituError } from "../../shared/errors.ts";
import type { CedarAnswer, CedarQuestion } from "./cedar-question.ts";

const SCHEMA = `
entity Pipeline;
entity Site;

action run appliesTo {
  principal: [Pipeline],
  resource: [Site],
  context: {
    // Of the pipeline and of the datasets, as the control plane knows them.
    "owner"?: String,
    "datasetOwners": Set<String>,
    "executor": String,
    // Digest of the container image; empty when there is none.
    "image": String,
    // The arguments of the command with a space between them; empty when there is none.
    "command": String,
    "program": String,
    "step": String,
    "reads": Set<String>,
    "writes": Set<String>,
    // What the control plane calls the datasets.
    "classifications": Set<String>,
    "env": Set<String>,
    "files": Set<String>,
    "outputs": Set<String>,
    "artifacts": Set<String>,
    // Where it wants to be let out to, host:port each.
    "network": Set<String>,
    "timeoutMs": Long,
  },
};
`;

/** It is shown with the run. */
const NAME_PATTERN = /^[A-Za-z][\w -]{0,62}$/;

export interface ParsedCedar {
  answer(question: CedarQuestion): CedarAnswer;
}

/**
 * Cedar's own rule holds: what no policy permits is refused, and so is what one forbids.
 *
 * @throws request.invalid when a policy does not parse or asks for what there is not
 */
export function parseCedar(file: string, text: string): ParsedCedar {
  const parts = policySetTextToParts(text);
  if (parts.type === "failure") throw invalid(file, text, parts.errors);
  if (parts.policy_templates.length > 0)
    throw new InsituError("request.invalid", `${file}: a template has no meaning here; write policies`);
  if (parts.policies.length === 0)
    throw new InsituError(
      "request.invalid",
      `${file}: there is no policy in it, so nothing would be allowed`,
    );
  const named = new Map<string, string>();
  for (const [index, policy] of parts.policies.entries()) {
    const name = nameOf(policy) ?? `policy ${index + 1}`;
    if (!NAME_PATTERN.test(name))
      throw new InsituError(
        "request.invalid",
        `${file}: @id("${name}"): a letter, then letters, digits, spaces, '_' or '-'`,
      );
    if (named.has(name))
      throw new InsituError("request.invalid", `${file}: two policies have @id("${name}")`);
    named.set(name, policy);
  }
  const staticPolicies = Object.fromEntries(named);
  const checked = validate({ schema: SCHEMA, policies: { staticPolicies } });
  if (checked.type === "failure") throw invalid(file, text, checked.errors);
  if (checked.validationErrors.length > 0) {
    const faults = checked.validationErrors.map(({ policyId, error }) => `${policyId}: ${describe(error)}`);
    throw new InsituError("request.invalid", `${file}: ${faults.join("; ")}`);
  }
  return { answer: (question) => answerTo(staticPolicies, question) };
}

function answerTo(staticPolicies: StaticPolicySet, { pipeline, context }: CedarQuestion): CedarAnswer {
  const refused = (message: string): CedarAnswer => ({ allowed: false, message });
  const { owner, ...others } = context;
  let answer: AuthorizationAnswer;
  try {
    answer = isAuthorized({
      principal: { type: "Pipeline", id: pipeline },
      action: { type: "Action", id: "run" },
      resource: { type: "Site", id: "site" },
      context: owner === undefined ? others : { ...others, owner },
      entities: [],
      policies: { staticPolicies },
      schema: SCHEMA,
      validateRequest: true,
    });
  } catch {
    return refused("its Cedar policies could not be evaluated");
  }
  if (answer.type === "failure") return refused("its Cedar policies could not be evaluated");
  const { decision, diagnostics } = answer.response;
  // An error inside one policy leaves the decision to the others, which may well be "allow".
  const [error] = diagnostics.errors;
  if (error !== undefined) return refused(`its Cedar policy ${error.policyId} could not be evaluated`);
  if (decision === "allow") return { allowed: true, message: "allowed" };
  const [first] = [...diagnostics.reason].sort();
  return refused(first === undefined ? "no Cedar policy permits it" : `its Cedar policy ${first} forbids it`);
}

/** Of the annotation `@id("…")`. */
function nameOf(policy: string): string | undefined {
  const answer = policyToJson(policy);
  return answer.type === "success" ? (answer.json.annotations?.id ?? undefined) : undefined;
}

function invalid(file: string, text: string, errors: readonly DetailedError[]): InsituError {
  const faults = errors.map((error) => {
    const [place] = error.sourceLocations ?? [];
    const line = place === undefined ? "" : `${lineOf(text, place.start)}: `;
    return `${file}:${line}${describe(error)}`;
  });
  return new InsituError("request.invalid", faults.join("; "));
}

/** Cedar counts bytes. */
function lineOf(text: string, offset: number): number {
  return Buffer.from(text, "utf8").subarray(0, offset).toString("utf8").split("\n").length;
}

function describe({ message, help }: DetailedError): string {
  return help === null || help === undefined ? message : `${message} (${help})`;
}
