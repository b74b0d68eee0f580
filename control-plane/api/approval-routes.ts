/** Requests that wait for a second person. Who is shown one is who asked for it, and who could approve it. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import { denied } from "../access/access-decision.ts";
import { type ApprovalRecord, digestOfRequest, sameAsRequester, stateOf } from "../access/approvals.ts";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { covers, decideOn, SIGNED_IN } from "./guard.ts";
import { json, jsonBody, problems } from "./routes.ts";
import { ApprovalDetail, ApprovalView, DecideApprovalBody } from "./schemas.ts";

const params = z.object({ id: z.string().max(64).openapi({ description: "Id of the approval" }) });

const list = createRoute({
  ...SIGNED_IN,
  method: "get",
  path: "/v1/approvals",
  operationId: "listApprovals",
  tags: ["access"],
  summary: "Requests that need a second person: the caller's own, and those that it could approve",
  responses: { 200: json(z.object({ items: z.array(ApprovalView) }), "The oldest first"), ...problems },
});

const get = createRoute({
  ...SIGNED_IN,
  method: "get",
  path: "/v1/approvals/{id}",
  operationId: "getApproval",
  tags: ["access"],
  summary: "One of them, with the whole request",
  request: { params },
  responses: { 200: json(ApprovalDetail, "The approval"), ...problems },
});

const decide = createRoute({
  ...SIGNED_IN,
  method: "post",
  path: "/v1/approvals/{id}/decision",
  operationId: "decideApproval",
  tags: ["access"],
  summary: "Approve a request of somebody else, or deny it; who asked may deny it too, and so withdraws it",
  description: "Needs the rights that the request needs. The requester then sends the same request again.",
  request: { params, body: jsonBody(DecideApprovalBody) },
  responses: { 200: json(ApprovalDetail, "The approval"), ...problems },
});

export function approvalRoutes(app: OpenAPIHono<ApiEnv>, { approvals, clock }: RouteDeps): void {
  const missing = (id: string) => new InsituError("not-found", `there is no approval ${id}`);

  const seen = async (c: Context<ApiEnv>, id: string): Promise<ApprovalRecord> => {
    const record = await approvals.get(id);
    if (!mayBeShown(c, record)) throw missing(id);
    return record;
  };

  app.openapi(list, async (c) => {
    const nowMs = clock.wallMs();
    const items = (await approvals.list()).filter((record) => mayBeShown(c, record));
    return c.json({ items: items.map((record) => viewOf(record, nowMs)) }, 200);
  });

  app.openapi(get, async (c) => {
    const record = await seen(c, c.req.valid("param").id);
    return c.json(detailOf(record, clock.wallMs()), 200);
  });

  app.openapi(decide, async (c) => {
    const { id } = c.req.valid("param");
    const { approve: approved, reason } = c.req.valid("json");
    await seen(c, id);
    const by = c.get("principal").name;
    const record = await approvals.decide(id, { approved, by, reason }, (current) => {
      if (!approved && current.requester === by) return;
      refuseJudge(c, current);
    });
    return c.json(detailOf(record, clock.wallMs()), 200);
  });
}

function mayBeShown(c: Context<ApiEnv>, record: ApprovalRecord): boolean {
  if (record.requester === c.get("principal").name) return true;
  const seen = record.needs.every(
    ({ target }) => target?.kind !== "pipeline" || covers(c, "resources:view", target),
  );
  return seen && missingNeed(c, record) === undefined;
}

/** A need that the caller does not have, with a second person or without. */
function missingNeed(c: Context<ApiEnv>, { needs }: ApprovalRecord) {
  return needs.find((need) => decideOn(c, need).verdict === "no");
}

/** @throws InsituError `auth.denied` */
function refuseJudge(c: Context<ApiEnv>, record: ApprovalRecord): void {
  const principal = c.get("principal");
  const same = sameAsRequester(record, principal);
  if (same !== null) {
    const details = { right: "approve", caller: principal.name, approvalId: record.id };
    throw new InsituError("auth.denied", same, { details });
  }
  const need = missingNeed(c, record);
  if (need !== undefined) throw denied({ principal, ...need });
}

function viewOf(record: ApprovalRecord, nowMs: number): ApprovalView {
  const { id, requester, method, path, because, askedAtMs, expiresAtMs, decision, usedAtMs } = record;
  const needs = record.needs.map(({ right, target }) => ({
    right,
    over: target === null ? "everything" : `${target.kind}/${target.name}`,
  }));
  const state = stateOf(record, nowMs);
  return { id, state, requester, needs, because, method, path, askedAtMs, expiresAtMs, decision, usedAtMs };
}

function detailOf(record: ApprovalRecord, nowMs: number): ApprovalDetail {
  const { requester, method, path, body, needs, because } = record;
  const principal = { name: requester, grants: [] };
  const digest = `sha256:${digestOfRequest({ principal, method, path, body, needs, because })}`;
  return { ...viewOf(record, nowMs), digest, body };
}
