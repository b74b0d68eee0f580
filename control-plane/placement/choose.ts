/** Picks one environment among those that policy allows, and says in one sentence why there is none. */
import type { StepSpec } from "../../shared/model/spec.ts";
import type { EnvironmentVerdict } from "./placement.ts";

export interface EnvironmentLoad {
  /** Agents that are connected now and not cordoned. */
  agents: number;
  /** Sum of the slots that those agents called free in their last heartbeat. */
  freeSlots: number;
  /** Offers for the environment that no agent has taken yet. */
  outstandingOffers: number;
}

const NO_LOAD: EnvironmentLoad = { agents: 0, freeSlots: 0, outstandingOffers: 0 };

/**
 * The environment that a step is offered in; null when policy allows none.
 *
 * Free slots first (beyond those that outstanding offers will take), then any connected agent, then the rest:
 * an offer to an environment without agents waits there. Among equals the fewest outstanding offers, then the name.
 */
export function chooseEnvironment(
  verdicts: readonly EnvironmentVerdict[],
  loads: ReadonlyMap<string, EnvironmentLoad>,
): string | null {
  let best: string | null = null;
  let bestLoad = NO_LOAD;
  for (const { environment, allowed } of verdicts) {
    if (!allowed) continue;
    const load = loads.get(environment) ?? NO_LOAD;
    const order =
      best === null
        ? -1
        : rank(load) - rank(bestLoad) ||
          load.outstandingOffers - bestLoad.outstandingOffers ||
          (environment < best ? -1 : 1);
    if (order < 0) {
      best = environment;
      bestLoad = load;
    }
  }
  return best;
}

function rank(load: EnvironmentLoad): number {
  if (load.freeSlots > load.outstandingOffers) return 0;
  return load.agents > 0 ? 1 : 2;
}

/** True when policy lets the step run somewhere. */
export function isPlaceable(verdicts: readonly EnvironmentVerdict[]): boolean {
  return verdicts.some((verdict) => verdict.allowed);
}

/**
 * Why a step cannot be placed, for people: the step, its data, the rules, and the environments that would do
 * if the step were not pinned elsewhere.
 */
export function explainRefusal(
  step: Pick<StepSpec, "id" | "reads" | "writes" | "environments">,
  verdicts: readonly EnvironmentVerdict[],
): string {
  const pinned = step.environments.length > 0;
  const opening = describeStep(step);
  if (verdicts.length === 0) return `${opening}; ${closing(verdicts)}`;

  const known = new Set(verdicts.map((verdict) => verdict.environment));
  const parts = step.environments
    .filter((name) => !known.has(name))
    .map((name) => `environment ${name} does not exist`);
  for (const verdict of verdicts) {
    if (pinned && !step.environments.includes(verdict.environment)) continue;
    const reasons = verdict.reasons.filter((reason) => reason.policy !== "pinned");
    if (reasons.length === 0) continue;
    const rules = [...new Set(reasons.map((reason) => reason.policy))];
    const messages = [...new Set(reasons.map((reason) => reason.message))];
    const subject = rules.length === 1 ? `rule ${rules[0]} forbids` : `rules ${rules.join(", ")} forbid`;
    parts.push(`${subject} it in ${verdict.environment} (${messages.map(withoutRule).join("; ")})`);
  }
  parts.push(closing(verdicts));
  return `${opening}; ${parts.join("; ")}`;
}

/**
 * The same as a list, for a terminal: one line for each reason, shared by the environments that it is true of.
 * The step and its data are not in it.
 */
export function refusalLines(
  step: Pick<StepSpec, "environments">,
  verdicts: readonly EnvironmentVerdict[],
): string[] {
  const known = new Set(verdicts.map((verdict) => verdict.environment));
  const missing = step.environments.filter((name) => !known.has(name));
  const relevant = verdicts.map((verdict) => ({
    ...verdict,
    reasons: verdict.reasons.filter((reason) => reason.policy !== "pinned"),
  }));
  const asked =
    step.environments.length === 0
      ? relevant
      : relevant.filter(({ environment }) => step.environments.includes(environment));
  return [
    ...missing.map((name) => `environment ${name} does not exist`),
    ...sharedReasons(asked).map(({ environments, message }) => `${environments.join(", ")}: ${message}`),
    closing(verdicts),
  ];
}

/** Environments that are refused for the same reason share it; its message says "these" for their names then. */
export function sharedReasons(
  verdicts: readonly { environment: string; allowed: boolean; reasons: readonly { message: string }[] }[],
): { environments: string[]; message: string }[] {
  const byReason = new Map<string, { environments: string[]; message: string }>();
  for (const { environment, allowed, reasons } of verdicts) {
    if (allowed) continue;
    for (const { message } of reasons) {
      const shared = message.replace(wholeName(environment), "these");
      const same = byReason.get(shared);
      if (same) same.environments.push(environment);
      else byReason.set(shared, { environments: [environment], message });
    }
  }
  return [...byReason].map(([shared, { environments, message }]) => ({
    environments,
    message: environments.length > 1 ? shared : message,
  }));
}

/** The name where it stands for itself, not as a part of a longer one. */
function wholeName(name: string): RegExp {
  return new RegExp(`(?<![a-z0-9-])${name}(?![a-z0-9-])`, "g");
}

/** Where else the step could run, if it were not pinned. */
function closing(verdicts: readonly EnvironmentVerdict[]): string {
  if (verdicts.length === 0) return "there is no environment at all";
  const elsewhere = verdicts
    .filter((verdict) => verdict.reasons.every((reason) => reason.policy === "pinned"))
    .map((verdict) => verdict.environment);
  return elsewhere.length > 0
    ? `it could run in: ${elsewhere.join(", ")}`
    : "no environment may run it as it is written";
}

/** What a step asks for: its id, its data, where it is pinned. `explainRefusal` begins with it. */
export function describeStep(step: Pick<StepSpec, "id" | "reads" | "writes" | "environments">): string {
  return `step ${step.id} ${describeWishes(step)}`;
}

function describeWishes(step: Pick<StepSpec, "reads" | "writes" | "environments">): string {
  const wishes = [
    step.reads.length > 0 ? `reads ${step.reads.join(", ")}` : "",
    step.writes.length > 0 ? `writes ${step.writes.join(", ")}` : "",
    step.environments.length > 0 ? `is pinned to ${step.environments.join(", ")}` : "",
  ].filter((wish) => wish !== "");
  return wishes.length === 0 ? "cannot be placed" : wishes.join(" and ");
}

/** The rule stands in front already. */
function withoutRule(message: string): string {
  return message.replace(/ \(rule [^()]+\)$/, "");
}
