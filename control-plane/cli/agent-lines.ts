/** What several commands say of an agent. */
import { InsituError } from "../../shared/errors.ts";
import type { AgentView } from "../api/schemas.ts";
import { instant, oneLine } from "./text.ts";

export function refuseOddId(id: string): void {
  if (/^[^/]+\/[^/]+$/.test(id)) return;
  throw new InsituError(
    "request.invalid",
    `an agent is named environment/name, like hq/hq; not "${id}". \`insitu agents list\` shows them`,
  );
}

/** Empty when it may take work, or from a server of an earlier release. */
export function cordonState(cordon: AgentView["cordon"]): string {
  if (!cordon) return "";
  const { by, reason, state, left, drain } = cordon;
  const what = {
    "not-heard": `to be ${drain ? "drained" : "cordoned"}`,
    cordoned: "cordoned",
    draining: `draining, ${left} left,`,
    drained: "drained",
  }[state];
  return `${what} by ${oneLine(by)}${reason === "" ? "" : `: ${oneLine(reason)}`}`;
}

/** How far a drain is, for people. Empty for an agent that is not being drained. */
export function drainLine({ cordon, connected, leases }: AgentView): string {
  if (!cordon?.drain) return "";
  const { state, left, drain } = cordon;
  if (state === "drained") return "drained";
  if (state === "not-heard")
    return connected ? "it has not heard of it yet" : "it is away, and hears of it when it is back";
  const steps = [...new Set(leases.map(({ stepId, runId }) => `${stepId} of run ${runId}`))];
  const names =
    steps.length === 0 ? "" : ` (${oneLine(steps.slice(0, 3).join(", "))}${steps.length > 3 ? ", …" : ""})`;
  const until = drain.deadlineMs === null ? "" : `; what runs at ${instant(drain.deadlineMs)} is ended`;
  return `${left} ${left === 1 ? "step" : "steps"} left${names}${until}${connected ? "" : "; it is away"}`;
}
