/**
 * A second person's approval of one request. Pure: what becomes of a record when somebody asks, decides or takes it.
 *
 * A record is bound to the digest of who asks for what: method, path, query and body. It is good for one request that
 * is the same to the letter, sent by the same caller, who needs the right at that moment too.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { PipelineFacts, Target } from "./access-decision.ts";
import { type Principal, RIGHTS, type Right } from "./rights.ts";

/** How long it waits for a second person, and how long it can be used after that. */
export const APPROVAL_VALID_MS = 24 * 3_600_000;
/** Of the body of a request: a second person has to be able to read what it approves. */
export const APPROVAL_BODY_MAX_BYTES = 256 * 1024;
/** Waiting at once, of one caller. */
export const APPROVALS_WAITING_MAX = 50;

/** A right that the request needs, as it was asked for. */
export interface ApprovedNeed {
  right: Right;
  target: Target;
  facts?: PipelineFacts | undefined;
}

/** Bucket `approvals`, key: `digestOfRequest`. */
export const ApprovalRecord = z.object({
  v: z.literal(1),
  id: z.string(),
  requester: z.string(),
  /** Who made the requester's token. */
  requesterMadeBy: z.string().nullable(),
  method: z.string(),
  /** With its query. */
  path: z.string(),
  body: z.string(),
  needs: z.array(
    z.object({
      right: z.enum(RIGHTS),
      target: z.object({ kind: z.enum(["pipeline", "environment"]), name: z.string() }).nullable(),
      facts: z
        .object({
          team: z.string().nullable(),
          environments: z.array(z.string()),
          version: z.string().optional(),
        })
        .optional(),
    }),
  ),
  /** The rule that wants it. */
  because: z.string(),
  askedAtMs: z.int(),
  expiresAtMs: z.int(),
  decision: z.object({ approved: z.boolean(), by: z.string(), reason: z.string(), atMs: z.int() }).nullable(),
  usedAtMs: z.int().nullable(),
});
export type ApprovalRecord = z.infer<typeof ApprovalRecord>;

export type ApprovalState = "waiting" | "approved" | "denied" | "expired" | "used";

export interface ApprovalRequest {
  principal: Principal;
  method: string;
  path: string;
  body: string;
  needs: readonly ApprovedNeed[];
  because: string;
}

/** Hexadecimal SHA-256. */
export function digestOfRequest({ principal, method, path, body }: ApprovalRequest): string {
  return createHash("sha256")
    .update(JSON.stringify([principal.name, method, path, body]))
    .digest("hex");
}

export function stateOf(record: ApprovalRecord, nowMs: number): ApprovalState {
  if (record.usedAtMs !== null) return "used";
  if (record.decision?.approved === false && nowMs < record.expiresAtMs) return "denied";
  if (nowMs >= record.expiresAtMs) return "expired";
  return record.decision === null ? "waiting" : "approved";
}

/** What becomes of the record when the request comes; `take` when it may go ahead, once. */
export function ask(
  current: ApprovalRecord | undefined,
  request: ApprovalRequest,
  { nowMs, id }: { nowMs: number; id: string },
): { verdict: "take" | "waiting" | "denied"; record: ApprovalRecord; changed: boolean } {
  const state = current === undefined ? "expired" : stateOf(current, nowMs);
  if (current !== undefined && state === "denied")
    return { verdict: "denied", record: current, changed: false };
  // Rules that have come since may want more than what was approved.
  const same = current !== undefined && coversNeeds(current, request.needs);
  if (same && state === "waiting") return { verdict: "waiting", record: current, changed: false };
  if (same && state === "approved")
    return { verdict: "take", record: { ...current, usedAtMs: nowMs }, changed: true };
  return { verdict: "waiting", record: newRecord(request, nowMs, id), changed: true };
}

function newRecord(request: ApprovalRequest, nowMs: number, id: string): ApprovalRecord {
  const { principal, method, path, body, needs, because } = request;
  return {
    v: 1,
    id,
    requester: principal.name,
    requesterMadeBy: principal.madeBy ?? null,
    method,
    path,
    body,
    needs: needs.map(({ right, target, facts }) => ({
      right,
      target,
      ...(facts === undefined ? {} : { facts: { ...facts, environments: [...facts.environments] } }),
    })),
    because,
    askedAtMs: nowMs,
    expiresAtMs: nowMs + APPROVAL_VALID_MS,
    decision: null,
    usedAtMs: null,
  };
}

/** Whether everything that is needed now is what was asked for. */
export function coversNeeds({ needs }: ApprovalRecord, wanted: readonly ApprovedNeed[]): boolean {
  const had = new Set(needs.map(needKey));
  return wanted.every((need) => had.has(needKey(need)));
}

function needKey({ right, target, facts }: ApprovedNeed): string {
  return JSON.stringify([
    right,
    target?.kind,
    target?.name,
    facts?.team,
    facts?.environments,
    facts?.version,
  ]);
}

/** Why this caller is no second person; null when it is one. Who makes a token knows it, and could use both. */
export function sameAsRequester(record: ApprovalRecord, principal: Principal): string | null {
  const { requester, requesterMadeBy } = record;
  if (principal.name === requester) return `${requester} asked for it, and somebody else has to approve it`;
  if (principal.madeBy === requester)
    return `${requester} asked for it and made the token of ${principal.name}, so the two count as one`;
  if (requesterMadeBy === principal.name)
    return `${principal.name} made the token of ${requester}, who asked for it, so the two count as one`;
  return null;
}

/** @throws InsituError `conflict` when it is no longer open */
export function judge(
  record: ApprovalRecord,
  decision: { approved: boolean; by: string; reason: string },
  nowMs: number,
): ApprovalRecord {
  const state = stateOf(record, nowMs);
  // An approval can be taken back until it is used.
  const open = state === "waiting" || (state === "approved" && !decision.approved);
  if (!open) {
    const by = record.decision === null ? "" : ` by ${record.decision.by}`;
    throw new InsituError("conflict", `approval ${record.id} is ${state}${by} and can no longer be decided`);
  }
  return {
    ...record,
    decision: { ...decision, atMs: nowMs },
    expiresAtMs: nowMs + APPROVAL_VALID_MS,
  };
}
