/**
 * Whether a request that a browser sends with our cookie comes from our own pages.
 *
 * A browser says so in `Sec-Fetch-Site`, and in `Origin`; no page can make it say something else. What says neither may
 * read, as any page that another site leads to may be read, and change nothing.
 */
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import type { ApiEnv } from "./context.ts";

const READS = new Set(["GET", "HEAD"]);

/** @param publicOrigin under which the console is opened, such as `https://insitu.example.org`. @throws `auth.denied` */
export function demandSameOrigin(c: Context<ApiEnv>, publicOrigin: string): void {
  const site = c.req.header("sec-fetch-site");
  const reads = READS.has(c.req.method);
  const allowed =
    site === undefined
      ? originFits(c, publicOrigin, reads)
      : site === "same-origin" || (reads && site === "none");
  if (allowed) return;
  throw new InsituError(
    "auth.denied",
    "with the console's cookie a request must come from the console's own pages; programs send Authorization: Bearer <token>",
  );
}

function originFits(c: Context<ApiEnv>, publicOrigin: string, reads: boolean): boolean {
  const origin = c.req.header("origin");
  if (origin === undefined) return reads;
  // What a browser says of the address it called is in Host, whose names are checked where that matters.
  return origin === publicOrigin || origin === new URL(c.req.url).origin;
}
