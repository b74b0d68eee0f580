/** Messages that nobody could make sense of: what was set aside, and why. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { needs } from "./guard.ts";
import { json, problems } from "./routes.ts";
import { PoisonDetail, PoisonView } from "./schemas.ts";

const params = z.object({ id: z.coerce.number().int().min(1) });

const list = createRoute({
  ...needs("fleet:view"),
  method: "get",
  path: "/v1/poison",
  operationId: "listPoison",
  tags: ["fleet"],
  summary: "Messages that were set aside, oldest first",
  responses: { 200: json(z.object({ items: z.array(PoisonView) }), "All of them"), ...problems },
});

const get = createRoute({
  // It may hold a piece of any log, and what a bucket is to keep to itself.
  ...needs("poison:manage"),
  method: "get",
  path: "/v1/poison/{id}",
  operationId: "getPoison",
  tags: ["fleet"],
  summary: "One of them, with what it held",
  request: { params },
  responses: { 200: json(PoisonDetail, "The copy"), ...problems },
});

const drop = createRoute({
  ...needs("poison:manage"),
  method: "delete",
  path: "/v1/poison/{id}",
  operationId: "dropPoison",
  tags: ["fleet"],
  summary: "Forgets a copy",
  description: "What it was a copy of stays as it is.",
  request: { params },
  responses: { 204: { description: "It is gone" }, ...problems },
});

export function poisonRoutes(app: OpenAPIHono<ApiEnv>, { poison }: RouteDeps): void {
  app.openapi(list, async (c) => c.json({ items: await poison.list() }, 200));

  app.openapi(get, async (c) => {
    const { data, ...about } = await poison.get(c.req.valid("param").id);
    return c.json({ ...about, data: Buffer.from(data).toString("base64") }, 200);
  });

  app.openapi(drop, async (c) => {
    await poison.drop(c.req.valid("param").id);
    return c.body(null, 204);
  });
}
