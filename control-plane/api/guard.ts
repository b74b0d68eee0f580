/**
 * Which right each route needs. It is declared in the route, shows in the API's description, and is checked before
 * the request's parameters are looked at; an API with a route that declares none does not start.
 */
import type { OpenAPIHono } from "@hono/zod-openapi";
import type { Context, MiddlewareHandler } from "hono";
import { invariant } from "../../shared/errors.ts";
import { type Decision, denied, type Question, type Target } from "../access/access-decision.ts";
import type { Right } from "../access/rights.ts";
import { approve } from "./approving.ts";
import type { ApiEnv } from "./context.ts";

const RIGHT = "x-insitu-right";
/** Enough to know who calls. */
export const SIGNED_IN = { [RIGHT]: "signed-in" } as const;

type Guard = MiddlewareHandler<ApiEnv>;
/** One thing that a request needs to be allowed. */
export type Need = Omit<Question, "principal">;

/** The right over everything: a grant over some pipelines does not do. */
export function needs(right: Right) {
  const guard: Guard = async (c, next) => {
    await demand(c, right, null);
    await next();
  };
  return { [RIGHT]: right, middleware: [guard] as Guard[] };
}

/** The right over at least one pipeline. Which one it is about, the handler finds out, and must ask `demand` or `covers`. */
export function needsOnPipeline(right: Right) {
  return { ...needsSomewhere(right, "pipeline"), "x-insitu-scope": "pipeline" };
}

/** The right over at least one environment; the handler asks for the one that it is about. */
export function needsOnEnvironment(right: Right) {
  return { ...needsSomewhere(right, "environment"), "x-insitu-scope": "environment" };
}

function needsSomewhere(right: Right, kind: "pipeline" | "environment", or?: Right) {
  const guard: Guard = async (c, next) => {
    const [principal, judge] = [c.get("principal"), c.get("judge")];
    const other = or !== undefined && decideOn(c, { right: or, target: null }).verdict !== "no";
    if (!other && !judge.anywhere(principal, right, kind)) throw denied({ principal, right, target: null });
    await next();
  };
  return { [RIGHT]: right, middleware: [guard] as Guard[] };
}

/** Applying: what a set is about is known when it has been read, and each document needs the right for its kind. */
export const needsToApply = needsSomewhere("resources:apply", "pipeline", "access:edit");

/**
 * Resolves when the caller may: by itself, or because a second person has approved this request.
 *
 * @throws InsituError `auth.denied`, which names the right; `approval.needed`
 */
export function demand(c: Context<ApiEnv>, right: Right, target: Target): Promise<void> {
  return demandAll(c, [{ right, target }]);
}

/** All of them; one approval stands for all. */
export async function demandAll(c: Context<ApiEnv>, wanted: readonly Need[]): Promise<void> {
  const decided = wanted.map((need) => ({ need, ...decideOn(c, need) }));
  for (const { need, verdict, because } of decided) {
    if (verdict !== "no") continue;
    const { right, target } = need;
    const question = { principal: c.get("principal"), right, target };
    throw denied(question, mayKnow(c, target) ? because : undefined);
  }
  const open = decided.filter(({ verdict }) => verdict === "with-approval");
  if (open.length > 0) await approve(c, open);
}

export function decideOn(c: Context<ApiEnv>, need: Need): Decision {
  return c.get("judge").decide({ ...need, principal: c.get("principal") });
}

/** Whether the caller has the right there by itself. What it may not view is answered like what is not there. */
export function covers(c: Context<ApiEnv>, right: Right, target: Target): boolean {
  return decideOn(c, { right, target }).verdict === "yes";
}

/** A rule that decided may rest on what somebody may not know of a pipeline. */
function mayKnow(c: Context<ApiEnv>, target: Target): boolean {
  return target?.kind !== "pipeline" || covers(c, "resources:view", target);
}

export function onPipeline(name: string): Target {
  return { kind: "pipeline", name };
}

export function onEnvironment(name: string): Target {
  return { kind: "environment", name };
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
