/** What to ask a network team for, in their words: source, destination, port, protocol, exemption. */
import { addressOf, type HostAndPort } from "../network/address.ts";

/** As a firewall's rule names the two ends. */
export interface Ends {
  /** Name of this host. */
  host: string;
  /** The address that it sends from; empty when it is not known. */
  source: string;
  target: HostAndPort;
  /** Of the target's name; empty when it is not known, or is an address. */
  addresses: readonly string[];
}

const GATEWAY_PROTOCOL = "TLS 1.2 or 1.3 with client certificates, HTTP/2 (gRPC), long-lived connections";
const NATS_PROTOCOL = "TLS that begins after a line in the clear (NATS), long-lived connections";
const ONE_PORT_PROTOCOL =
  "TLS 1.3 with client certificates, ALPN h2 (gRPC) and insitu-nats/1, long-lived connections";
const NO_INCOMING = "No incoming connection is needed.";

function from({ host, source }: Ends): string {
  return source === "" ? host : `${source} (${host})`;
}

function to({ target, addresses }: Ends): string {
  const known = addresses.filter((address) => address !== target.host);
  return known.length === 0 ? target.host : `${target.host} (${known.join(", ")})`;
}

function rule(ends: Ends, protocol: string): string {
  return `Source: ${from(ends)}\nDestination: ${to(ends)}\nPort: ${ends.target.port}/tcp, outgoing\nProtocol: ${protocol}`;
}

export function nameRequest(ends: Ends): string {
  return `Please let ${from(ends)} resolve the name ${ends.target.host} (an A or AAAA record in the DNS that this host asks).`;
}

export function firewallRequest(ends: Ends): string {
  return `Please allow this connection through the firewall, without TLS inspection:\n${rule(ends, GATEWAY_PROTOCOL)}\n${NO_INCOMING}`;
}

export function natsRequest(ends: Ends): string {
  return `Please allow this connection through the firewall, without TLS inspection:\n${rule(ends, NATS_PROTOCOL)}\n${NO_INCOMING}`;
}

/** Where the gateway's port takes NATS along: an inspecting middlebox passes the one and breaks the other. */
export function onePortRequest(ends: Ends): string {
  return `Please allow this connection through the firewall, both protocols of it, without TLS inspection:\n${rule(ends, ONE_PORT_PROTOCOL)}\n${NO_INCOMING}`;
}

export function proxyRequest(ends: Ends, proxy: HostAndPort): string {
  return `Please allow CONNECT on the proxy ${addressOf(proxy)}, without TLS inspection:\n${rule(ends, GATEWAY_PROTOCOL)}`;
}

export function proxyReachRequest(ends: Ends): string {
  return `Please allow this host to reach the proxy:\n${rule(ends, "HTTP (CONNECT)")}`;
}

export function accountRequest(ends: Ends, proxy: HostAndPort, username: string | undefined): string {
  const account =
    username === undefined ? "Please give us an account" : `Please check the account "${username}"`;
  return `${account} on the proxy ${addressOf(proxy)}, for Basic authentication from ${from(ends)}.`;
}

export function inspectionRequest(ends: Ends, issuer: string): string {
  return `Please exempt this connection from TLS inspection. It uses client certificates, which inspection breaks.\n${rule(ends, GATEWAY_PROTOCOL)}\nThe certificate that arrives here was issued by: ${issuer}`;
}

export function http2Request(ends: Ends): string {
  return `Please pass this connection unchanged: TLS completes, and HTTP/2 inside it does not get through.\n${rule(ends, GATEWAY_PROTOCOL)}`;
}

export function timeRequest(ends: Ends): string {
  return `Please let ${from(ends)} reach a time server (NTP, 123/udp, outgoing): its clock is wrong.`;
}
