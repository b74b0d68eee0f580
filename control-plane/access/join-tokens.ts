/**
 * Tokens with which an agent joins. The secret is shown once; the store knows its SHA-256.
 *
 * A use is spent for one name with one key. The same agent may present the token again while it is valid, and
 * spends nothing more: an answer that was lost, or a crash between the spending and the registration, costs
 * another try and nothing else.
 */
import { createHash } from "node:crypto";
import type { Logger } from "pino";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import type { JoinTokenView } from "../api/schemas.ts";
import type { JoinTokens } from "../api/services.ts";
import { changeKv, type KvEntry, type KvStore } from "../store/kv.ts";
import { fingerprint } from "./join-requests.ts";
import { type AgentName, agentId } from "./spiffe.ts";

/** Bucket `join-tokens`, key: hexadecimal SHA-256 of the secret. */
export const JoinTokenRecord = z.object({
  /** 2 when it asks for approval, which a replica from before there were approvals would overlook: it reads none of these. */
  v: z.literal([1, 2]),
  environment: Name,
  createdBy: z.string(),
  createdAtMs: z.int(),
  expiresAtMs: z.int(),
  uses: z.int().min(1),
  /** Whether a person has to approve each agent that comes with it. */
  approval: z.boolean().default(false),
  redemptions: z.array(z.object({ agentName: Name, spkiSha256: z.string(), atMs: z.int() })),
  /** Its `expiresAtMs` is the same moment then: replicas from before there were revocations refuse it for that. */
  revoked: z.object({ atMs: z.int(), by: z.string() }).nullable().default(null),
});
export type JoinTokenRecord = z.infer<typeof JoinTokenRecord>;

export const JOIN_TOKEN_TTL_MAX_MS = 30 * 86_400_000;
export const JOIN_TOKEN_USES_MAX = 1_000;
/** Of the bucket: tokens vanish some time after they can no longer be used. */
export const JOIN_TOKEN_BUCKET_TTL_MS = JOIN_TOKEN_TTL_MAX_MS + 86_400_000;
const SECRET_BYTES = 32;
/** Digits of the hash that name a token to people: enough that no two of a bucket share them. */
const ID_DIGITS = 16;
const SECRET_PATTERN = /^[A-Za-z0-9_-]{43}$/;

export type TokenFault = "unknown" | "expired" | "revoked" | "used" | "agent-removed";

/** Whoever asks with a bad token learns this and no more; `details.fault` is for our log. */
export const TOKEN_REFUSED =
  "the join token is not valid: it is unknown, expired, revoked or used up; make a new one with insitu join-token create";

export interface TokenClaim {
  agentName: string;
  spkiSha256: string;
}

export interface JoinTokenService extends JoinTokens {
  /** Looks without spending. @throws InsituError `token.invalid`. */
  inspect(secret: string): Promise<JoinTokenRecord>;
  /**
   * Spends a use for this name and key, unless they have one already.
   * `removedAtMs`: when the agent of this name was revoked; a token from before that does not bring it back.
   * @throws InsituError `token.invalid`.
   */
  redeem(secret: string, claim: TokenClaim, removedAtMs: number | null): Promise<JoinTokenRecord>;
  /** Gives the use back, when the registration it was for is known not to have happened. */
  release(secret: string, claim: TokenClaim): Promise<void>;
  /** Ends the tokens with which an agent of this name came: whoever has its host may have them. Gives how many. Safe twice. */
  endThoseOf(agent: AgentName, by: string): Promise<number>;
}

export interface JoinTokenDeps {
  kv: KvStore<JoinTokenRecord>;
  clock: Clock;
  log: Logger;
  /** By name. */
  environments(): string[];
  /** The line that a person copies, made of the secret and where to bring it. */
  format(parts: { environment: string; secret: string }): string;
}

export function createJoinTokens(deps: JoinTokenDeps): JoinTokenService {
  const { kv, clock, log } = deps;
  const known = async (id: string): Promise<KvEntry<JoinTokenRecord>> => {
    const found = (await kv.list()).find(({ key }) => idOf(key) === id);
    if (found === undefined) throw unknownId(id);
    return found;
  };
  return {
    async create(request) {
      refuseOddRequest(request, deps.environments());
      const secret = newSecret(SECRET_BYTES);
      const createdAtMs = clock.wallMs();
      const expiresAtMs = createdAtMs + request.ttlMs;
      await kv.create(keyOf(secret), {
        v: request.approval ? 2 : 1,
        environment: request.environment,
        createdBy: request.by,
        createdAtMs,
        expiresAtMs,
        uses: request.uses,
        approval: request.approval ?? false,
        redemptions: [],
        revoked: null,
      });
      const token = deps.format({ environment: request.environment, secret });
      return { id: idOf(keyOf(secret)), token, expiresAtMs };
    },

    async list() {
      const nowMs = clock.wallMs();
      return (await kv.list()).map((entry) => viewOf(entry, nowMs));
    },

    async get(id) {
      return viewOf(await known(id), clock.wallMs());
    },

    async revoke(id, by) {
      const { key } = await known(id);
      const nowMs = clock.wallMs();
      let isDone = false;
      const { value } = await changeKv(kv, key, (record) => {
        if (record === undefined) throw unknownId(id);
        isDone = record.revoked === null && nowMs < record.expiresAtMs;
        return isDone ? revoke(record, { atMs: nowMs, by }) : undefined;
      });
      if (isDone) log.warn({ joinToken: id, environment: value?.environment, by }, "join token revoked");
      return viewOf({ key, value: value! }, nowMs);
    },

    async inspect(secret) {
      if (!SECRET_PATTERN.test(secret)) throw refused("unknown");
      const record = (await kv.get(keyOf(secret)))?.value;
      if (record === undefined) throw refused("unknown");
      if (clock.wallMs() >= record.expiresAtMs) throw refused(endOf(record), record);
      return record;
    },

    async redeem(secret, claim, removedAtMs) {
      const { value } = await changeKv(kv, keyOf(secret), (record) => {
        const decided = spend(record, claim, { nowMs: clock.wallMs(), removedAtMs });
        if (decided.kind === "refused") throw refused(decided.fault, record);
        return decided.kind === "spent" ? decided.record : undefined;
      });
      return value!;
    },

    async release(secret, claim) {
      await changeKv(kv, keyOf(secret), (record) => {
        const kept = record?.redemptions.filter((r) => !sameClaim(r, claim));
        if (record === undefined || kept === undefined || kept.length === record.redemptions.length)
          return undefined;
        return { ...record, redemptions: kept };
      });
    },

    async endThoseOf({ environment, name }, by) {
      const nowMs = clock.wallMs();
      const isIts = (record: JoinTokenRecord): boolean =>
        record.environment === environment &&
        record.expiresAtMs > nowMs &&
        record.redemptions.some(({ agentName }) => agentName === name);
      const its = (await kv.list()).filter(({ value }) => isIts(value));
      for (const { key } of its) {
        await changeKv(kv, key, (record) =>
          record !== undefined && isIts(record) ? revoke(record, { atMs: nowMs, by }) : undefined,
        );
      }
      return its.length;
    },
  };
}

type Spending =
  | { kind: "spent"; record: JoinTokenRecord }
  | { kind: "had-one" }
  | { kind: "refused"; fault: TokenFault };

/** What presenting the token does to it. Pure. */
export function spend(
  record: JoinTokenRecord | undefined,
  claim: TokenClaim,
  at: { nowMs: number; removedAtMs: number | null },
): Spending {
  if (record === undefined) return { kind: "refused", fault: "unknown" };
  if (at.nowMs >= record.expiresAtMs) return { kind: "refused", fault: endOf(record) };
  if (at.removedAtMs !== null && record.createdAtMs <= at.removedAtMs) {
    return { kind: "refused", fault: "agent-removed" };
  }
  if (record.redemptions.some((r) => sameClaim(r, claim))) return { kind: "had-one" };
  if (record.redemptions.length >= record.uses) return { kind: "refused", fault: "used" };
  return {
    kind: "spent",
    record: { ...record, redemptions: [...record.redemptions, { ...claim, atMs: at.nowMs }] },
  };
}

function endOf(record: JoinTokenRecord): TokenFault {
  return record.revoked === null ? "expired" : "revoked";
}

/** Whoever comes after this is refused, also an agent that had a use and comes again for its answer. Pure. */
function revoke(record: JoinTokenRecord, revoked: { atMs: number; by: string }): JoinTokenRecord {
  return { ...record, expiresAtMs: revoked.atMs, revoked };
}

function viewOf(
  { key, value }: Pick<KvEntry<JoinTokenRecord>, "key" | "value">,
  nowMs: number,
): JoinTokenView {
  const { environment, createdBy, createdAtMs, expiresAtMs, uses, approval, redemptions, revoked } = value;
  const usesLeft = Math.max(0, uses - redemptions.length);
  const ended = nowMs >= expiresAtMs ? endOf(value) : undefined;
  return {
    id: idOf(key),
    environment,
    state:
      ended === undefined ? (usesLeft > 0 ? "valid" : "used") : ended === "revoked" ? "revoked" : "expired",
    approval,
    uses,
    usesLeft,
    createdBy,
    createdAtMs,
    expiresAtMs,
    revoked,
    usedBy: redemptions.map(({ agentName, spkiSha256, atMs }) => ({
      agent: agentId({ environment, name: agentName }),
      fingerprint: fingerprint(spkiSha256),
      atMs,
    })),
  };
}

function idOf(key: string): string {
  return key.slice(0, ID_DIGITS);
}

function unknownId(id: string): InsituError {
  return new InsituError("not-found", `there is no join token ${id}; \`insitu join-token list\` shows them`);
}

function sameClaim(a: TokenClaim, b: TokenClaim): boolean {
  return a.agentName === b.agentName && a.spkiSha256 === b.spkiSha256;
}

function refused(fault: TokenFault, record?: JoinTokenRecord): InsituError {
  return new InsituError("token.invalid", TOKEN_REFUSED, {
    details: {
      fault,
      ...(record === undefined ? {} : { environment: record.environment, createdBy: record.createdBy }),
    },
  });
}

function keyOf(secret: string): string {
  return createHash("sha256").update(secret, "utf8").digest("hex");
}

function refuseOddRequest(
  request: { environment: string; ttlMs: number; uses: number },
  environments: readonly string[],
): void {
  if (!environments.includes(request.environment)) {
    const asked = { kind: "environment", name: request.environment, known: environments };
    throw new InsituError("not-found", unknownName(asked));
  }
  if (!Number.isInteger(request.ttlMs) || request.ttlMs < 1 || request.ttlMs > JOIN_TOKEN_TTL_MAX_MS) {
    throw new InsituError("request.invalid", "a join token is valid for 1 ms to 30 days (ttlMs)");
  }
  if (!Number.isInteger(request.uses) || request.uses < 1 || request.uses > JOIN_TOKEN_USES_MAX) {
    throw new InsituError("request.invalid", `a join token has 1 to ${JOIN_TOKEN_USES_MAX} uses`);
  }
}
