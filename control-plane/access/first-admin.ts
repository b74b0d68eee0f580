/**
 * The link that makes whoever opens it first the administrator, for an hour after the first start.
 *
 * One entry for all replicas says whether there was one. A link that nobody used in time is replaced at the next start;
 * once one was used, or an administrator has a token, there is never another.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import { changeKv, type KvStore } from "../store/kv.ts";

/** Bucket `first-admin`, one key. */
export const FirstAdminRecord = z.object({
  v: z.literal(1),
  /** Hexadecimal, of the secret in the link. */
  sha256: z.string(),
  expiresAtMs: z.int(),
  usedAtMs: z.int().nullable(),
});
export type FirstAdminRecord = z.infer<typeof FirstAdminRecord>;

export const FIRST_ADMIN_LINK_MS = 3_600_000;
const KEY = "admin";

export interface FirstAdmin {
  /** The secret of a new link, or null when there is to be none. @throws `store.unavailable` */
  offer(about: { firstStart: boolean; hasAdmin: boolean }): Promise<string | null>;
  /** Once. @throws `auth.missing` */
  redeem(secret: string): Promise<void>;
}

export function createFirstAdmin({ kv, clock }: { kv: KvStore<FirstAdminRecord>; clock: Clock }): FirstAdmin {
  return {
    async offer({ firstStart, hasAdmin }) {
      if (hasAdmin) return null;
      const secret = newSecret(32);
      let offered = false;
      await changeKv(kv, KEY, (record) => {
        offered = record === undefined ? firstStart : record.usedAtMs === null;
        const expiresAtMs = clock.wallMs() + FIRST_ADMIN_LINK_MS;
        return offered
          ? { v: 1 as const, sha256: hash(secret).toString("hex"), expiresAtMs, usedAtMs: null }
          : undefined;
      });
      return offered ? secret : null;
    },

    async redeem(secret) {
      await changeKv(kv, KEY, (record) => {
        const nowMs = clock.wallMs();
        if (record === undefined || !opens(record, secret, nowMs)) {
          throw new InsituError(
            "auth.missing",
            "this link is not good, or not any more: it is for one hour and one use. When nobody has used it, the server prints another when it starts again; the token in its secrets directory always works",
          );
        }
        return { ...record, usedAtMs: nowMs };
      });
    },
  };
}

/** Pure. */
export function opens(record: FirstAdminRecord, secret: string, nowMs: number): boolean {
  const same = timingSafeEqual(hash(record.sha256), hash(hash(secret).toString("hex")));
  return same && record.usedAtMs === null && nowMs < record.expiresAtMs;
}

function hash(text: string): Buffer {
  return createHash("sha256").update(text, "utf8").digest();
}
