/** The rules that hold now, and what they speak of: follows the resources, and remembers answers until the rules change. */
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import { canonicalJson } from "../../shared/model/canonical.ts";
import type { AccessPolicySpec, EnvironmentSpec, PipelineSpec } from "../../shared/model/spec.ts";
import {
  type Decision,
  decide,
  type Judge,
  type PipelineFacts,
  type Question,
  type RulesAnswer,
  targetOf,
} from "./access-decision.ts";
import { CedarRules } from "./cedar-access.ts";
import type { Principal, Right } from "./rights.ts";
import { reach } from "./rights.ts";

/** What is stored, as this replica has read it. */
export interface AccessFacts {
  /** Changes with everything below. */
  readonly revision: number;
  policies(): AccessPolicySpec[];
  /** By name, those that were deleted too: their runs and logs stay, under the rules that held for them. */
  pipelines(): ReadonlyMap<string, PipelineSpec>;
  environments(): EnvironmentSpec[];
  factsOf(pipeline: PipelineSpec): PipelineFacts;
}

/** Questions whose answers are kept; a few hundred bytes each. */
const ANSWERS_MAX = 50_000;
/** Lists of pipelines that are kept: one for each caller and right. */
const REACHES_MAX = 1_000;

type Rules = { ask: CedarRules["ask"] } | null;

export class AccessJudge implements Judge {
  readonly #facts: AccessFacts;
  readonly #log: Pick<Logger, "error">;
  #revision: number | undefined;
  #source = "";
  #rules: Rules = null;
  #environments = new Map<string, EnvironmentSpec>();
  readonly #pipelineFacts = new Map<string, PipelineFacts>();
  readonly #answers = new Map<string, RulesAnswer>();
  readonly #reaches = new Map<string, readonly string[]>();

  constructor(facts: AccessFacts, log: Pick<Logger, "error">) {
    this.#facts = facts;
    this.#log = log;
  }

  decide(question: Question): Decision {
    const rules = this.#current();
    return decide(question, rules && ((approved) => this.#ask(rules, question, approved)));
  }

  anywhere(principal: Principal, right: Right, kind: "pipeline" | "environment"): boolean {
    const open = (name: string | null) =>
      this.decide({ principal, right, target: name === null ? null : { kind, name } }).verdict !== "no";
    if (open(null)) return true;
    if (this.#current() === null) return kind === "pipeline" && reach(principal, right)?.length !== 0;
    // A rule may give it over a pipeline that this very request creates.
    if (right === "resources:apply") return true;
    return this.#names(principal, kind).some(open);
  }

  reach(principal: Principal, right: Right): readonly string[] | null {
    if (this.#current() === null) return reach(principal, right);
    const key = JSON.stringify([principal, right]);
    let names = this.#reaches.get(key);
    if (names === undefined) {
      names = this.#names(principal, "pipeline").filter(
        (name) => this.decide({ principal, right, target: { kind: "pipeline", name } }).verdict === "yes",
      );
      if (this.#reaches.size >= REACHES_MAX) this.#reaches.clear();
      this.#reaches.set(key, names);
    }
    return names;
  }

  /** Those that are there, and those that a role names. */
  #names(principal: Principal, kind: "pipeline" | "environment"): string[] {
    if (kind === "environment") return [...this.#environments.keys()];
    const granted = principal.grants.flatMap(({ pipelines }) => pipelines ?? []);
    return [...new Set([...this.#facts.pipelines().keys(), ...granted])].sort();
  }

  #current(): Rules {
    const { revision } = this.#facts;
    if (revision === this.#revision) return this.#rules;
    const policies = this.#facts.policies();
    const source = canonicalJson(policies);
    if (source !== this.#source || this.#revision === undefined) {
      this.#rules = this.#load(policies);
      this.#source = source;
      this.#answers.clear();
    }
    this.#environments = new Map(this.#facts.environments().map((spec) => [spec.name, spec]));
    this.#pipelineFacts.clear();
    this.#reaches.clear();
    this.#revision = revision;
    return this.#rules;
  }

  #load(policies: AccessPolicySpec[]): Rules {
    if (policies.length === 0) return null;
    try {
      return new CedarRules(policies);
    } catch (thrown) {
      const err = InsituError.from(thrown);
      this.#log.error({ err }, "the access policies cannot be used, so everything is denied");
      return { ask: () => ({ permits: [], forbids: [], errors: [err.message] }) };
    }
  }

  #ask(rules: NonNullable<Rules>, { principal, right, facts, ...asked }: Question, approved: boolean) {
    const target = targetOf(right, asked.target);
    const { name, groups = [] } = principal;
    const pipeline = target?.kind === "pipeline" ? (facts ?? this.#factsOf(target.name)) : undefined;
    const environment = target?.kind === "environment" ? this.#environments.get(target.name) : undefined;
    // By content: an answer outlives an apply that changed nothing of what it rests on.
    const { jurisdiction, labels } = environment ?? {};
    const about = [target?.kind, target?.name, pipeline?.team, pipeline?.environments, jurisdiction, labels];
    const key = JSON.stringify([name, groups, right, approved, about]);
    const known = this.#answers.get(key);
    if (known !== undefined) return known;
    const answer = rules.ask({ name, groups, right, target, approved, pipeline, environment });
    if (this.#answers.size >= ANSWERS_MAX) this.#answers.clear();
    this.#answers.set(key, answer);
    return answer;
  }

  #factsOf(name: string): PipelineFacts | undefined {
    const known = this.#pipelineFacts.get(name);
    if (known !== undefined) return known;
    const spec = this.#facts.pipelines().get(name);
    if (spec === undefined) return undefined;
    const facts = this.#facts.factsOf(spec);
    this.#pipelineFacts.set(name, facts);
    return facts;
  }
}

/** Roles alone: what holds where nobody has written a policy. */
export const ROLES_ALONE: Judge = {
  decide: (question) => decide(question, null),
  anywhere: (principal, right, kind) =>
    decide({ principal, right, target: null }, null).verdict === "yes" ||
    (kind === "pipeline" && reach(principal, right)?.length !== 0),
  reach: (principal, right) => reach(principal, right),
};
