/**
 * Exchanges a join token for an identity.
 *
 * The token pins the CA by the SHA-256 of its public key: the first connection trusts nothing but a chain that
 * ends in exactly that CA. The key never leaves the host.
 */
import { createHash, createPublicKey } from "node:crypto";
import type { ServiceError } from "@grpc/grpc-js";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { type AgentGatewayClient, ERROR_CODE_METADATA } from "../../shared/wire/grpc.ts";
import { decodeJoinToken, type JoinToken } from "../../shared/wire/join-token.ts";
import { hostAndPort } from "../network/address.ts";
import type { Network } from "../network/network.ts";
import { pinOf, shownChain } from "../network/shown-chain.ts";
import { openGateway } from "../uplink/gateway-client.ts";
import { explainTls } from "../uplink/tls-trouble.ts";
import { softwareVersion } from "../uplink/version.ts";
import { certificateRequest } from "./certificate-request.ts";
import type { NewIdentity } from "./identity.ts";

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
  network: Network;
}): Promise<NewIdentity> {
  const { network } = options;
  const token = decodeJoinToken(options.joinToken);
  const caPem = await fetchPinnedCa(token, network);
  const csrDer = certificateRequest(options.name, options.keyPem);
  const route = await network.route(hostAndPort(token.gateway));
  const client = openGateway(token.gateway, { caPem }, {}, route);
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
async function fetchPinnedCa(token: JoinToken, network: Network): Promise<Buffer> {
  const { chain } = await shownChain(network.way, hostAndPort(token.gateway)).catch((thrown: unknown) => {
    const err = InsituError.from(thrown);
    throw new InsituError(err.code, `cannot reach the gateway ${token.gateway}: ${err.message}`, {
      retryable: err.retryable,
      cause: thrown,
    });
  });
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
