/** Says of a step that is offered where nobody can take it what it waits for. No I/O. */
import type { RunDetail, StepView } from "../api/schemas.ts";

/** An agent that is connected now. */
export interface AgentAtWork {
  id: string;
  /** Null: it may take work. */
  cordon: { by: string; reason: string } | null;
}

type AgentsOf = (environment: string) => readonly AgentAtWork[];

const AGENTS_SHOWN = 3;

export function explainWaiting(run: RunDetail, agentsOf: AgentsOf): RunDetail {
  if (run.finishedAtMs !== null) return run;
  return {
    ...run,
    steps: run.steps.map((step) => ({ ...step, waiting: step.waiting ?? nobody(step, agentsOf) })),
  };
}

function nobody({ status, environment }: StepView, agentsOf: AgentsOf): StepView["waiting"] {
  if (status !== "offered" || environment === null) return null;
  const agents = agentsOf(environment);
  if (agents.length === 0) return { reason: "no-agent", message: `no agent of ${environment} is connected` };
  if (agents.some(({ cordon }) => cordon === null)) return null;
  return {
    reason: "cordoned",
    message: `all connected agents of ${environment} are cordoned ${cordoners(agents)}`,
  };
}

function cordoners(agents: readonly AgentAtWork[]): string {
  const said = agents.map(({ id, cordon }) => ({ id, why: cordonedBy(cordon!) }));
  const [first] = said;
  if (said.every(({ why }) => why === first!.why)) return first!.why;
  const shown = said.slice(0, AGENTS_SHOWN).map(({ id, why }) => `${id} ${why}`);
  const more = said.length - AGENTS_SHOWN;
  return `(${shown.join("; ")}${more > 0 ? `; and ${more} more` : ""})`;
}

function cordonedBy({ by, reason }: { by: string; reason: string }): string {
  return reason === "" ? `by ${by}` : `by ${by}: ${reason}`;
}
