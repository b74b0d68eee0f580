/**
 * Who may do what, roles and access policies together. Pure: the rules are asked through a port.
 *
 * A role gives what its table says. A rule can give more, and what a rule forbids no role gives back. A rule that
 * cannot be evaluated denies.
 */
import { InsituError } from "../../shared/errors.ts";
import { ENVIRONMENT_RIGHTS, may, PIPELINE_RIGHTS, type Principal, type Right, rolesOf } from "./rights.ts";

/** What a right is wanted over; null: the installation as a whole. */
export type Target = { kind: "pipeline" | "environment"; name: string } | null;

/** What rules can ask of a pipeline besides its name. */
export interface PipelineFacts {
  /** Its `owner`; null for none. */
  team: string | null;
  /** Where at least one of its steps may run, by the policies of placement. */
  environments: readonly string[];
  /** What an approval is bound to, where the request does not name a version itself. No rule sees it. */
  version?: string | undefined;
}

export interface Question {
  principal: Principal;
  right: Right;
  target: Target;
  /** Of a pipeline that is not stored so: of an older version, or as it is about to be applied. */
  facts?: PipelineFacts | undefined;
}

/** What the rules say, each as `policy/rule`. */
export interface RulesAnswer {
  permits: readonly string[];
  forbids: readonly string[];
  /** Rules that could not be evaluated, with why. */
  errors: readonly string[];
}

export interface Decision {
  /** `with-approval`: once a second person has approved the same request. */
  verdict: "yes" | "no" | "with-approval";
  /** What decided, as the end of a sentence. */
  because: string;
}

/** The port that the API asks. Answers at once: everything that it needs is in memory. */
export interface Judge {
  decide(question: Question): Decision;
  /** Whether there is anything of this kind, the installation included, over which the answer is not "no". */
  anywhere(principal: Principal, right: Right, kind: "pipeline" | "environment"): boolean;
  /** The pipelines over which the answer is "yes"; null: all there are or will be. */
  reach(principal: Principal, right: Right): readonly string[] | null;
}

/** Kept by whoever can read the server's own directory, so that no rule can take the making of rules from everybody. */
const NEVER_TAKEN: readonly Right[] = ["access:edit", "resources:view"];

/** What the right can be had over: nobody revokes an agent of a pipeline. */
export function targetOf(right: Right, target: Target): Target {
  const rights = target?.kind === "pipeline" ? PIPELINE_RIGHTS : ENVIRONMENT_RIGHTS;
  return rights.includes(right) ? target : null;
}

/** @param ask what the rules say when a second person has approved, or has not; null: there are no rules */
export function decide(
  { principal, right, target }: Question,
  ask: ((approved: boolean) => RulesAnswer) | null,
): Decision {
  if (principal.local === true && NEVER_TAKEN.includes(right))
    return { verdict: "yes", because: "it is the server's own token, from which no rule takes this" };
  const over = targetOf(right, target);
  const role = may(principal, right, over?.kind === "pipeline" ? over.name : null);
  if (ask === null) return { verdict: role ? "yes" : "no", because: roleSays(principal, role) };
  const plain = weigh(principal, role, ask(false));
  if (plain.allowed) return { verdict: "yes", because: plain.because };
  const lifted = weigh(principal, role, ask(true));
  if (plain.broken || !lifted.allowed)
    return { verdict: "no", because: (plain.broken ? plain : lifted).because };
  return { verdict: "with-approval", because: `${plain.because} to one person alone` };
}

function weigh(principal: Principal, role: boolean, answer: RulesAnswer) {
  const { permits, forbids, errors } = answer;
  const broken = errors.length > 0;
  if (broken) return { allowed: false, broken, because: `no rule counts: ${errors.join("; ")}` };
  if (forbids.length > 0) return { allowed: false, broken, because: `${rules(forbids)} it` };
  if (role) return { allowed: true, broken, because: roleSays(principal, true) };
  if (permits.length > 0) return { allowed: true, broken, because: `${rules(permits, "permit")} it` };
  return { allowed: false, broken, because: roleSays(principal, false) };
}

function rules(names: readonly string[], verb: "permit" | "forbid" = "forbid"): string {
  return names.length === 1 ? `rule ${names[0]} ${verb}s` : `rules ${names.join(", ")} ${verb}`;
}

function roleSays(principal: Principal, allowed: boolean): string {
  const held = rolesOf(principal);
  return allowed ? `the role ${held} has it` : `neither the role (${held}) nor any rule gives it`;
}

/** Says which right is missing, and nothing about what it was wanted for that the caller did not say itself. */
export function denied({ principal, right, target }: Question, because?: string): InsituError {
  const over = target === null ? "over everything" : `on ${target.kind} ${target.name}`;
  return new InsituError(
    "auth.denied",
    `this needs the right ${right} ${over}; ${principal.name} is ${rolesOf(principal)}` +
      `${because === undefined ? "" : `, and ${because}`}. Who has tokens:manage can give you a token with it`,
    {
      details: { right, pipeline: target?.kind === "pipeline" ? target.name : null, caller: principal.name },
    },
  );
}
