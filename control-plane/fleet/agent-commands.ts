/** What people want of agents, for the API. */
import { type RevocationDeps, revokeAgent } from "../access/revocation.ts";
import type { AgentCommands } from "../api/services.ts";
import { type CordonDeps, cordonAgent, uncordonAgent } from "./cordon-agent.ts";

export function agentCommands(deps: RevocationDeps & CordonDeps): AgentCommands {
  return {
    revoke: (request) => revokeAgent(deps, request),
    cordon: (request) => cordonAgent(deps, request),
    uncordon: (request) => uncordonAgent(deps, request),
  };
}
