/** How an agent is told to take no new work, and that it may again. */
import type { Logger } from "pino";
import type { Clock } from "../../shared/system.ts";
import { agentId } from "../access/spiffe.ts";
import type { AgentCommands } from "../api/services.ts";
import type { AgentRegistry } from "./agent-registry.ts";

export interface CordonDeps {
  registry: AgentRegistry;
  clock: Clock;
  log: Logger;
}

/**
 * Durable when it resolves. The replica that the agent is connected to tells it at once; one that is cut off hears of it
 * with its next welcome.
 *
 * @throws InsituError `not-found`, `conflict` (revoked), `store.unavailable` (try again).
 */
export async function cordonAgent(
  { registry, clock, log }: CordonDeps,
  { environment, name, by, reason, drain }: Parameters<AgentCommands["cordon"]>[0],
): Promise<void> {
  const id = agentId({ environment, name });
  const deadlineMs = drain?.withinMs === undefined ? null : clock.wallMs() + drain.withinMs;
  const stored = drain === null ? null : { deadlineMs, once: drain.once };
  await registry.cordon(id, { by, reason, drain: stored });
  log.warn({ agentId: id, by, reason, drain: stored }, "agent cordoned");
}

/** Durable when it resolves. @throws like `cordonAgent` */
export async function uncordonAgent(
  { registry, log }: CordonDeps,
  { environment, name, by }: Parameters<AgentCommands["uncordon"]>[0],
): Promise<void> {
  const id = agentId({ environment, name });
  await registry.cordon(id, null);
  log.warn({ agentId: id, by }, "agent not cordoned any more");
}
