/** Who calls and what they may do; tokens for others. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { Name } from "../../shared/model/names.ts";
import { RIGHTS } from "../access/rights.ts";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { covers, needs, SIGNED_IN } from "./guard.ts";
import { json, jsonBody, problems } from "./routes.ts";
import { ApiTokenBody, ApiTokenView, CanIView, NewApiTokenView, WhoAmIView } from "./schemas.ts";

const whoAmI = createRoute({
  ...SIGNED_IN,
  method: "get",
  path: "/v1/access/whoami",
  operationId: "whoAmI",
  tags: ["access"],
  summary: "Who calls, and with which roles",
  responses: { 200: json(WhoAmIView, "The caller"), ...problems },
});

const canI = createRoute({
  ...SIGNED_IN,
  method: "get",
  path: "/v1/access/can-i",
  operationId: "canI",
  tags: ["access"],
  summary: "Whether the caller has a right; the answer is the same whether or not the pipeline exists",
  request: {
    query: z.object({
      right: z.enum(RIGHTS),
      pipeline: Name.optional().openapi({ description: "Over this one; otherwise over everything" }),
    }),
  },
  responses: { 200: json(CanIView, "The answer"), ...problems },
});

const list = createRoute({
  ...needs("tokens:manage"),
  method: "get",
  path: "/v1/tokens",
  operationId: "listTokens",
  tags: ["access"],
  summary: "API tokens by name, also those that are revoked or have expired",
  responses: { 200: json(z.object({ items: z.array(ApiTokenView) }), "All of them"), ...problems },
});

const create = createRoute({
  ...needs("tokens:manage"),
  method: "post",
  path: "/v1/tokens",
  operationId: "createToken",
  tags: ["access"],
  summary: "A token for a person or a program",
  description: "Shown once. No Idempotency-Key here: the answer is a secret and is not kept.",
  request: { body: jsonBody(ApiTokenBody) },
  responses: { 201: json(NewApiTokenView, "The token"), ...problems },
});

const revoke = createRoute({
  ...needs("tokens:manage"),
  method: "delete",
  path: "/v1/tokens/{name}",
  operationId: "revokeToken",
  tags: ["access"],
  summary: "Revoke a token; it is refused from then on, and its name is not given again",
  request: { params: z.object({ name: z.string().max(64) }) },
  responses: { 200: json(ApiTokenView, "The token as it is now"), ...problems },
});

export function accessRoutes(app: OpenAPIHono<ApiEnv>, { tokens }: RouteDeps): void {
  app.openapi(whoAmI, (c) => {
    const { name, grants } = c.get("principal");
    const copy = grants.map(({ role, pipelines }) => ({ role, pipelines: pipelines && [...pipelines] }));
    return c.json({ name, grants: copy }, 200);
  });

  app.openapi(canI, (c) => {
    const { right, pipeline = null } = c.req.valid("query");
    return c.json({ right, pipeline, allowed: covers(c, right, pipeline) }, 200);
  });

  app.openapi(list, async (c) => c.json({ items: await tokens.list() }, 200));

  app.openapi(create, async (c) => {
    const { name, role, pipelines, ttlMs } = c.req.valid("json");
    return c.json(await tokens.create({ name, role, pipelines, ttlMs, by: c.get("caller") }), 201);
  });

  app.openapi(revoke, async (c) =>
    c.json(await tokens.revoke(c.req.valid("param").name, c.get("caller")), 200),
  );
}
