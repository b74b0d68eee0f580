/** What is stored about agents: who they are, and how they were last seen. */
import { z } from "zod";
import { Name } from "../../shared/model/names.ts";

/** A key that signs reports. Holds its own evidence: whoever can write to the store cannot make one. */
export const ReportKey = z.object({
  /** SHA-256 of the SPKI, hexadecimal. */
  id: z.string().regex(/^[0-9a-f]{64}$/),
  /** SPKI, DER in base64. */
  publicKey: z.string(),
  /** Signature by the key of the certificate, base64. */
  proof: z.string(),
  /** Of the connection that announced the key, DER in base64. */
  certificate: z.string(),
  addedAtMs: z.int(),
});
export type ReportKey = z.infer<typeof ReportKey>;

/** Why an agent takes no new work. */
export const Cordon = z.object({
  by: z.string(),
  reason: z.string(),
  atMs: z.int(),
  /** Null: it only takes nothing new. */
  drain: z
    .object({
      /** Wall time at which what still runs there ends as interrupted; null: it may take as long as it takes. */
      deadlineMs: z.int().nullable(),
      /** Whether that includes steps that are started once. */
      once: z.boolean(),
    })
    .nullable(),
});
export type Cordon = z.infer<typeof Cordon>;

/** Bucket `agents`, key `identity.<environment>.<name>`. Written when an agent enrols or is removed. */
export const AgentRecord = z.object({
  v: z.literal(1),
  environment: Name,
  name: Name,
  /** SHA-256 of the public key's SPKI, hexadecimal: a certificate with another key is not this agent's. */
  spkiSha256: z.string().regex(/^[0-9a-f]{64}$/),
  enrolledAtMs: z.int(),
  certificateNotAfterMs: z.int(),
  /** A renewed identity that has not been used yet. Both open everything until it is: the answer may be lost. */
  next: z.object({ spkiSha256: z.string(), certificateNotAfterMs: z.int() }).nullable().default(null),
  /**
   * When its key was first seen at work; null before that. Until then the certificate may never have reached the
   * agent, and the name gives way to whoever brings a valid token.
   */
  firstSessionAtMs: z.int().nullable(),
  /** Set when somebody revoked the agent: its certificate no longer opens anything. */
  removedAtMs: z.int().nullable(),
  removedBy: z.string().default(""),
  removedReason: z.string().default(""),
  /** Keys that were revoked under this name, while a certificate of theirs would still be good: none is taken again. */
  revokedKeys: z.array(z.object({ spkiSha256: z.string(), notAfterMs: z.int() })).default([]),
  /** Those that this agent has announced, the oldest first; none: it is of a release that does not sign. */
  reportKeys: z.array(ReportKey).default([]),
  /** Of agents that had this name before: they sign nothing any more, and what they have signed is still theirs. */
  formerReportKeys: z.array(ReportKey).default([]),
  /** Pins of the roots that it says it trusts; null: it has never said. */
  roots: z.array(z.string()).max(64).nullable().default(null),
  /** Id of the issuer of the certificate that it came with last; null: not seen since issuers have ids. */
  issuer: z.string().nullable().default(null),
  /** Of the name, not of the key: who joins anew under it takes no work before somebody says so. */
  cordon: Cordon.nullable().default(null),
  /** Of the last cordon or uncordon, 0 before the first: the agent ignores what is older than what it knows. */
  cordonRevision: z.int().default(0),
});
export type AgentRecord = z.infer<typeof AgentRecord>;

/** Of the keys with which it is let in; none for one that was revoked. */
export function keysOf(record: AgentRecord | undefined): string[] {
  if (record === undefined || record.removedAtMs !== null) return [];
  return record.next === null ? [record.spkiSha256] : [record.spkiSha256, record.next.spkiSha256];
}

/** What process steps run in at an agent; see `Sandbox` in agent.proto. */
export const SandboxFacts = z.object({
  boxes: z.boolean(),
  summary: z.string(),
  held: z.record(z.string(), z.string()),
  notHeld: z.record(z.string(), z.string()),
  unboxedUpTo: z.string(),
  /** Missing: no. */
  letsOut: z.boolean().optional(),
  /** Missing: no. */
  runsContainers: z.boolean().optional(),
});
export type SandboxFacts = z.infer<typeof SandboxFacts>;

/** Bucket `agents`, key `seen.<environment>.<name>`. For people; nothing decides by it. */
export const SeenRecord = z.object({
  v: z.literal(1),
  lastSeenMs: z.int(),
  software: z.string(),
  hostname: z.string(),
  slots: z.int(),
  executors: z.array(z.string()),
  datasets: z.array(z.string()),
  labels: z.record(z.string(), z.string()),
  /** Null, or missing: the agent did not say. */
  sandbox: SandboxFacts.nullable().optional(),
  /** What it said last of its cordon, and how much it held. Missing: seen by a release that does not ask. */
  cordonRevision: z.int().optional(),
  held: z.int().optional(),
});
export type SeenRecord = z.infer<typeof SeenRecord>;

export const IDENTITY_PREFIX = "identity.";
export const SEEN_PREFIX = "seen.";

/** Names hold no dots, so the key can be read back and filtered by environment. */
export function agentKey(id: string): string {
  return id.replace("/", ".");
}

export function idOfKey(key: string): string {
  return key.replace(".", "/");
}
