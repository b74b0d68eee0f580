/** Agents, and the tokens that let new ones join. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import { CordonAgentBody, DrainAgentBody, RevokeAgentBody } from "./agent-schemas.ts";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { pageByKey } from "./cursor.ts";
import { demand, needs, needsOnEnvironment, onEnvironment } from "./guard.ts";
import { Cursor, json, jsonBody, limit, problems } from "./routes.ts";
import {
  AgentView,
  JoinDecisionBody,
  JoinRequestView,
  JoinTokenBody,
  JoinTokenView,
  NewJoinTokenView,
  pageOf,
  ServerView,
} from "./schemas.ts";

const list = createRoute({
  ...needs("fleet:view"),
  method: "get",
  path: "/v1/agents",
  operationId: "listAgents",
  tags: ["fleet"],
  summary: "Agents, connected or not, by environment and name",
  request: { query: z.object({ limit: limit(1000), cursor: Cursor }) },
  responses: { 200: json(pageOf(AgentView), "A page"), ...problems },
});

const get = createRoute({
  ...needs("fleet:view"),
  method: "get",
  path: "/v1/agents/{environment}/{name}",
  operationId: "getAgent",
  tags: ["fleet"],
  summary: "One agent",
  request: { params: z.object({ environment: z.string(), name: z.string() }) },
  responses: { 200: json(AgentView, "The agent"), ...problems },
});

const revoke = createRoute({
  ...needsOnEnvironment("agents:revoke"),
  method: "post",
  path: "/v1/agents/{environment}/{name}/revoke",
  operationId: "revokeAgent",
  tags: ["fleet"],
  summary:
    "Put an agent out for good; its connections are cut, and neither its key nor its join tokens open anything",
  description: "Needs no Idempotency-Key: doing it twice is doing it once, and the first reason stays.",
  request: {
    params: z.object({ environment: z.string(), name: z.string() }),
    body: jsonBody(RevokeAgentBody),
  },
  responses: { 200: json(AgentView, "The agent"), ...problems },
});

const Params = z.object({ environment: z.string(), name: z.string() });
const TWICE = "Needs no Idempotency-Key: what was said last counts.";

const cordon = createRoute({
  ...needsOnEnvironment("agents:drain"),
  method: "post",
  path: "/v1/agents/{environment}/{name}/cordon",
  operationId: "cordonAgent",
  tags: ["fleet"],
  summary: "Let an agent take no new work; what it runs goes on",
  description: `It hears of it at once, or with its next connection, and remembers. A drain that is under way is called off. ${TWICE}`,
  request: { params: Params, body: jsonBody(CordonAgentBody) },
  responses: { 200: json(AgentView, "The agent"), ...problems },
});

const drain = createRoute({
  ...needsOnEnvironment("agents:drain"),
  method: "post",
  path: "/v1/agents/{environment}/{name}/drain",
  operationId: "drainAgent",
  tags: ["fleet"],
  summary: "Let an agent take no new work, and end what it holds: by itself, or at a deadline",
  description: `It is drained when its \`cordon.state\` says so. ${TWICE}`,
  request: { params: Params, body: jsonBody(DrainAgentBody) },
  responses: { 200: json(AgentView, "The agent"), ...problems },
});

const uncordon = createRoute({
  ...needsOnEnvironment("agents:drain"),
  method: "post",
  path: "/v1/agents/{environment}/{name}/uncordon",
  operationId: "uncordonAgent",
  tags: ["fleet"],
  summary: "Let an agent take work again",
  description: TWICE,
  request: { params: Params },
  responses: { 200: json(AgentView, "The agent"), ...problems },
});

const listServers = createRoute({
  ...needs("fleet:view"),
  method: "get",
  path: "/v1/servers",
  operationId: "listServers",
  tags: ["fleet"],
  summary: "Replicas of the control plane, and which shards of runs each decides for",
  responses: { 200: json(z.object({ items: z.array(ServerView) }), "All of them"), ...problems },
});

const createToken = createRoute({
  ...needsOnEnvironment("agents:admit"),
  method: "post",
  path: "/v1/join-tokens",
  operationId: "createJoinToken",
  tags: ["fleet"],
  summary: "A token with which agents join an environment",
  description: "Shown once. No Idempotency-Key here: the answer is a secret and is not kept.",
  request: { body: jsonBody(JoinTokenBody) },
  responses: { 201: json(NewJoinTokenView, "The token"), ...problems },
});

const listTokens = createRoute({
  ...needs("agents:admit"),
  method: "get",
  path: "/v1/join-tokens",
  operationId: "listJoinTokens",
  tags: ["fleet"],
  summary: "Join tokens of the last 31 days, without their secrets",
  request: { query: z.object({ limit: limit(1000), cursor: Cursor }) },
  responses: { 200: json(pageOf(JoinTokenView), "A page"), ...problems },
});

const TokenId = z.object({ id: z.string().max(64) });

const getToken = createRoute({
  ...needs("agents:admit"),
  method: "get",
  path: "/v1/join-tokens/{id}",
  operationId: "getJoinToken",
  tags: ["fleet"],
  summary: "One join token, and which agents came with it",
  request: { params: TokenId },
  responses: { 200: json(JoinTokenView, "The token"), ...problems },
});

const revokeToken = createRoute({
  ...needs("agents:admit"),
  method: "delete",
  path: "/v1/join-tokens/{id}",
  operationId: "revokeJoinToken",
  tags: ["fleet"],
  summary: "Revoke a join token; it lets nobody in from then on, and agents that came with it stay",
  request: { params: TokenId },
  responses: { 200: json(JoinTokenView, "The token as it is now"), ...problems },
});

const listRequests = createRoute({
  ...needs("fleet:view"),
  method: "get",
  path: "/v1/join-requests",
  operationId: "listJoinRequests",
  tags: ["fleet"],
  summary: "Agents that wait for a person's approval",
  responses: { 200: json(z.object({ items: z.array(JoinRequestView) }), "All of them"), ...problems },
});

const decideRequest = createRoute({
  ...needsOnEnvironment("agents:admit"),
  method: "post",
  path: "/v1/join-requests/{environment}/{name}",
  operationId: "decideJoinRequest",
  tags: ["fleet"],
  summary: "Let an agent that waits join, or not",
  description: "Needs no Idempotency-Key: what is decided last counts, until the agent has its certificate.",
  request: {
    params: z.object({ environment: z.string(), name: z.string() }),
    body: jsonBody(JoinDecisionBody),
  },
  responses: { 204: { description: "Decided" }, ...problems },
});

export function fleetRoutes(
  app: OpenAPIHono<ApiEnv>,
  { fleet, agents, servers, joinTokens, joinRequests }: RouteDeps,
): void {
  const known = ({ environment, name }: { environment: string; name: string }): AgentView => {
    const agent = fleet.get(`${environment}/${name}`);
    if (agent !== undefined) return agent;
    const ids = fleet.list().map(({ id }) => id);
    throw new InsituError(
      "not-found",
      unknownName({ kind: "agent", name: `${environment}/${name}`, known: ids }),
    );
  };

  const drainable = async (asked: { environment: string; name: string }, c: Context<ApiEnv>) => {
    await demand(c, "agents:drain", onEnvironment(asked.environment));
    return known(asked);
  };

  app.openapi(list, (c) =>
    c.json(
      pageByKey(fleet.list(), (agent) => agent.id, { list: "agents", ...c.req.valid("query") }),
      200,
    ),
  );

  app.openapi(get, (c) => c.json(known(c.req.valid("param")), 200));

  app.openapi(revoke, async (c) => {
    const asked = c.req.valid("param");
    await demand(c, "agents:revoke", onEnvironment(asked.environment));
    const { environment, name } = known(asked);
    await agents.revoke({ environment, name, by: c.get("caller"), ...c.req.valid("json") });
    return c.json(known({ environment, name }), 200);
  });

  app.openapi(cordon, async (c) => {
    const { environment, name } = await drainable(c.req.valid("param"), c);
    const { reason } = c.req.valid("json");
    await agents.cordon({ environment, name, by: c.get("caller"), reason, drain: null });
    return c.json(known({ environment, name }), 200);
  });

  app.openapi(drain, async (c) => {
    const { environment, name } = await drainable(c.req.valid("param"), c);
    const { reason, ...drain } = c.req.valid("json");
    await agents.cordon({ environment, name, by: c.get("caller"), reason, drain });
    return c.json(known({ environment, name }), 200);
  });

  app.openapi(uncordon, async (c) => {
    const { environment, name } = await drainable(c.req.valid("param"), c);
    await agents.uncordon({ environment, name, by: c.get("caller") });
    return c.json(known({ environment, name }), 200);
  });

  app.openapi(listServers, (c) => c.json({ items: servers.list() }, 200));

  app.openapi(listRequests, async (c) => c.json({ items: await joinRequests.list() }, 200));

  app.openapi(decideRequest, async (c) => {
    const { approve, fingerprint } = c.req.valid("json");
    const { environment, name } = c.req.valid("param");
    if (!Name.safeParse(environment).success || !Name.safeParse(name).success)
      throw new InsituError("not-found", `no agent waits for approval as ${environment}/${name}`);
    await demand(c, "agents:admit", onEnvironment(environment));
    const by = c.get("caller");
    await joinRequests.decide({ environment, name, fingerprint, approved: approve, by });
    return c.body(null, 204);
  });

  app.openapi(createToken, async (c) => {
    await demand(c, "agents:admit", onEnvironment(c.req.valid("json").environment));
    const token = await joinTokens.create({ ...c.req.valid("json"), by: c.get("caller") });
    return c.json(token, 201);
  });

  app.openapi(listTokens, async (c) =>
    c.json(
      pageByKey(await joinTokens.list(), ({ id }) => id, { list: "join tokens", ...c.req.valid("query") }),
      200,
    ),
  );

  app.openapi(getToken, async (c) => c.json(await joinTokens.get(c.req.valid("param").id), 200));

  app.openapi(revokeToken, async (c) =>
    c.json(await joinTokens.revoke(c.req.valid("param").id, c.get("caller")), 200),
  );
}
