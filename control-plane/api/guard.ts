/**
 * Which right each route needs. It is declared in the route, shows in the API's description, and is checked before
 * the request's parameters are looked at; an API with a route that declares none does not start.
 */
import type { OpenAPIHono } from "@hono/zod-openapi";
import type { Context, MiddlewareHandler } from "hono";
import { invariant } from "../../shared/errors.ts";
import { denied, may, type Right, reach } from "../access/rights.ts";
import type { ApiEnv } from "./context.ts";

const RIGHT = "x-insitu-right";
/** Enough to know who calls. */
export const SIGNED_IN = { [RIGHT]: "signed-in" } as const;

type Guard = MiddlewareHandler<ApiEnv>;

/** The right over everything: a grant over some pipelines does not do. */
export function needs(right: Right) {
  const guard: Guard = async (c, next) => {
    demand(c, right, null);
    await next();
  };
  return { [RIGHT]: right, middleware: [guard] as Guard[] };
}

/** The right over at least one pipeline. Which one it is about, the handler finds out, and must ask `demand` or `covers`. */
export function needsOnPipeline(right: Right) {
  const guard: Guard = async (c, next) => {
    const principal = c.get("principal");
    if (reach(principal, right)?.length === 0) throw denied(principal, right, null);
    await next();
  };
  return { [RIGHT]: right, "x-insitu-scope": "pipeline", middleware: [guard] as Guard[] };
}

/** @throws InsituError `auth.denied`, which names the right */
export function demand(c: Context<ApiEnv>, right: Right, pipeline: string | null): void {
  const principal = c.get("principal");
  if (!may(principal, right, pipeline)) throw denied(principal, right, pipeline);
}

/** Whether the caller has the right there. What it may not view is answered like what is not there. */
export function covers(c: Context<ApiEnv>, right: Right, pipeline: string | null): boolean {
  return may(c.get("principal"), right, pipeline);
}

/** Every route that is not open to all says what it needs. Call it once all routes are there. */
export function checkGuards(app: OpenAPIHono<ApiEnv>): void {
  for (const definition of app.openAPIRegistry.definitions) {
    if (definition.type !== "route") continue;
    const { method, path, security } = definition.route;
    const open = security?.length === 0 && !path.startsWith("/v1/");
    const right: unknown = (definition.route as Record<string, unknown>)[RIGHT];
    invariant(open || typeof right === "string", `${method} ${path} declares no right`);
  }
}
