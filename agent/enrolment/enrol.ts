/**
 * Exchanges a join token for an identity.
 *
 * The token pins the CA by the SHA-256 of its public key: the first connection trusts nothing but a chain that
 * ends in exactly that CA. The key never leaves the host.
 */
import { createHash, createPublicKey, X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import { connect, type DetailedPeerCertificate, type PeerCertificate } from "node:tls";
import type { ServiceError } from "@grpc/grpc-js";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { type AgentGatewayClient, ERROR_CODE_METADATA } from "../../shared/wire/grpc.ts";
import { decodeJoinToken, type JoinToken } from "../../shared/wire/join-token.ts";
import { hostAndPort, openGateway } from "../uplink/gateway-client.ts";
import { explainTls } from "../uplink/tls-trouble.ts";
import { softwareVersion } from "../uplink/version.ts";
import { certificateRequest } from "./certificate-request.ts";
import type { NewIdentity } from "./identity.ts";

const CONNECT_TIMEOUT_MS = 10_000;
const ENROL_TIMEOUT_MS = 20_000;

/** Between two questions whether somebody has approved the agent; from the shorter to the longer. */
const APPROVAL_MIN_MS = 2_000;
const APPROVAL_MAX_MS = 20_000;

/**
 * Where the token asks for it, waits until a person has approved the agent, as long as the token is valid.
 *
 * @throws token.invalid, unreachable, auth.denied, with what to do in the message
 */
export async function enrol(options: {
  joinToken: string;
  name: string;
  /** Of an EC P-256 key, PKCS#8. The same at every try, so that an answer that was lost costs no use of the token. */
  keyPem: Buffer;
  clock: Clock;
  /** Called once, with the fingerprint of the key, when a person has to approve the agent. */
  waits?(fingerprint: string): void;
}): Promise<NewIdentity> {
  const token = decodeJoinToken(options.joinToken);
  const caPem = await fetchPinnedCa(token);
  const csrDer = certificateRequest(options.name, options.keyPem);
  const client = openGateway(token.gateway, { caPem });
  try {
    const answer = await approved(() => call(client, token, options, csrDer), options);
    return { ...answer, name: options.name, gateway: token.gateway, keyPem: options.keyPem };
  } finally {
    client.close();
  }
}

async function approved(
  ask: () => Promise<Answer>,
  options: Pick<Parameters<typeof enrol>[0], "keyPem" | "clock" | "waits">,
): Promise<Answer> {
  let isTold = false;
  for (let waitMs = APPROVAL_MIN_MS; ; waitMs = Math.min(waitMs * 1.5, APPROVAL_MAX_MS)) {
    try {
      return await ask();
    } catch (err) {
      const waits = err instanceof InsituError && err.code === "approval.waiting";
      // What goes wrong while it waits, like a server that is restarted, may pass.
      const passes = isTold && err instanceof InsituError && err.retryable;
      if (!waits && !passes) throw err;
      if (!isTold) options.waits?.(fingerprintOf(options.keyPem));
      isTold = true;
      await options.clock.sleep(waitMs);
    }
  }
}

function fingerprintOf(keyPem: Buffer): string {
  const spki = createPublicKey(keyPem).export({ type: "spki", format: "der" });
  return `sha256:${createHash("sha256").update(spki).digest("hex")}`;
}

type Answer = Omit<NewIdentity, "name" | "gateway" | "keyPem">;

function call(
  client: InstanceType<typeof AgentGatewayClient>,
  token: JoinToken,
  options: { name: string; clock: Clock },
  csrDer: Buffer,
): Promise<Answer> {
  const deadline = options.clock.wallMs() + ENROL_TIMEOUT_MS;
  const request = { token: token.secret, agentName: options.name, csrDer, version: softwareVersion() };
  return new Promise((resolve, reject) => {
    client.Enrol(request, { deadline }, (err, response) => {
      if (err) return reject(explain(err, token));
      if (!response) return reject(new InsituError("internal", "the control plane answered nothing"));
      resolve({
        environment: response.environment,
        trustDomain: response.trustDomain,
        certificatePem: Buffer.from(response.certificatePem),
        caPem: Buffer.from(response.caPem),
        offerPublicKeyPem: Buffer.from(response.offerPublicKeyPem),
      });
    });
  });
}

function explain(err: ServiceError, token: JoinToken): InsituError {
  if (err.metadata.get(ERROR_CODE_METADATA)[0] === "approval.waiting")
    return new InsituError("approval.waiting", err.details, { retryable: true, cause: err });
  const retryable = err.code === 14 || err.code === 4 || err.code === 8;
  const code =
    err.code === 8
      ? "limit.exceeded"
      : retryable
        ? "unreachable"
        : err.code === 7
          ? "token.invalid"
          : "auth.denied";
  const said = explainTls(err.details, token.gateway) ?? err.details;
  return new InsituError(code, `enrolment at ${token.gateway} failed: ${said}`, {
    retryable,
    cause: err,
  });
}

/** The CA of the gateway, if it is the one that the token pins. */
async function fetchPinnedCa(token: JoinToken): Promise<Buffer> {
  const chain = await presentedChain(token.gateway);
  const ca = chain.find((certificate) => pinOf(certificate) === token.caPin);
  const [leaf] = chain;
  if (!ca || !leaf) {
    const seen = chain.map(pinOf).join(", ") || "none";
    throw new InsituError(
      "auth.denied",
      `${token.gateway} does not present the CA that the join token pins (${token.caPin}; presented: ${seen}). ` +
        "Either something between here and the control plane intercepts TLS, or the token is of another control plane",
    );
  }
  return Buffer.from(ca.toString());
}

function presentedChain(gateway: string): Promise<X509Certificate[]> {
  const { host, port } = hostAndPort(gateway);
  return new Promise((resolve, reject) => {
    // Nothing is believed of this connection: only the certificates are looked at.
    const socket = connect({
      host,
      port,
      rejectUnauthorized: false,
      ALPNProtocols: ["h2"],
      servername: isIP(host) === 0 ? host : "", // RFC 6066 §3: no IP addresses in SNI
    });
    const fail = (reason: string, cause?: unknown): void => {
      socket.destroy();
      const message = `cannot reach the gateway ${gateway}: ${reason}`;
      reject(new InsituError("unreachable", message, { retryable: true, cause }));
    };
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => fail(`no answer within ${CONNECT_TIMEOUT_MS} ms`));
    socket.once("error", (err) => fail(err.message, err));
    socket.once("secureConnect", () => {
      const chain = unfold(socket.getPeerCertificate(true));
      socket.destroy();
      resolve(chain);
    });
  });
}

function unfold(leaf: DetailedPeerCertificate): X509Certificate[] {
  const chain: X509Certificate[] = [];
  let current: DetailedPeerCertificate | PeerCertificate | undefined = leaf;
  while (current?.raw && chain.length < 10) {
    chain.push(new X509Certificate(current.raw));
    const issuer: DetailedPeerCertificate | undefined =
      "issuerCertificate" in current ? current.issuerCertificate : undefined;
    if (!issuer || issuer === current) break;
    current = issuer;
  }
  return chain;
}

function pinOf(certificate: X509Certificate): string {
  const spki = certificate.publicKey.export({ type: "spki", format: "der" });
  return `sha256:${createHash("sha256").update(spki).digest("hex")}`;
}
