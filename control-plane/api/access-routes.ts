/** Who calls and what they may do; tokens for others. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { GroupName, RIGHTS } from "../access/rights.ts";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { covers, demand, needs, onEnvironment, onPipeline, SIGNED_IN } from "./guard.ts";
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
  summary:
    "Whether the caller has a right; it is the same of a pipeline that is hidden and of one that is missing",
  request: {
    query: z.object({
      right: z.enum(RIGHTS),
      pipeline: Name.optional().openapi({ description: "Over this one; otherwise over everything" }),
      environment: Name.optional().openapi({ description: "In this one" }),
      as_group: GroupName.optional().openapi({
        description: "Of somebody in this group who has no role; needs resources:view over everything",
      }),
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

/** What rules are told of a pipeline that is not there, and of one that the caller may not view. */
const UNKNOWN_PIPELINE = { team: null, environments: [] };

export function accessRoutes(app: OpenAPIHono<ApiEnv>, { tokens, resources }: RouteDeps): void {
  app.openapi(whoAmI, (c) => {
    const { name, grants, display, groups = [] } = c.get("principal");
    const copy = grants.map(({ role, pipelines }) => ({ role, pipelines: pipelines && [...pipelines] }));
    return c.json({ name, ...(display ? { display } : {}), groups: [...groups], grants: copy }, 200);
  });

  app.openapi(canI, async (c) => {
    const { right, pipeline = null, environment = null, as_group: group } = c.req.valid("query");
    if (pipeline !== null && environment !== null)
      throw new InsituError(
        "request.invalid",
        "ask about a pipeline or about an environment, not about both",
      );
    if (group !== undefined) await demand(c, "resources:view", null);
    const principal =
      group === undefined ? c.get("principal") : { name: `group:${group}`, groups: [group], grants: [] };
    const target =
      pipeline !== null ? onPipeline(pipeline) : environment !== null ? onEnvironment(environment) : null;
    const seen =
      pipeline === null ||
      (covers(c, "resources:view", target) && resources.get("pipeline", pipeline) !== undefined);
    const facts = seen ? undefined : UNKNOWN_PIPELINE;
    const { verdict, because } = c.get("judge").decide({ principal, right, target, facts });
    return c.json({ right, pipeline, environment, allowed: verdict === "yes", verdict, because }, 200);
  });

  app.openapi(list, async (c) => c.json({ items: await tokens.list() }, 200));

  app.openapi(create, async (c) => {
    const asked = c.req.valid("json");
    return c.json(await tokens.create({ ...asked, by: c.get("principal").name }), 201);
  });

  app.openapi(revoke, async (c) =>
    c.json(await tokens.revoke(c.req.valid("param").name, c.get("caller")), 200),
  );
}
