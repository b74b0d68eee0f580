/**
 * Who the agents are: certificates of a real authority, and real keys that sign reports. Made once for a name and used in
 * every world of the process, since nothing that happens there depends on which keys they are.
 */
import "reflect-metadata"; // as in `pki.ts`
import { generateKeyPairSync, X509Certificate } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PublicKey } from "@peculiar/x509";
import { type ReportSigner, reportSigner } from "../../agent/enrolment/report-key.ts";
import { type Authority, openAuthority } from "../../control-plane/access/authority.ts";
import type { Pki } from "../../control-plane/access/pki.ts";
import type { AgentRecord } from "../../control-plane/fleet/agent-record.ts";
import { inspectPeer, type Peer } from "../../control-plane/gateway/peer-identity.ts";
import type { AnnouncedKey } from "../../control-plane/gateway/report-keys.ts";
import { systemClock } from "../../shared/system.ts";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import type { ReportPayload } from "../../shared/wire/attempt.ts";
import {
  type ReportSignature,
  reportBytes,
  reportKeyId,
  verifyReport,
} from "../../shared/wire/report-signature.ts";
import { BEGIN_MS } from "./timeline.ts";

export const TRUST_DOMAIN = "simulated.test";
/** A world's clocks go wrong by minutes, and no world lasts for days. */
const DAY_MS = 86_400_000;

export interface AgentIdentity {
  peer: Peer;
  signer: ReportSigner;
  /** Whether the signature is this agent's, over exactly this report. By the public key itself, and nobody's record of it. */
  hasSigned(report: ReportPayload, signed: ReportSignature): boolean;
  /** What its hello brings. */
  announced: AnnouncedKey;
  /** As enrolment has written it. */
  record: AgentRecord;
}

let opened: Promise<Authority> | undefined;
const made = new Map<string, AgentIdentity>();

export async function authority(): Promise<Authority> {
  opened ??= makeAuthority();
  return await opened;
}

/** @param id `environment/name` */
export async function identityOf(id: string): Promise<AgentIdentity> {
  const known = made.get(id);
  if (known) return known;
  const identity = await makeIdentity(await authority(), id);
  made.set(id, identity);
  return identity;
}

async function makeAuthority(): Promise<Authority> {
  const directory = await mkdtemp(join(tmpdir(), "insitu-sim-ca-"));
  try {
    const clock = { ...systemClock, wallMs: () => BEGIN_MS - DAY_MS };
    return await openAuthority({
      directory,
      trustDomain: TRUST_DOMAIN,
      clock,
      agentValidityMs: 30 * DAY_MS,
    });
  } finally {
    await rm(directory, { recursive: true });
  }
}

async function makeIdentity(pki: Pki, id: string): Promise<AgentIdentity> {
  const [environment = "", name = ""] = id.split("/");
  const tls = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const publicKey = new PublicKey(tls.publicKey.export({ type: "spki", format: "der" }));
  const spkiSha256 = reportKeyId(new Uint8Array(publicKey.rawData));
  const issued = await pki.issueAgentCertificate({ environment, name }, { publicKey, spkiSha256 });
  const der = new X509Certificate(issued.certificatePem).raw;
  const verdict = inspectPeer(der, { trustDomain: TRUST_DOMAIN, nowMs: BEGIN_MS });
  if (!verdict.ok) throw new Error(`the certificate of ${id} is not taken: ${verdict.fault}`);
  const reportKeys = generateKeyPairSync("ed25519");
  const signer = reportSigner(reportKeys.privateKey, { trustDomain: TRUST_DOMAIN, environment, name });
  const uri = agentUri(TRUST_DOMAIN, { environment, name });
  const keyPem = tls.privateKey.export({ type: "pkcs8", format: "pem" });
  const { reportPublicKey, reportKeyProof } = signer.announcement(Buffer.from(keyPem));
  return {
    peer: verdict.peer,
    signer,
    hasSigned: (report, { keyId, signature }) =>
      keyId === reportKeyId(reportPublicKey) &&
      verifyReport(reportKeys.publicKey, uri, reportBytes(report), Buffer.from(signature, "base64")),
    announced: { publicKey: reportPublicKey, proof: reportKeyProof },
    record: {
      v: 1,
      environment,
      name,
      spkiSha256,
      enrolledAtMs: BEGIN_MS,
      certificateNotAfterMs: issued.notAfterMs,
      next: null,
      firstSessionAtMs: BEGIN_MS,
      removedAtMs: null,
      removedBy: "",
      removedReason: "",
      revokedKeys: [],
      reportKeys: [],
      formerReportKeys: [],
      roots: null,
      issuer: null,
      cordon: null,
      cordonRevision: 0,
    },
  };
}
