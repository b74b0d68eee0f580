/**
 * Sessions: who has signed in, for a day's work at most. All replicas see them, and an end counts at once.
 *
 * The secret, of 256 bits, is in the browser's cookie or the command line's file; the store has its SHA-256. What a
 * person may do is worked out anew at each request from the groups: with a rule taken out of the configuration, the role
 * is gone.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { type Clock, newSecret } from "../../shared/system.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import { Person } from "./people.ts";
import type { Principal } from "./rights.ts";

/** Bucket `sessions`, key: the SHA-256 of the secret in hexadecimal. */
export const SessionRecord = z.object({
  v: z.literal(1),
  /** Which way the secret is shown; it opens nothing the other way. */
  carrier: z.enum(["cookie", "bearer"]),
  /** Absent: whoever opened the link for the first administrator. */
  person: Person.nullable(),
  createdAtMs: z.int(),
  expiresAtMs: z.int(),
  lastSeenAtMs: z.int(),
});
export type SessionRecord = z.infer<typeof SessionRecord>;
export type Carrier = SessionRecord["carrier"];

export const SESSION_MAX_MS = 12 * 3_600_000;
export const SESSION_IDLE_MAX_MS = 3_600_000;
/** Entries go this long after their last change, which is when nothing can be made of them any more. */
export const SESSION_BUCKET_TTL_MS = SESSION_MAX_MS + SESSION_IDLE_MAX_MS;
/** Use is noted so often at most: by so much a session may end before its hour without use is over. */
export const SEEN_STEP_MS = 5 * 60_000;

export const FIRST_ADMIN: Principal = {
  name: "link:first-admin",
  display: "first administrator",
  grants: [{ role: "admin", pipelines: null }],
};

const SECRET = /^[A-Za-z0-9_-]{43}$/;
/** In a bearer token, so that it is not looked for among the API tokens, nor the other way. */
const BEARER_PREFIX = "inss_";

export interface Sessions {
  /** @returns the secret, or for `bearer` the whole token: it is not kept. @throws `store.unavailable` */
  open(carrier: Carrier, person: Person | null): Promise<{ secret: string; expiresAtMs: number }>;
  /** null when it is not known, has ended or expired. @throws `store.unavailable` */
  authenticate(carrier: Carrier, secret: string): Promise<Principal | null>;
  /** For every replica, from when it returns. Safe twice, and for what never was one. */
  close(carrier: Carrier, secret: string): Promise<void>;
}

export interface SessionDeps {
  kv: KvStore<SessionRecord>;
  clock: Clock;
  /** What a person is here now; null for one of a provider that is no longer trusted. */
  principalOf(person: Person): Principal | null;
  log: { warn(facts: object, text: string): void };
}

export function createSessions({ kv, clock, principalOf, log }: SessionDeps): Sessions {
  const markSeen = async (key: string, nowMs: number): Promise<void> => {
    try {
      // Not written over an end: an entry that has gone stays so.
      await changeKv(
        kv,
        key,
        (record) => record && { ...record, lastSeenAtMs: Math.max(nowMs, record.lastSeenAtMs) },
      );
    } catch (err) {
      log.warn({ err }, "last use of a session not kept");
    }
  };

  return {
    async open(carrier, person) {
      const secret = newSecret(32);
      const nowMs = clock.wallMs();
      const expiresAtMs = nowMs + SESSION_MAX_MS;
      await kv.create(keyOf(secret), {
        v: 1,
        carrier,
        person,
        createdAtMs: nowMs,
        expiresAtMs,
        lastSeenAtMs: nowMs,
      });
      return { secret: carrier === "bearer" ? BEARER_PREFIX + secret : secret, expiresAtMs };
    },

    async authenticate(carrier, given) {
      const secret = bare(carrier, given);
      if (secret === null) return null;
      const key = keyOf(secret);
      const record = (await kv.get(key))?.value;
      const nowMs = clock.wallMs();
      if (record === undefined || record.carrier !== carrier || !isGood(record, nowMs)) return null;
      const principal = record.person === null ? FIRST_ADMIN : principalOf(record.person);
      if (principal !== null && nowMs - record.lastSeenAtMs >= SEEN_STEP_MS) await markSeen(key, nowMs);
      return principal;
    },

    async close(carrier, given) {
      const secret = bare(carrier, given);
      if (secret === null) return;
      const key = keyOf(secret);
      if ((await kv.get(key)) !== undefined) await kv.delete(key);
    },
  };
}

/** Whether it is good at this moment. A program waits for its runs for hours, so only a browser's ends for want of use. Pure. */
export function isGood({ carrier, expiresAtMs, lastSeenAtMs }: SessionRecord, nowMs: number): boolean {
  if (nowMs >= expiresAtMs) return false;
  return carrier === "bearer" || nowMs - lastSeenAtMs < SESSION_IDLE_MAX_MS;
}

function bare(carrier: Carrier, given: string): string | null {
  const prefix = carrier === "bearer" ? BEARER_PREFIX : "";
  const secret = given.startsWith(prefix) ? given.slice(prefix.length) : "";
  return SECRET.test(secret) ? secret : null;
}

function keyOf(secret: string): string {
  return createHash("sha256").update(secret, "utf8").digest("hex");
}
