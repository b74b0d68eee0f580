/** gRPC clients of the gateway, for enrolment and for the uplink. */
import { isIP } from "node:net";
import { checkServerIdentity } from "node:tls";
import { type ChannelOptions, credentials } from "@grpc/grpc-js";
import { AgentGatewayClient } from "../../shared/wire/grpc.ts";

/** Is sent where an IP address would be: reserved (RFC 2606), so that no server takes it for its own. */
const NO_NAME = "gateway.invalid";

/** @param gateway `host:port`; an IPv6 address stands in brackets */
export function hostAndPort(gateway: string): { host: string; port: number } {
  const at = gateway.lastIndexOf(":");
  return { host: gateway.slice(0, at).replace(/^\[|\]$/g, ""), port: Number(gateway.slice(at + 1)) };
}

/**
 * Trusts certificates of `caPem` alone, for exactly the host of `gateway`.
 *
 * The library sends the host as the TLS server name in any case, which RFC 6066 §3 does not allow for IP addresses
 * (Node warns of it, DEP0123). Another name is sent instead, and the certificate is checked against the address all
 * the same.
 */
export function openGateway(
  gateway: string,
  trust: { caPem: Buffer; keyPem?: Buffer; certificatePem?: Buffer },
  options: ChannelOptions = {},
): InstanceType<typeof AgentGatewayClient> {
  const { caPem, keyPem, certificatePem } = trust;
  const { host } = hostAndPort(gateway);
  const bare = isIP(host) !== 0;
  const secured = credentials.createSsl(
    caPem,
    keyPem,
    certificatePem,
    bare ? { checkServerIdentity: (_name, certificate) => checkServerIdentity(host, certificate) } : {},
  );
  const target = bare ? { "grpc.ssl_target_name_override": NO_NAME } : {};
  return new AgentGatewayClient(gateway, secured, { ...target, ...options });
}
