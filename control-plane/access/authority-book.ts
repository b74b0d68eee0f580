/**
 * Which issuers of certificates there are, and what each is for now. Pure.
 *
 * An issuer is added, then activated, then those before it are retired. Roots of all that are not retired are trusted.
 * Certificates of agents come from the active one; those of servers from the oldest, which also agents accept that were
 * away since before the newest was added.
 */
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";

/** The beginning of the SHA-256 of the issuer's SPKI, hexadecimal. */
export const IssuerId = z.string().regex(/^[0-9a-f]{16}$/);

const Deed = z.object({ atMs: z.int(), by: z.string() });

/**
 * Bucket `agents`, key `authority.issuers`; none until the first change. The certificates are not here: whoever can write
 * to the store would choose whom everybody trusts. They lie with the keys, in the directory of secrets.
 */
export const AuthorityRecord = z.object({
  v: z.literal(1),
  /** Of what agents are told. Wall time of the change, so that it also grows over a restored backup. */
  revision: z.int().min(1),
  /** Pin of the root that there was first: by it replicas know each other. */
  firstPin: z.string(),
  active: IssuerId,
  /** The oldest first. */
  issuers: z
    .array(
      z.object({
        id: IssuerId,
        rootPin: z.string(),
        added: Deed.nullable(),
        activated: Deed.nullable(),
        retired: Deed.nullable(),
      }),
    )
    .min(1)
    .max(64),
});
export type AuthorityRecord = z.infer<typeof AuthorityRecord>;
export type IssuerEntry = AuthorityRecord["issuers"][number];

export interface Deed {
  atMs: number;
  by: string;
}

/** An agent that is enrolled and not revoked, as it matters here. */
export interface AgentTrust {
  id: string;
  /** Pins of the roots that it trusts; null: it has never said, being older or not connected since. */
  roots: readonly string[] | null;
  /** Id of the issuer of its certificate; null: not known. */
  issuer: string | null;
}

/** What holds before anything was ever changed. */
export function firstRecord(first: { id: string; rootPin: string }): AuthorityRecord {
  const entry = { ...first, added: null, activated: null, retired: null };
  return { v: 1, revision: 1, firstPin: first.rootPin, active: first.id, issuers: [entry] };
}

export function trusted(record: AuthorityRecord): IssuerEntry[] {
  return record.issuers.filter(({ retired }) => retired === null);
}

/** The issuer of server certificates. */
export function serving(record: AuthorityRecord): IssuerEntry {
  return trusted(record)[0]!;
}

/** @throws InsituError `conflict` when it is there, or when another one waits to be activated */
export function add(
  record: AuthorityRecord,
  issuer: { id: string; rootPin: string },
  deed: Deed,
): AuthorityRecord {
  if (record.issuers.some(({ id }) => id === issuer.id))
    throw new InsituError("conflict", `the issuer ${issuer.id} is there already, or was retired`);
  const next = waiting(record);
  if (next !== undefined) {
    throw new InsituError(
      "conflict",
      `the issuer ${next.id} waits to be activated: activate it, or retire it, before another one comes`,
    );
  }
  const entry = { ...issuer, added: deed, activated: null, retired: null };
  return changed({ ...record, issuers: [...record.issuers, entry] }, deed);
}

/** The one that was added and never activated. */
export function waiting(record: AuthorityRecord): IssuerEntry | undefined {
  return trusted(record).find(({ added, activated }) => added !== null && activated === null);
}

/**
 * @throws InsituError `conflict` while agents that are named do not trust its root, unless `force`: they would refuse the
 *   certificate that they are given, and stay with theirs
 */
export function activate(
  record: AuthorityRecord,
  deed: Deed,
  of: { agents: readonly AgentTrust[]; force: boolean },
): AuthorityRecord {
  const next = waiting(record);
  if (next === undefined)
    throw new InsituError("conflict", "no issuer waits to be activated: `insitu ca rotate` makes one");
  const behind = of.agents.filter(({ roots }) => !roots?.includes(next.rootPin)).map(({ id }) => id);
  if (behind.length > 0 && !of.force) {
    throw new InsituError(
      "conflict",
      `${counted(behind)} not said to trust the new root yet (${some(behind)}): wait for them, revoke those that never come back, or activate with --force: they keep the certificates that they have, and trust the new root when they come`,
    );
  }
  const issuers = record.issuers.map((entry) =>
    entry.id === next.id ? { ...entry, activated: deed } : entry,
  );
  return changed({ ...record, active: next.id, issuers }, deed);
}

/**
 * @throws InsituError `not-found`; `conflict` for the active one, and while agents that are named would be locked out
 *   without it, unless `force`
 */
export function retire(
  record: AuthorityRecord,
  id: string,
  deed: Deed,
  of: { agents: readonly AgentTrust[]; force: boolean },
): AuthorityRecord {
  const entry = record.issuers.find((issuer) => issuer.id === id);
  if (entry === undefined)
    throw new InsituError("not-found", `there is no issuer ${id}; \`insitu ca show\` lists them`);
  if (entry.retired !== null) return record;
  if (id === record.active)
    throw new InsituError("conflict", `the issuer ${id} is the active one: activate another before`);
  const issuers = record.issuers.map((issuer) => (issuer.id === id ? { ...issuer, retired: deed } : issuer));
  const after = { ...record, issuers };
  const pins = new Set(trusted(after).map(({ rootPin }) => rootPin));
  // Both ways: they must take our certificates, and we theirs.
  const refusesUs = ({ roots }: AgentTrust): boolean =>
    !pins.has(entry.rootPin) && !roots?.includes(serving(after).rootPin);
  const isRefused = ({ issuer }: AgentTrust): boolean => issuer === null || issuer === id;
  const behind = of.agents.filter((agent) => refusesUs(agent) || isRefused(agent)).map((agent) => agent.id);
  if (behind.length > 0 && !of.force) {
    throw new InsituError(
      "conflict",
      `${counted(behind)} not left the issuer ${id} yet (${some(behind)}): without it they have to join again. Wait for them, revoke those that never come back, or retire it with --force`,
    );
  }
  return changed(after, deed);
}

function changed(record: AuthorityRecord, { atMs }: Deed): AuthorityRecord {
  return { ...record, revision: Math.max(record.revision + 1, atMs) };
}

const SHOWN_MAX = 5;

function some(ids: readonly string[]): string {
  const rest = ids.length - SHOWN_MAX;
  return `${ids.slice(0, SHOWN_MAX).join(", ")}${rest > 0 ? ` and ${rest} more` : ""}`;
}

function counted(ids: readonly string[]): string {
  return ids.length === 1 ? "an agent has" : `${ids.length} agents have`;
}
