/** The way to the control plane, hop by hop: name, proxy, TCP, TLS. Each says what it saw and what to ask for. */
import { X509Certificate } from "node:crypto";
import { createSocket } from "node:dgram";
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { InsituError } from "../../shared/errors.ts";
import { addressOf, type HostAndPort } from "../network/address.ts";
import { dial, dialProxy, proxyFor } from "../network/dial.ts";
import type { Network } from "../network/network.ts";
import { pinOf, type Shown, shownChain } from "../network/shown-chain.ts";
import type { Finding } from "./report.ts";
import {
  accountRequest,
  type Ends,
  firewallRequest,
  inspectionRequest,
  nameRequest,
  proxyReachRequest,
  proxyRequest,
  timeRequest,
} from "./requests.ts";

/** Who is expected at the other end: the CA of the enrolment, or, before it, the pin of the join token. */
export type Expected = { caPem: Buffer } | { caPin: string };

export interface Path {
  findings: Finding[];
  ends: Ends;
  /** The CA that the gateway's certificate leads to; undefined when TLS is not good. */
  caPem?: Buffer;
}

export async function checkPath(network: Network, target: HostAndPort, expected: Expected): Promise<Path> {
  const proxy = proxyFor(network.way, target);
  const name = await checkName(target, proxy !== undefined);
  const { ends } = name;
  const findings = [name.finding];
  const path = { findings, ends };
  const via = proxy ? await checkProxy(network, target, ends) : noProxy(network, target);
  findings.push(via);
  if (name.finding.level === "fail" || via.level === "fail") {
    findings.push(skip("tcp", "name and proxy come first"), skip("tls", "name and proxy come first"));
    return path;
  }
  const tcp = proxy
    ? ({ check: "tcp", level: "ok", seen: `${addressOf(target)} answers through the proxy` } as const)
    : await checkTcp(network, target, ends);
  findings.push(tcp);
  if (tcp.level === "fail") {
    findings.push(skip("tls", "TCP comes first"));
    return path;
  }
  const { finding, caPem } = await checkTls(network, ends, expected);
  findings.push(finding);
  return { ...path, ...(caPem === undefined ? {} : { caPem }) };
}

export function skip(check: Finding["check"], why: string): Finding {
  return { check, level: "skip", seen: `not looked at: ${why}` };
}

async function checkName(target: HostAndPort, proxied: boolean): Promise<{ finding: Finding; ends: Ends }> {
  const { host } = target;
  const check = "name" as const;
  if (isIP(host) !== 0) {
    const ends = await endsOf(target, [host]);
    return { ends, finding: { check, level: "ok", seen: `${host} is an address, and needs no name` } };
  }
  try {
    const addresses = (await lookup(host, { all: true })).map(({ address }) => address);
    const ends = await endsOf(target, addresses);
    return { ends, finding: { check, level: "ok", seen: `${host} is ${addresses.join(", ")}` } };
  } catch (err) {
    const ends = await endsOf(target, []);
    const why = (err as NodeJS.ErrnoException).code ?? String(err);
    if (proxied) {
      const seen = `${host} is not known here (${why}), and need not be: the proxy looks it up`;
      return { ends, finding: { check, level: "ok", seen } };
    }
    return {
      ends,
      finding: { check, level: "fail", seen: `${host} is not known here (${why})`, ask: nameRequest(ends) },
    };
  }
}

function noProxy({ way }: Network, target: HostAndPort): Finding {
  const { proxy } = way;
  const seen = proxy
    ? `${addressOf(proxy.address)} is not used for ${target.host} (noProxy)`
    : "none is configured (proxy, HTTPS_PROXY): the connection is direct";
  return { check: "proxy", level: "ok", seen };
}

async function checkProxy(network: Network, target: HostAndPort, ends: Ends): Promise<Finding> {
  const check = "proxy" as const;
  const { way } = network;
  const proxy = proxyFor(way, target)!;
  const { address, username } = proxy;
  try {
    (await dialProxy(way, proxy)).destroy();
  } catch (err) {
    const ask = proxyReachRequest(await endsOf(address, []));
    return { check, level: "fail", seen: InsituError.from(err).message, ask };
  }
  try {
    (await dial(way, target)).destroy();
    return { check, level: "ok", seen: `${addressOf(address)} opens a way to ${addressOf(target)}` };
  } catch (thrown) {
    const err = InsituError.from(thrown);
    const denied = err.code === "auth.denied";
    const ask = denied ? accountRequest(ends, address, username) : proxyRequest(ends, address);
    return { check, level: "fail", seen: err.message, ask };
  }
}

async function checkTcp({ way }: Network, target: HostAndPort, ends: Ends): Promise<Finding> {
  const check = "tcp" as const;
  try {
    (await dial(way, target)).destroy();
    return { check, level: "ok", seen: `${addressOf(target)} answers` };
  } catch (err) {
    return { check, level: "fail", seen: InsituError.from(err).message, ask: firewallRequest(ends) };
  }
}

async function checkTls(
  { way }: Network,
  ends: Ends,
  expected: Expected,
): Promise<{ finding: Finding; caPem?: Buffer }> {
  const check = "tls" as const;
  const { target } = ends;
  try {
    const caPem =
      "caPem" in expected ? expected.caPem : await pinnedCa(() => shownChain(way, target), expected.caPin);
    const shown = await shownChain(way, target, caPem);
    const pin =
      caPem === undefined ? ("caPin" in expected ? expected.caPin : "") : pinOf(new X509Certificate(caPem));
    if (caPem === undefined || !leadsTo(shown)) return { finding: foreign(shown, ends, pin) };
    if (shown.trouble !== undefined) return { finding: troubled(shown, ends) };
    const seen = `${shown.protocol}, a certificate of the CA that is expected (${pin})`;
    return { finding: { check, level: "ok", seen }, caPem };
  } catch (err) {
    return {
      finding: { check, level: "fail", seen: InsituError.from(err).message, ask: firewallRequest(ends) },
    };
  }
}

async function pinnedCa(look: () => Promise<Shown>, caPin: string): Promise<Buffer | undefined> {
  const ca = (await look()).chain.find((certificate) => pinOf(certificate) === caPin);
  return ca && Buffer.from(ca.toString());
}

/** False when the chain ends in another authority than the one that is trusted. */
function leadsTo({ trouble }: Shown): boolean {
  return trouble === undefined || /CERT_HAS_EXPIRED|CERT_NOT_YET_VALID|ALTNAME/.test(trouble);
}

function foreign({ chain }: Shown, ends: Ends, pin: string): Finding {
  const [leaf] = chain;
  const issuer = leaf === undefined ? "nobody" : oneLine(leaf.issuer);
  const got = chain.map(pinOf).join(", ") || "none";
  return {
    check: "tls",
    level: "fail",
    seen:
      `a certificate issued by "${issuer}" is shown, which does not lead to the CA that is expected (pin ${pin}; ` +
      `got ${got}). Something between inspects TLS, or the control plane has another CA: then enrol with a new join token`,
    ask: inspectionRequest(ends, issuer),
  };
}

function troubled({ chain, trouble = "" }: Shown, ends: Ends): Finding {
  const [leaf] = chain;
  const check = "tls" as const;
  if (/ALTNAME/.test(trouble)) {
    const seen = `the certificate is for ${leaf?.subjectAltName ?? "no name"}, not for ${ends.target.host}: start the server with that name (--public-host)`;
    return { check, level: "fail", seen };
  }
  const seen = `the certificate is valid from ${leaf?.validFrom} to ${leaf?.validTo}, which it is not by this host's clock: compare the clocks`;
  return { check, level: "fail", seen, ask: timeRequest(ends) };
}

/** Of names as X.509 has them, a line for each part. */
function oneLine(name: string): string {
  return name.replace(/\n/g, ", ").replace(/[^\x20-\x7e]/g, "?");
}

export async function endsOf(target: HostAndPort, addresses: readonly string[]): Promise<Ends> {
  const to = addresses[0] ?? (isIP(target.host) === 0 ? "" : target.host);
  return {
    host: hostname(),
    source: to === "" ? "" : await sourceTowards(to, target.port),
    target,
    addresses,
  };
}

/** The address that this host sends from. Nothing is sent: a connected UDP socket only chooses its route. */
function sourceTowards(address: string, port: number): Promise<string> {
  return new Promise((resolve) => {
    const socket = createSocket(isIP(address) === 6 ? "udp6" : "udp4");
    const finish = (source: string): void => {
      socket.close();
      resolve(source);
    };
    socket.once("error", () => finish(""));
    socket.connect(port, address, () => finish(socket.address().address));
  });
}
