/** How an agent is put out for good. */
import type { Logger } from "pino";
import type { AgentRegistry } from "../fleet/agent-registry.ts";
import type { JoinTokenService } from "./join-tokens.ts";
import { agentId } from "./spiffe.ts";

export interface RevocationDeps {
  registry: AgentRegistry;
  tokens: JoinTokenService;
  log: Logger;
}

/**
 * Durable when it resolves. Every replica that follows the registry then cuts what the agent has open, at the gateway
 * and on NATS.
 *
 * Its join tokens end first: a crash in between leaves an agent that is revoked by the next try, and not a token with
 * which a revoked host comes in under another name. Safe twice.
 *
 * @throws InsituError `not-found`, `store.unavailable` (try again).
 */
export async function revokeAgent(
  { registry, tokens, log }: RevocationDeps,
  request: { environment: string; name: string; by: string; reason: string },
): Promise<void> {
  const { environment, name, by, reason } = request;
  const agent = { environment, name };
  const endedTokens = await tokens.endThoseOf(agent, by);
  const record = await registry.revoke(agentId(agent), { by, reason });
  if (record.removedBy === by && record.removedReason === reason)
    log.warn({ agentId: agentId(agent), by, reason, endedTokens }, "agent revoked");
}
