/** `host:port` as people write it. An IPv6 address stands in brackets: `[2001:db8::7]:7443`. */
import { isIP } from "node:net";

export interface HostAndPort {
  /** A name, or an IP address without brackets. */
  host: string;
  port: number;
}

/** @param address `host:port`; what is no such text gives port NaN, and is refused when it is dialled */
export function hostAndPort(address: string): HostAndPort {
  const at = address.lastIndexOf(":");
  return { host: address.slice(0, at).replace(/^\[|\]$/g, ""), port: Number(address.slice(at + 1)) };
}

/** The opposite of `hostAndPort`. */
export function addressOf({ host, port }: HostAndPort): string {
  return `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
}

/** The TLS server name to send: none for an IP address, which RFC 6066 §3 does not allow. */
export function serverNameOf(host: string): string {
  return isIP(host) === 0 ? host : "";
}

/** Of `nats://host:port`, `tls://[::1]:4222` or `host:port`. */
export function natsAddress(server: string): { address: HostAndPort; scheme: string } {
  const found = /^([a-z]+):\/\/(.*)$/i.exec(server);
  const [scheme, rest] = found ? [found[1]!, found[2]!] : ["nats", server];
  const bare = rest.replace(/\/+$/, "");
  const address = /:\d+$/.test(bare) && isIP(bare) !== 6 ? bare : `${bare}:${NATS_PORT}`;
  return { scheme, address: hostAndPort(address) };
}

const NATS_PORT = 4222;
