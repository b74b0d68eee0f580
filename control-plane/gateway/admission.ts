/** The one place that decides whether a certificate lets an agent in: of a call, or of its way to NATS. */
import { X509Certificate } from "node:crypto";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { ChangingPki } from "../access/authority.ts";
import { type AgentRecord, keysOf } from "../fleet/agent-record.ts";
import type { AgentRegistry } from "../fleet/agent-registry.ts";
import { inspectPeer, type Peer } from "./peer-identity.ts";

export interface AdmissionDeps {
  registry: AgentRegistry;
  clock: Clock;
  log: Logger;
  pki: Pick<ChangingPki, "trustDomain" | "issuerOf">;
}

type Fault = "unknown" | "revoked" | "replaced";

function faultOf(record: AgentRecord | undefined, peer: Peer): Fault | undefined {
  if (record === undefined) return "unknown";
  if (record.removedAtMs !== null) return "revoked";
  return keysOf(record).includes(peer.spkiSha256) ? undefined : "replaced";
}

/** Without who revoked it and why: that is for people of the centre. */
export function notAdmitted(id: string, fault: Fault): InsituError {
  const said = {
    unknown: `the agent ${id} is not enrolled here: join with a new token`,
    revoked: `the agent ${id} was revoked: if that was a mistake, remove the directory "identity" from its state directory and join with a new token`,
    replaced: `the agent ${id} has another key by now: this one opens nothing any more`,
  };
  return new InsituError("auth.denied", said[fault]);
}

/**
 * @param request.method what is asked for, and `address` by whom: for the log
 * @param request.certificate DER; undefined unless TLS verified it against our authority
 * @throws auth.missing, auth.denied; store.unavailable when nobody can say
 */
export async function admitAgent(
  deps: AdmissionDeps,
  request: { method: string; address: string; certificate: Uint8Array | undefined },
): Promise<Peer> {
  const { method, address, certificate } = request;
  const { pki, clock, registry } = deps;
  const verdict = inspectPeer(certificate, { trustDomain: pki.trustDomain, nowMs: clock.wallMs() });
  // TLS knows roots alone, and takes up sessions of before: what an issuer that was retired has signed is refused here.
  const isIssued = verdict.ok && pki.issuerOf(new X509Certificate(verdict.peer.certificateDer)) !== undefined;
  if (!verdict.ok || !isIssued) {
    const fault = verdict.ok ? "issuer" : verdict.fault;
    deps.log.warn({ method, address, fault }, "call without an agent's certificate refused");
    throw new InsituError(
      "auth.missing",
      "this call needs the client certificate that the agent got when it joined; none came, or it is expired, of another authority or not an agent's: join again with a new token",
    );
  }
  const { peer } = verdict;
  const known = faultOf(await registry.find(peer.id), peer);
  // What is known here may be from before the agent enrolled anew at another replica.
  const fault = known === undefined ? undefined : faultOf(await registry.stored(peer.id), peer);
  if (fault !== undefined) {
    deps.log.warn(
      { method, address, agentId: peer.id, fault },
      "call of an agent that is not enrolled refused",
    );
    throw notAdmitted(peer.id, fault);
  }
  return peer;
}
