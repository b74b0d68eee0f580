/** `spiffe://<trust domain>/env/<environment>/agent/<name>`: an agent's name in its certificate and in what it signs. */
export function agentUri(trustDomain: string, agent: { environment: string; name: string }): string {
  return `spiffe://${trustDomain}/env/${agent.environment}/agent/${agent.name}`;
}
