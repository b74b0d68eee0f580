/** Where a second person's approval stands between a caller and what it asks for. */
import type { Context, MiddlewareHandler } from "hono";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Decision } from "../access/access-decision.ts";
import { coversNeeds } from "../access/approvals.ts";
import type { ApiEnv } from "./context.ts";
import type { Need } from "./guard.ts";
import type { Approvals } from "./services.ts";

/**
 * Resolves when a second person has approved this request, and uses that up; the two names are the caller's from then
 * on. A request that needs several rights needs one approval for all, so they are asked for together.
 *
 * @throws InsituError `approval.needed`, `auth.denied` when it was refused
 */
export async function approve(
  c: Context<ApiEnv>,
  open: readonly (Decision & { need: Need })[],
): Promise<void> {
  const principal = c.get("principal");
  const needs = distinct(open.map(({ need }) => need));
  const given = c.get("approval");
  if (given !== undefined) {
    if (coversNeeds(given, needs)) return;
    const message = `what the request needs has changed since ${given.decision?.by} approved it; send it again`;
    throw new InsituError("conflict", message);
  }
  const url = new URL(c.req.url);
  const { verdict, record } = await c.get("approvals").ask({
    principal,
    method: c.req.method,
    path: url.pathname + url.search,
    body: c.get("bodyText"),
    needs,
    because: open[0]?.because ?? "",
  });
  if (verdict === "take") {
    c.set("approval", record);
    c.set("caller", `${principal.name}, approved by ${record.decision?.by}`);
    return;
  }
  const rights = [...new Set(needs.map(({ right }) => right))].join(", ");
  if (verdict === "denied") {
    const { by, reason } = record.decision ?? { by: "", reason: "" };
    throw new InsituError(
      "auth.denied",
      `${by} has denied this request${reason === "" ? "" : ` (${reason})`}; it can be asked for again after ${new Date(record.expiresAtMs).toISOString()}`,
      { details: { right: rights, caller: principal.name } },
    );
  }
  throw new InsituError(
    "approval.needed",
    `this waits for a second person (right ${rights}): ${open[0]?.because}. Somebody else who has the right runs ` +
      `\`insitu approvals approve ${record.id}\` before ${new Date(record.expiresAtMs).toISOString()}; ` +
      "then send the same request again",
    { details: { approval: { id: record.id, expiresAtMs: record.expiresAtMs } } },
  );
}

/** A set of a hundred documents mostly needs the same right a hundred times. */
function distinct(needs: readonly Need[]): Need[] {
  return [...new Map(needs.map((need) => [JSON.stringify(need), need])).values()];
}

/** An approved request that was refused all the same had no effect: the approval stays good for the next try. */
export function keepUnused(approvals: Approvals, log: Pick<Logger, "warn">): MiddlewareHandler<ApiEnv> {
  return async (c, next) => {
    await next();
    const approval = c.get("approval");
    const { status } = c.res;
    if (approval === undefined || status < 400 || status >= 499) return;
    await approvals
      .giveBack(approval)
      .catch((err: unknown) => log.warn({ err, approvalId: approval.id }, "approval not given back"));
  };
}
