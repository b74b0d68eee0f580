/** From which address a request comes: the other end of its connection, or what a trusted proxy says of that. Pure. */
import { BlockList, isIP } from "node:net";
import { InsituError } from "../../shared/errors.ts";

/** @param networks addresses, or networks such as `10.0.0.0/8`. @throws InsituError `request.invalid` */
export function trustedProxies(networks: readonly string[]): BlockList {
  const list = new BlockList();
  for (const network of networks) {
    const [address = "", bits] = network.split("/");
    const version = isIP(address);
    const width = version === 6 ? 128 : 32;
    const prefix = bits === undefined ? width : Number(bits);
    if (version === 0 || !/^\d*$/.test(bits ?? "") || bits === "" || prefix > width)
      throw new InsituError(
        "request.invalid",
        `"${network}" is neither an address nor a network like 10.0.0.0/8`,
      );
    list.addSubnet(address, prefix, version === 6 ? "ipv6" : "ipv4");
  }
  return list;
}

/**
 * Each proxy adds, at the end, whom it was called by. What stands before the last one that we trust, anybody can have
 * written.
 *
 * @param forwarded the header X-Forwarded-For
 */
export function sourceAddress(remote: string, forwarded: string | undefined, trusted: BlockList): string {
  const hops = (forwarded ?? "").split(",").map((hop) => hop.trim());
  let source = unmapped(remote);
  for (const hop of hops.reverse()) {
    if (!isTrusted(source, trusted) || isIP(hop) === 0) break;
    source = unmapped(hop);
  }
  return source;
}

function isTrusted(address: string, trusted: BlockList): boolean {
  const version = isIP(address);
  return version !== 0 && trusted.check(address, version === 6 ? "ipv6" : "ipv4");
}

/** IPv4 as a socket for both families shows it. */
function unmapped(address: string): string {
  return /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1] ?? address;
}
