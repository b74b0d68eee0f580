/** Which connections go through the site's HTTP proxy, and as whom. */
import { BlockList, isIP } from "node:net";
import { z } from "zod";
import type { HostAndPort } from "./address.ts";

/** `proxy` of the agent's configuration. */
export const ProxyConfig = z
  .strictObject({
    /** `http://host:port`, or `https://` where the proxy itself speaks TLS. */
    url: z
      .string()
      .refine(isProxyUrl, "is like http://proxy.example:3128, without a path; http and https are known"),
    username: z.string().min(1).optional(),
    /** Holds the password and nothing else. Read at each connection, so that it can be changed while the agent runs. */
    passwordFile: z.string().min(1).optional(),
    /** Reached directly: `*`, a name and what ends with it, an address or a range (10.0.0.0/8); each may have a port. */
    noProxy: z.array(z.string().min(1)).default([]),
  })
  .superRefine(({ url, username, passwordFile }, context) => {
    if (URL.canParse(url) && new URL(url).password !== "")
      context.addIssue({ code: "custom", path: ["url"], message: "holds a password; use passwordFile" });
    if (passwordFile !== undefined && username === undefined)
      context.addIssue({ code: "custom", path: ["username"], message: "is needed with passwordFile" });
  });

export interface SiteProxy {
  secure: boolean;
  address: HostAndPort;
  username?: string | undefined;
  /** Absolute. */
  passwordFile?: string | undefined;
  /** From HTTPS_PROXY, which has no file for it. */
  password?: string | undefined;
  noProxy: readonly string[];
}

/** What a proxy of the environment is never asked for: the same hosts as in curl's and Go's programs are local. */
const LOOPBACK = ["localhost", "127.0.0.0/8", "::1"];

function isProxyUrl(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, pathname, search, hostname } = new URL(text);
  return /^https?:$/.test(protocol) && pathname === "/" && search === "" && hostname !== "";
}

export function proxyOf({ url, ...rest }: z.infer<typeof ProxyConfig>): SiteProxy {
  const { protocol, hostname, port, username } = new URL(url);
  const secure = protocol === "https:";
  return {
    secure,
    address: { host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || (secure ? 443 : 80)) },
    ...(username === "" ? {} : { username: decodeURIComponent(username) }),
    ...rest,
  };
}

/**
 * Of `HTTPS_PROXY` and `NO_PROXY`, in either case of letters; undefined without them. User and password may stand in
 * the URL there, as elsewhere.
 *
 * @throws TypeError when it is no URL of a proxy
 */
export function proxyOfEnvironment(env: Readonly<Record<string, string | undefined>>): SiteProxy | undefined {
  const given = env.HTTPS_PROXY || env.https_proxy;
  if (!given) return undefined;
  const url = /^[a-z]+:\/\//i.test(given) ? given : `http://${given}`;
  if (!isProxyUrl(url)) throw new TypeError("HTTPS_PROXY is not like http://proxy.example:3128");
  const { password } = new URL(url);
  const listed = (env.NO_PROXY || env.no_proxy || "").split(/[\s,]+/).filter((entry) => entry !== "");
  return {
    ...proxyOf({ url, noProxy: [...listed, ...LOOPBACK] }),
    ...(password === "" ? {} : { password: decodeURIComponent(password) }),
  };
}

/** Whether `target` is reached without the proxy. */
export function isExempt(noProxy: readonly string[], target: HostAndPort): boolean {
  return noProxy.some((entry) => matches(entry, target));
}

function matches(entry: string, { host, port }: HostAndPort): boolean {
  if (entry === "*") return true;
  const bare = isIP(entry) === 6;
  const found = bare ? null : /^(.*):(\d+)$/.exec(entry);
  if (found && Number(found[2]) !== port) return false;
  const pattern = (found ? found[1]! : entry).replace(/^\[|\]$/g, "").toLowerCase();
  const family = isIP(host);
  if (family !== 0) return matchesAddress(pattern, host, family);
  const name = host.toLowerCase().replace(/\.$/, "");
  const suffix = pattern.replace(/^\*?\./, "");
  return name === suffix || name.endsWith(`.${suffix}`);
}

function matchesAddress(pattern: string, host: string, family: number): boolean {
  const [network = "", length] = pattern.split("/");
  if (isIP(network) !== family) return false;
  const bits = length === undefined ? (family === 6 ? 128 : 32) : Number(length);
  if (!Number.isInteger(bits) || bits < 0 || bits > (family === 6 ? 128 : 32)) return false;
  const list = new BlockList();
  const kind = family === 6 ? "ipv6" : "ipv4";
  list.addSubnet(network, bits, kind);
  return list.check(host, kind);
}
