/** What the routes have in common: how they are described, and how a list is asked for. */
import { type RouteConfig, z } from "@hono/zod-openapi";
import { Problem } from "./schemas.ts";

export function json<T extends z.ZodType>(schema: T, description: string) {
  return { content: { "application/json": { schema } }, description };
}

export function jsonBody<T extends z.ZodType>(schema: T) {
  return { content: { "application/json": { schema } }, required: true } as const;
}

/** Every route may answer with a problem. */
export const problems = {
  default: {
    content: { "application/problem+json": { schema: Problem } },
    description: "What went wrong, RFC 9457",
  },
} satisfies RouteConfig["responses"];

export const Cursor = z
  .string()
  .max(1024)
  .optional()
  .openapi({ description: "`nextCursor` of the page before; opaque, and only good with the same filters" });

export function limit(fallback: number) {
  return z.coerce
    .number()
    .int()
    .min(1)
    .max(1000)
    .default(fallback)
    .openapi({ description: "Items in a page" });
}

export const flag = z.enum(["true", "false"]).default("false");

export const IdempotencyHeaders = z.object({
  "idempotency-key": z.string().max(255).optional().openapi({
    description:
      "The same key with the same request has one effect for a day; with another request it is refused",
  }),
});
