/** Who is at the other end of a connection, by its certificate. Pure. */
import { createHash, X509Certificate } from "node:crypto";
import { agentId, parseAgentUri } from "../access/spiffe.ts";

export interface Peer {
  /** `environment/name` */
  id: string;
  environment: string;
  name: string;
  spkiSha256: string;
  notAfterMs: number;
  /** As TLS showed it. */
  certificateDer: Uint8Array;
}

/** Why a certificate names no agent. */
export type PeerFault = "none" | "unreadable" | "expired" | "not-yet-valid" | "authority" | "usage" | "name";

export type PeerVerdict = { ok: true; peer: Peer } | { ok: false; fault: PeerFault };

const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
/** One URI, and nothing beside it. Node puts odd names in quotes, so that they cannot look like this. */
const ONE_URI = /^URI:([^,"\s]+)$/;

/**
 * Reads the certificate of a peer that TLS found to be signed by our authority.
 * The dates are looked at again: TLS saw them when the connection began, and a connection outlives that.
 */
export function inspectPeer(
  der: Uint8Array | undefined,
  at: { trustDomain: string; nowMs: number },
): PeerVerdict {
  if (der === undefined) return { ok: false, fault: "none" };
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(der);
  } catch {
    // What exactly is wrong with bytes that TLS took for a certificate helps nobody.
    return { ok: false, fault: "unreadable" };
  }
  const notAfterMs = Date.parse(certificate.validTo);
  const notBeforeMs = Date.parse(certificate.validFrom);
  // Written so that a date which cannot be read (NaN) denies.
  if (!(at.nowMs < notAfterMs)) return { ok: false, fault: "expired" };
  if (!(at.nowMs >= notBeforeMs)) return { ok: false, fault: "not-yet-valid" };
  if (certificate.ca) return { ok: false, fault: "authority" };
  // `keyUsage` of Node is the extended key usage.
  if (!(certificate.keyUsage ?? []).includes(CLIENT_AUTH)) return { ok: false, fault: "usage" };
  const uri = ONE_URI.exec(certificate.subjectAltName ?? "")?.[1];
  const agent = uri === undefined ? undefined : parseAgentUri(at.trustDomain, uri);
  if (agent === undefined) return { ok: false, fault: "name" };
  const spki = certificate.publicKey.export({ type: "spki", format: "der" });
  return {
    ok: true,
    peer: {
      ...agent,
      id: agentId(agent),
      spkiSha256: createHash("sha256").update(spki).digest("hex"),
      notAfterMs,
      certificateDer: Uint8Array.from(der),
    },
  };
}
