/** Where a second person's approval stands between a caller and what it asks for. */
import type { Context } from "hono";
import type { Decision } from "../access/access-decision.ts";
import { denied } from "../access/access-decision.ts";
import type { ApiEnv } from "./context.ts";
import type { Need } from "./guard.ts";

export async function approve(
  c: Context<ApiEnv>,
  open: readonly (Decision & { need: Need })[],
): Promise<void> {
  const [first] = open;
  if (first === undefined) return;
  throw denied({ principal: c.get("principal"), ...first.need }, `${first.because} without a second person`);
}
