/** Whether an environment has an agent that would start the step: one that boxes it, or takes it without. Pure. */
import { CLASSIFICATIONS, type Classification, type StepSpec } from "../../shared/model/spec.ts";
import type { EnvironmentVerdict } from "./placement.ts";

/** What is known of one connected agent. */
export interface BoxingAgent {
  id: string;
  /** Null: it does not say, as those of an earlier release. */
  sandbox: {
    boxes: boolean;
    summary: string;
    unboxedUpTo: string;
    letsOut?: boolean | undefined;
    runsContainers?: boolean | undefined;
  } | null;
}

export interface SandboxWorld {
  classificationOf(dataset: string): Classification;
  /** Those that are connected now. */
  agentsOf(environment: string): readonly BoxingAgent[];
}

const AGENTS_SHOWN = 3;

/**
 * The verdicts, with those turned to a refusal where every connected agent would refuse the step for want of a box.
 * Where no agent is connected nothing is known, and the step may wait for one: the agent has the last word.
 */
export function withSandbox(
  verdicts: readonly EnvironmentVerdict[],
  step: Pick<StepSpec, "executor" | "reads" | "sandbox" | "network">,
  { classificationOf, agentsOf }: SandboxWorld,
): EnvironmentVerdict[] {
  const highest = Math.max(-1, ...step.reads.map((name) => CLASSIFICATIONS.indexOf(classificationOf(name))));
  const refuses = ({ sandbox }: BoxingAgent): boolean => {
    if (step.executor.kind === "noop") return false;
    // One of an earlier release would not even understand the offer.
    if (step.network && !sandbox?.letsOut) return true;
    if (step.executor.kind === "container" && !sandbox?.runsContainers) return true;
    if (sandbox?.boxes) return false;
    if (step.sandbox === "required") return true;
    // A class that is not known here lies below all: to let less run is the safe mistake.
    return sandbox !== null && highest > CLASSIFICATIONS.indexOf(sandbox.unboxedUpTo as Classification);
  };
  return verdicts.map((verdict) => {
    if (!verdict.allowed) return verdict;
    const { environment } = verdict;
    const agents = agentsOf(environment);
    if (agents.length === 0 || !agents.every(refuses)) return verdict;
    const shown = agents
      .slice(0, AGENTS_SHOWN)
      .map(({ id, sandbox }) => `${id}: ${sandbox?.summary ?? "does not say"}`);
    const more = agents.length > AGENTS_SHOWN ? `; and ${agents.length - AGENTS_SHOWN} more` : "";
    const message = `no agent in ${environment} ${whyNot(step, highest, agents)} (${shown.join("; ")}${more})`;
    return {
      environment,
      allowed: false,
      reasons: [...verdict.reasons, { policy: "sandbox", dataset: null, message }],
    };
  });
}

function whyNot(
  { executor, network, sandbox }: Pick<StepSpec, "executor" | "network" | "sandbox">,
  highest: number,
  agents: readonly BoxingAgent[],
): string {
  if (executor.kind === "container" && !agents.some((agent) => agent.sandbox?.runsContainers))
    return "runs container images";
  if (network) return `lets steps out, and the step asks for ${network.allow.join(", ")}`;
  if (sandbox === "required") return "boxes steps, and the step requires a sandbox";
  const level = CLASSIFICATIONS[highest];
  return `boxes steps, and the step reads data classed ${level}, which they take in a sandbox alone`;
}
