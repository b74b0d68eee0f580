/** Under which names others reach this replica, and the certificate that says so. */
import { isIP } from "node:net";
import { hostname } from "node:os";
import type { Pki } from "./access/pki.ts";
import { isLoopback } from "./api/serve.ts";
import type { ServerConfig } from "./config.ts";

/** How an address of loopback that is listened on is written in addresses: `127.0.0.1`, or `[::1]`. */
export function loopbackOf(host: string): string {
  return isIP(host) === 6 ? "[::1]" : "127.0.0.1";
}

/** @param listen the address that is listened on there */
export function advertisedHost(config: ServerConfig, listen = config.gatewayHost): string {
  const [first] = config.publicHosts;
  if (first !== undefined) return first.includes(":") ? `[${first}]` : first;
  return isLoopback(listen) ? loopbackOf(listen) : hostname();
}

/** Where agents are told to go: the one port, if there is one. */
export function advertisedGateway(config: ServerConfig, gateway: { port: number; onePort: number }): string {
  if (config.onePort === undefined) return `${advertisedHost(config)}:${gateway.port}`;
  return `${advertisedHost(config, config.onePort.host)}:${gateway.onePort}`;
}

export function namesOf(config: ServerConfig): { dns: string[]; ips: string[] } {
  const names = [...config.publicHosts, hostname()];
  return { dns: names.filter((name) => isIP(name) === 0), ips: names.filter((name) => isIP(name) !== 0) };
}

export async function serverCertificate(
  pki: Pki,
  config: ServerConfig,
): Promise<{ cert: string; key: string }> {
  const pair = await pki.issueServerCertificate(namesOf(config));
  return { cert: pair.chainPem, key: pair.keyPem };
}
