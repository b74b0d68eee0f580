/** Which user keys of an agent NATS was told to let in, and which no more. Pure. */
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";

/** An agent's host has one key; more come of state directories that were lost. */
const KEYS_MAX = 16;

const User = z.object({
  userKey: z.string(),
  /** Of the identity that it was given to, as in the agent's record. */
  spkiSha256: z.string(),
  /** Seconds since the Unix epoch, as are those below. */
  issuedAtS: z.int(),
  expiresAtS: z.int(),
  /** What was issued for the key up to then is void. */
  revokedAtS: z.int().nullable(),
  /** Generation of the key of accounts that signed it; of before there were rotations: the first. */
  signedBy: z.int().default(1),
});
type User = z.infer<typeof User>;

/** Bucket `nats-users`, key `<environment>.<name>`. */
export const NatsUsers = z.object({ v: z.literal(1), environment: Name, name: Name, users: z.array(User) });
export type NatsUsers = z.infer<typeof NatsUsers>;

export interface Grant {
  environment: string;
  name: string;
  userKey: string;
  spkiSha256: string;
  nowS: number;
  validForS: number;
  /** Of the agent's certificate: nothing outlives it. */
  notAfterS: number;
  /** Generation of the key of accounts that signs now. */
  signedBy: number;
}

/**
 * What stands is given again while half of its time is left, so that an agent that comes back gets what it has.
 *
 * @throws limit.exceeded for an agent that brings ever new keys
 */
export function grant(current: NatsUsers | undefined, request: Grant): { next: NatsUsers; user: User } {
  const { environment, name, userKey, spkiSha256, nowS, validForS, notAfterS, signedBy } = request;
  const kept = (current?.users ?? []).filter(({ expiresAtS }) => expiresAtS > nowS);
  const known = kept.find((user) => user.userKey === userKey);
  const expiresAtS = Math.min(nowS + validForS, notAfterS);
  const stands =
    known !== undefined && isLive(known) && known.spkiSha256 === spkiSha256 && known.signedBy === signedBy;
  if (stands && known.expiresAtS - nowS > validForS / 2) return { next: current as NatsUsers, user: known };
  const others = kept.filter((user) => user !== known);
  if (others.length >= KEYS_MAX) {
    throw new InsituError(
      "limit.exceeded",
      `${environment}/${name} has brought ${KEYS_MAX} NATS keys within a day: keep its state directory, or wait until the first has expired`,
      { retryable: true },
    );
  }
  // NATS voids what was issued up to the second of a revocation.
  const issuedAtS = Math.max(nowS, (known?.revokedAtS ?? 0) + 1);
  const revokedAtS = known?.revokedAtS ?? null;
  const user = { userKey, spkiSha256, issuedAtS, expiresAtS, revokedAtS, signedBy };
  return { next: { v: 1, environment, name, users: [...others, user] }, user };
}

/**
 * Voids what was issued to other identities than `keep`, or to all. Undefined when there is nothing to void.
 *
 * @param keep SPKI of the identities that stay
 */
export function revoke(current: NatsUsers, keep: readonly string[], nowS: number): NatsUsers | undefined {
  const isVoid = (user: User): boolean => isLive(user) && !keep.includes(user.spkiSha256);
  if (!current.users.some(isVoid)) return undefined;
  const users = current.users.map((user) =>
    isVoid(user) ? { ...user, revokedAtS: Math.max(nowS, user.issuedAtS) } : user,
  );
  return { ...current, users };
}

/** As an account's JWT says them. */
export function revocationsOf(records: Iterable<NatsUsers>): Record<string, number> {
  const revocations: Record<string, number> = {};
  for (const { users } of records)
    for (const { userKey, revokedAtS } of users) if (revokedAtS !== null) revocations[userKey] = revokedAtS;
  return revocations;
}

/** Agents that may hold a JWT which that key signed and nobody has voided, as `environment/name`. */
export function holdersOf(records: Iterable<NatsUsers>, generation: number, nowS: number): string[] {
  const holds = (user: User): boolean =>
    user.signedBy === generation && isLive(user) && user.expiresAtS > nowS;
  return [...records]
    .filter(({ users }) => users.some(holds))
    .map(({ environment, name }) => `${environment}/${name}`)
    .sort();
}

function isLive({ issuedAtS, revokedAtS }: User): boolean {
  return revokedAtS === null || issuedAtS > revokedAtS;
}
