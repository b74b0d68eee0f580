/** A chain that an operator brings: the certificate for our key, signed with a root that is kept elsewhere. */
import "reflect-metadata"; // @peculiar/x509 needs it first, and does not bring it along.
import type { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import { duplexPair } from "node:stream";
import { connect, createServer } from "node:tls";
import * as x509 from "@peculiar/x509";
import { InsituError } from "../../shared/errors.ts";
import { certificatesOf } from "./authority-files.ts";
import { createIssuerKey, type Pki, requestForIssuer } from "./pki.ts";

const CHAIN_MAX = 5;
const RSA_MIN_BITS = 2048;
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";

/**
 * The certificates, the one for our key first and the root last. What else they hold is no matter here.
 *
 * @throws InsituError `request.invalid`, which says what is wrong with which certificate
 */
export function readIssuerChain(pem: string, nowMs: number): X509Certificate[] {
  let chain: X509Certificate[];
  try {
    chain = certificatesOf(pem);
  } catch (err) {
    throw new InsituError("request.invalid", "there is no readable certificate in PEM", { cause: err });
  }
  if (chain.length > CHAIN_MAX)
    refuse(`there are ${chain.length} certificates, and at most ${CHAIN_MAX} are taken`);
  chain.slice(0, -1).forEach((certificate, at) => {
    const above = chain[at + 1]!;
    if (!certificate.checkIssued(above) || !certificate.verify(above.publicKey)) {
      refuse(
        `${nameOf(chain, at)} is not issued by ${nameOf(chain, at + 1)}: the certificate for our key comes first, then each one's issuer, the root last`,
      );
    }
  });
  const root = chain.at(-1)!;
  if (!root.checkIssued(root) || !root.verify(root.publicKey)) {
    refuse(
      `${nameOf(chain, chain.length - 1)} is no root: it is issued by ${oneLine(root.issuer)}, whose certificate is missing at the end`,
    );
  }
  if (chain.length === 1)
    refuse(`${nameOf(chain, 0)} is alone: what signed it, up to the root, comes after it`);
  chain.forEach((certificate, at) => {
    const trouble = troubleOf(certificate, at, nowMs);
    if (trouble !== undefined) refuse(`${nameOf(chain, at)} ${trouble}`);
  });
  return chain;
}

function troubleOf(certificate: X509Certificate, at: number, nowMs: number): string | undefined {
  if (!(Date.parse(certificate.validFrom) <= nowMs)) return `is not valid before ${certificate.validFrom}`;
  if (!(Date.parse(certificate.validTo) > nowMs)) return `has expired ${certificate.validTo}`;
  const parsed = new x509.X509Certificate(certificate.raw);
  const constraints = parsed.getExtension(x509.BasicConstraintsExtension);
  if (!constraints?.ca)
    return "may issue none (basicConstraints is not CA:TRUE): sign the request with an extension for a CA";
  // As many issuers stand below it in the chain.
  if (constraints.pathLength !== undefined && constraints.pathLength < at)
    return `allows ${constraints.pathLength} issuers below it (pathlen), and there are ${at}`;
  const usages = parsed.getExtension(x509.KeyUsagesExtension)?.usages;
  if (usages !== undefined && (usages & x509.KeyUsageFlags.keyCertSign) === 0)
    return "may sign no certificates (keyUsage has no keyCertSign)";
  const extended = parsed.getExtension(x509.ExtendedKeyUsageExtension)?.usages.map(String);
  if (extended !== undefined && !(extended.includes(SERVER_AUTH) && extended.includes(CLIENT_AUTH)))
    return "is not for servers and clients (extendedKeyUsage needs serverAuth and clientAuth, or is left out)";
  const { asymmetricKeyType, asymmetricKeyDetails } = certificate.publicKey;
  if (asymmetricKeyType === "rsa" && (asymmetricKeyDetails?.modulusLength ?? 0) < RSA_MIN_BITS)
    return `has an RSA key of ${asymmetricKeyDetails?.modulusLength} bits, and ${RSA_MIN_BITS} is the least`;
  const hash = (parsed.signatureAlgorithm as { hash?: { name?: string } }).hash?.name;
  if (hash === "SHA-1") return "is signed over SHA-1, which is not taken";
  return undefined;
}

function nameOf(chain: readonly X509Certificate[], at: number): string {
  return `certificate ${at + 1} of ${chain.length} (${oneLine(chain[at]!.subject)})`;
}

function oneLine(name: string): string {
  return name.split("\n").join(", ");
}

function refuse(why: string): never {
  throw new InsituError("request.invalid", `the chain is not taken: ${why}`);
}

/**
 * Lets a server and an agent with certificates of the issuer meet, as TLS will: it also knows name constraints, and what
 * else may stand in certificates of other people's tools.
 *
 * @throws InsituError `request.invalid` with the words of OpenSSL
 */
export async function tryIssuer(pki: Pki, names: { dns: string[]; ips: string[] }): Promise<void> {
  const server = await pki.issueServerCertificate(names);
  const agent = await someAgent(pki);
  for (const host of ["localhost", "127.0.0.1", ...names.dns, ...names.ips]) {
    const trouble = await meet({ host, caPem: pki.caPem, server, agent });
    if (trouble !== undefined) refuse(`with certificates below it, TLS to ${host} fails: ${trouble}`);
  }
}

async function someAgent(pki: Pki): Promise<{ chainPem: string; keyPem: string }> {
  const keyPem = await createIssuerKey();
  const request = await requestForIssuer(keyPem, { trustDomain: pki.trustDomain, id: "trial" });
  const key = await pki.readRequest(new Uint8Array(x509.PemConverter.decodeFirst(request)));
  const { certificatePem } = await pki.issueAgentCertificate({ environment: "trial", name: "trial" }, key);
  return { chainPem: certificatePem, keyPem };
}

async function meet(of: {
  host: string;
  caPem: string;
  server: { chainPem: string; keyPem: string };
  agent: { chainPem: string; keyPem: string };
}): Promise<string | undefined> {
  const [near, far] = duplexPair();
  const { caPem: ca, host } = of;
  const shown = { ca, cert: of.server.chainPem, key: of.server.keyPem };
  // Never listens: it is handed its one connection.
  const server = createServer({ ...shown, requestCert: true, rejectUnauthorized: false });
  const result = new Promise<string | undefined>((resolve) => {
    server.on("tlsClientError", (err) => resolve(err.message));
    server.on("secureConnection", (accepted) => {
      accepted.on("error", (err) => resolve(err.message));
      // A string at run time, whatever its type says.
      if (!accepted.authorized) {
        const code = String(accepted.authorizationError);
        resolve(
          `the agent's certificate is refused (${code}): name constraints must allow URIs of spiffe://`,
        );
      } else accepted.end(".");
    });
    server.emit("connection", far);
    const servername = isIP(host) === 0 ? host : "";
    const pair = { ca, cert: of.agent.chainPem, key: of.agent.keyPem };
    const socket = connect({ socket: near as never, host, servername, ...pair });
    socket.on("error", (err) => resolve(err.message));
    socket.on("data", () => resolve(undefined));
    socket.on("close", () => resolve("the connection was closed"));
  });
  try {
    return await result;
  } finally {
    near.destroy();
    far.destroy();
  }
}
