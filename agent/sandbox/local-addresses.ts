/** Addresses that a name must not lead a step to: of the host itself, and those that hosts answer with their secrets. */
import { BlockList, isIP } from "node:net";
import { networkInterfaces } from "node:os";

/** `own`: of the host's interfaces. */
export function localAddresses(own: readonly string[]): BlockList {
  const list = new BlockList();
  const subnets = [
    ["0.0.0.0", 8],
    ["127.0.0.0", 8],
    // Where clouds give a machine's credentials to whoever asks: link-local, Alibaba's and Oracle's.
    ["169.254.0.0", 16],
    ["100.100.100.200", 32],
    ["192.0.0.0", 24],
    // To many at once, and what is reserved.
    ["224.0.0.0", 3],
  ] as const;
  for (const [net, prefix] of subnets) list.addSubnet(net, prefix, "ipv4");
  for (const [net, prefix] of [
    ["::", 127],
    ["fe80::", 10],
    ["ff00::", 8],
    // The same of Amazon's machines, in the range for private networks.
    ["fd00:ec2::", 32],
  ] as const)
    list.addSubnet(net, prefix, "ipv6");
  for (const address of own) list.addAddress(address, isIP(address) === 6 ? "ipv6" : "ipv4");
  return list;
}

/** Asked anew for each connection: interfaces come and go. */
export function ownAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((entries) =>
    (entries ?? []).map(({ address }) => address.replace(/%.*$/, "")),
  );
}

export function isLocal(address: string, own: readonly string[]): boolean {
  const bare = address.replace(/%.*$/, "");
  const list = localAddresses(own);
  if (isIP(bare) !== 6) return list.check(bare, "ipv4");
  const embedded = embeddedIpv4(bare);
  return list.check(bare, "ipv6") || (embedded !== undefined && list.check(embedded, "ipv4"));
}

/** Prefixes behind which the last four bytes are an address of version 4 (RFC 4291, 6052), or the two groups after 2002: (RFC 3056). */
function embeddedIpv4(address: string): string | undefined {
  const groups = groupsOf(address);
  const dotted = (high: number, low: number): string =>
    [high >> 8, high & 255, low >> 8, low & 255].join(".");
  if (groups[0] === 0x2002) return dotted(groups[1]!, groups[2]!);
  const zeros = (from: number, to: number): boolean => groups.slice(from, to).every((group) => group === 0);
  const mapped = zeros(0, 5) && (groups[5] === 0xffff || groups[5] === 0);
  const translated = zeros(0, 4) && groups[4] === 0xffff && groups[5] === 0;
  const wellKnown = groups[0] === 0x64 && groups[1] === 0xff9b;
  return mapped || translated || wellKnown ? dotted(groups[6]!, groups[7]!) : undefined;
}

function groupsOf(address: string): number[] {
  // The short form of the URL's parser has no dots any more.
  const text = new URL(`http://[${address}]/`).hostname.slice(1, -1);
  const [head = "", tail] = text.split("::");
  const parse = (part: string): number[] =>
    part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16));
  const [before, after] = [parse(head), parse(tail ?? "")];
  return [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
}
