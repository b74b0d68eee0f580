/** What a load balancer and a person ask first. Open to anyone who reaches the port. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { PROTOCOL_MAJOR, PROTOCOL_MINOR, SOFTWARE_VERSION } from "../../shared/wire/protocol.ts";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { json, problems } from "./routes.ts";
import { VersionView } from "./schemas.ts";

const Health = z
  .object({ status: z.string(), checks: z.record(z.string(), z.boolean()).optional() })
  .openapi("Health");
const open = { tags: ["health"], security: [] };

const live = createRoute({
  ...open,
  method: "get",
  path: "/livez",
  operationId: "livez",
  summary: "The process answers",
  responses: { 200: json(Health, "It does"), ...problems },
});

const ready = createRoute({
  ...open,
  method: "get",
  path: "/readyz",
  operationId: "readyz",
  summary: "The replica can serve",
  request: {
    query: z.object({ verbose: z.string().optional().openapi({ description: "Set: also each check" }) }),
  },
  responses: { 200: json(Health, "It can"), 503: json(Health, "It cannot now"), ...problems },
});

const version = createRoute({
  ...open,
  method: "get",
  path: "/version",
  operationId: "version",
  summary: "What runs here",
  responses: { 200: json(VersionView, "The versions"), ...problems },
});

export function healthRoutes(app: OpenAPIHono<ApiEnv>, deps: RouteDeps): void {
  app.openapi(live, (c) => c.json({ status: "ok" }, 200));

  app.openapi(ready, (c) => {
    const checks = { ...deps.readiness(), serving: !deps.stopping.aborted };
    const ok = Object.values(checks).every((value) => value);
    const verbose = c.req.valid("query").verbose !== undefined;
    return c.json({ status: ok ? "ok" : "not ready", ...(verbose ? { checks } : {}) }, ok ? 200 : 503);
  });

  const protocol = { major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR };
  app.openapi(version, (c) => c.json({ software: `insitu ${SOFTWARE_VERSION}`, protocol }, 200));
}
