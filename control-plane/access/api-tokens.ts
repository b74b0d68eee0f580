/**
 * API tokens: who holds one is a principal with one role. The secret is shown once; the store knows its SHA-256.
 *
 * A token is `ins_<name>_<secret>`. SHA-256 without salt or stretching is right here: the secret has 256 bits of
 * chance, so there is nothing to guess. A revoked or expired token keeps its entry, so that its name, which the
 * record of who did what holds for ever, never comes to mean somebody else.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { NAME_PATTERN, Name } from "../../shared/model/names.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import type { Access } from "../api/access.ts";
import type { ApiTokens } from "../api/services.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import { GroupName, ROLES } from "./rights.ts";

/** Bucket `api-tokens`, key: the name. */
export const ApiTokenRecord = z.object({
  v: z.literal(1),
  name: Name,
  /** Hexadecimal, of the secret part. */
  sha256: z.string(),
  role: z.enum(ROLES),
  pipelines: z.array(Name).nullable(),
  /** Came later: a token that was made before has none. */
  groups: z.array(GroupName).default([]),
  createdBy: z.string(),
  createdAtMs: z.int(),
  expiresAtMs: z.int(),
  lastUsedAtMs: z.int().nullable(),
  revokedAtMs: z.int().nullable(),
});
export type ApiTokenRecord = z.infer<typeof ApiTokenRecord>;

/** Of whoever holds the token in the server's own directory. */
export const LOCAL_OPERATOR = "operator";

const SECRET_BYTES = 32;
const TOKEN_PATTERN = /^ins_([a-z0-9-]{1,63})_([A-Za-z0-9_-]{43})$/;
/** The last use is known to the hour: a write for each request would cost more than it tells. */
const LAST_USED_STEP_MS = 3_600_000;

export interface ApiTokenDeps {
  kv: KvStore<ApiTokenRecord>;
  clock: Clock;
  log: { info(facts: object, text: string): void; warn(facts: object, text: string): void };
}

/** Every authentication reads the store, so a revoked token is refused by every replica from then on. */
export function createApiTokens({ kv, clock, log }: ApiTokenDeps): ApiTokens & Access {
  const markUsed = async (name: string, nowMs: number): Promise<void> => {
    try {
      await changeKv(kv, name, (record) =>
        record && usedLongAgo(record, nowMs) ? { ...record, lastUsedAtMs: nowMs } : undefined,
      );
    } catch (err) {
      // The caller has shown who it is; that the note of it got lost is no reason to refuse it.
      log.warn({ err, tokenName: name }, "last use of an API token not kept");
    }
  };

  return {
    async create({ name, role, pipelines, groups, ttlMs, by }) {
      if (name === LOCAL_OPERATOR) {
        throw new InsituError(
          "request.invalid",
          `${name} is the name of the server's own token; take another`,
        );
      }
      const secret = newSecret(SECRET_BYTES);
      const nowMs = clock.wallMs();
      const expiresAtMs = nowMs + ttlMs;
      const record: ApiTokenRecord = {
        v: 1,
        name,
        sha256: hash(secret).toString("hex"),
        role,
        pipelines,
        groups,
        createdBy: by,
        createdAtMs: nowMs,
        expiresAtMs,
        lastUsedAtMs: null,
        revokedAtMs: null,
      };
      await kv.create(name, record).catch((err: unknown) => {
        if (!(err instanceof InsituError) || err.code !== "conflict") throw err;
        const message = `there is or was a token named ${name}, and records speak of it by that name; take another`;
        throw new InsituError("conflict", message, { cause: err });
      });
      log.info({ caller: by, tokenName: name, role, pipelines, groups, expiresAtMs }, "API token created");
      return { ...viewOf(record), token: `ins_${name}_${secret}` };
    },

    async list() {
      const entries = await kv.list();
      return entries.map(({ value }) => viewOf(value)).sort((a, b) => (a.name < b.name ? -1 : 1));
    },

    async revoke(name, by) {
      const known = NAME_PATTERN.test(name);
      const { value } = known
        ? await changeKv(kv, name, (record) =>
            record === undefined || record.revokedAtMs !== null
              ? undefined
              : { ...record, revokedAtMs: clock.wallMs() },
          )
        : { value: undefined };
      if (value === undefined) {
        const names = (await kv.list()).map(({ key }) => key);
        throw new InsituError("not-found", unknownName({ kind: "token", name, known: names }));
      }
      log.info({ caller: by, tokenName: name }, "API token revoked");
      return viewOf(value);
    },

    async authenticate(token) {
      const [, name, secret] = TOKEN_PATTERN.exec(token) ?? [];
      if (name === undefined || secret === undefined || !NAME_PATTERN.test(name)) return null;
      const record = (await kv.get(name))?.value;
      const nowMs = clock.wallMs();
      if (record === undefined || !opens(record, secret, nowMs)) return null;
      if (usedLongAgo(record, nowMs)) await markUsed(name, nowMs);
      const { role, pipelines, groups, createdBy: madeBy } = record;
      return { name, grants: [{ role, pipelines }], groups, madeBy };
    },
  };
}

/** Whether the secret is this token's, and the token is good at this moment. Pure. */
export function opens(record: ApiTokenRecord, secret: string, nowMs: number): boolean {
  const expected = Buffer.from(record.sha256, "hex");
  const given = hash(secret);
  if (expected.length !== given.length || !timingSafeEqual(expected, given)) return false;
  return record.revokedAtMs === null && nowMs < record.expiresAtMs;
}

function usedLongAgo({ lastUsedAtMs }: ApiTokenRecord, nowMs: number): boolean {
  return lastUsedAtMs === null || nowMs - lastUsedAtMs >= LAST_USED_STEP_MS;
}

function viewOf({ v: _v, sha256: _sha256, ...view }: ApiTokenRecord): Omit<ApiTokenRecord, "v" | "sha256"> {
  return view;
}

function hash(secret: string): Buffer {
  return createHash("sha256").update(secret, "utf8").digest();
}
