/** An agent's name as its certificate says it. */
import { NAME_PATTERN } from "../../shared/model/names.ts";

export interface AgentName {
  environment: string;
  name: string;
}

/** The agent that a URI names, or undefined when it is another trust domain's or not an agent's. Exact, no normalising. */
export function parseAgentUri(trustDomain: string, uri: string): AgentName | undefined {
  const prefix = `spiffe://${trustDomain}/env/`;
  if (!uri.startsWith(prefix)) return undefined;
  const [environment, word, name, ...rest] = uri.slice(prefix.length).split("/");
  if (environment === undefined || name === undefined || word !== "agent" || rest.length > 0)
    return undefined;
  return NAME_PATTERN.test(environment) && NAME_PATTERN.test(name) ? { environment, name } : undefined;
}

/** `environment/name`, the id that is used everywhere. */
export function agentId(agent: AgentName): string {
  return `${agent.environment}/${agent.name}`;
}

/** Lower-case DNS labels, as the SPIFFE specification allows them. */
export const TRUST_DOMAIN_PATTERN = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$/;
