/** gRPC clients of the gateway, for enrolment and for the uplink. */
import { isIP } from "node:net";
import { checkServerIdentity } from "node:tls";
import { type ChannelOptions, credentials } from "@grpc/grpc-js";
import { AgentGatewayClient } from "../../shared/wire/grpc.ts";
import { addressOf, hostAndPort } from "../network/address.ts";
import type { Route } from "../network/network.ts";

/** Is sent where an IP address would be: reserved (RFC 2606), so that no server takes it for its own. */
const NO_NAME = "gateway.invalid";

/**
 * Trusts certificates of `caPem` alone, for exactly the host of `gateway`.
 *
 * The library sends the host as the TLS server name in any case, which RFC 6066 §3 does not allow for IP addresses
 * (Node warns of it, DEP0123). Another name is sent instead, and the certificate is checked against the address all
 * the same.
 *
 * @param route where to connect, when it is not the gateway itself: the certificate is the gateway's all the same
 */
export function openGateway(
  gateway: string,
  trust: { caPem: Buffer; keyPem?: Buffer; certificatePem?: Buffer },
  options: ChannelOptions = {},
  route?: Route,
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
  const tunnelled = route?.tunnelled === true;
  const target = {
    ...(bare ? { "grpc.ssl_target_name_override": NO_NAME } : {}),
    ...(tunnelled && !bare ? { "grpc.ssl_target_name_override": host } : {}),
    ...(tunnelled ? { "grpc.default_authority": gateway } : {}),
    // The library's own rules for proxies differ from ours, and it reads them from the environment.
    "grpc.enable_http_proxy": 0,
  };
  return new AgentGatewayClient(tunnelled ? addressOf(route.address) : gateway, secured, {
    ...target,
    ...options,
  });
}
