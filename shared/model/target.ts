/** `host:port` that a step may be let out to, as people write it and as it is compared. Pure. */

export interface Target {
  /** A name in lower case, or an IP address in its shortest form without brackets. */
  host: string;
  port: number;
  isAddress: boolean;
}

/** Of one step. */
export const TARGETS_MAX = 32;
export const TARGET_EXPECTED =
  "host:port, such as db.site.example:5432, 10.20.0.7:5432 or [2001:db8::7]:443; a name has no wildcard and is not localhost";

const NAME_MAX_CHARS = 253;
const LABEL = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/;
const OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const IPV4 = new RegExp(`^${OCTET}(\\.${OCTET}){3}$`);

/** Undefined for what is none. */
export function parseTarget(text: string): Target | undefined {
  const [, brackets, bare, digits] =
    /^(?:\[([0-9A-Fa-f:.]+)\]|([^[\]:/@]+)):([1-9][0-9]{0,4})$/.exec(text) ?? [];
  const port = Number(digits);
  if (digits === undefined || port > 65_535) return undefined;
  if (brackets !== undefined) {
    const host = shortIpv6(brackets);
    return host === undefined ? undefined : { host, port, isAddress: true };
  }
  const host = bare!.toLowerCase();
  if (IPV4.test(host)) return { host, port, isAddress: true };
  return isHostName(host) ? { host, port, isAddress: false } : undefined;
}

export function targetText({ host, port }: Pick<Target, "host" | "port">): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** In lower case. What a resolver could take for an address, such as `127.1` or `0x7f.1`, is no name. */
function isHostName(host: string): boolean {
  const labels = host.split(".");
  const last = labels.at(-1)!;
  if (host.length > NAME_MAX_CHARS || !labels.every((label) => LABEL.test(label))) return false;
  return last !== "localhost" && !/^([0-9]+|0x[0-9a-f]*)$/.test(last);
}

function shortIpv6(text: string): string | undefined {
  try {
    return new URL(`http://[${text}]/`).hostname.slice(1, -1);
  } catch {
    return undefined; // not one
  }
}
