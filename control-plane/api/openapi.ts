/** The API's description, from the routes themselves. `docs/openapi.json` is a copy of it that CI compares. */
import type { OpenAPIHono } from "@hono/zod-openapi";
import type { ApiEnv } from "./context.ts";

export function openApiDocument(app: OpenAPIHono<ApiEnv>): object {
  app.openAPIRegistry.registerComponent("securitySchemes", "bearer", { type: "http", scheme: "bearer" });
  return app.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "Insitu",
      version: "1",
      description:
        "Runs pipelines across networks that data may not leave. Every error is a problem (RFC 9457) with a `code` " +
        "that never changes its meaning. Times are milliseconds since the Unix epoch.",
      license: { name: "Apache-2.0" },
    },
    servers: [{ url: "/" }],
    security: [{ bearer: [] }],
    tags: [
      { name: "resources" },
      { name: "runs" },
      { name: "fleet" },
      { name: "access" },
      { name: "health" },
    ],
  });
}
