/** Who calls: by a bearer token, or by the console's cookie when there is none. */
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import type { Principal } from "../access/rights.ts";
import { bearerOf } from "./access.ts";
import type { Attempts } from "./attempts.ts";
import type { ApiEnv, ApiOptions } from "./context.ts";
import type { Cookies } from "./cookies.ts";
import { demandSameOrigin } from "./same-origin.ts";

export interface CallerDeps extends Pick<ApiOptions, "access"> {
  signIn: ApiOptions["signIn"] | undefined;
  attempts: Attempts;
  cookies: Cookies;
}

/** @throws InsituError `auth.missing`, `auth.denied` for a cookie from elsewhere, `limit.exceeded`, `store.unavailable` */
export async function findCaller(c: Context<ApiEnv>, deps: CallerDeps): Promise<Principal> {
  const { access, attempts, cookies, signIn } = deps;
  const authorization = c.req.header("authorization");
  if (authorization !== undefined) {
    const token = bearerOf(authorization);
    if (token === undefined) throw refused("there is no bearer token in the request");
    const principal = await attempts.make(c, token, () => access.authenticate(token));
    if (principal !== null) return principal;
    throw refused("the bearer token is not known, or has expired or been revoked");
  }
  const secret = signIn && cookies.session(c);
  if (signIn === undefined || secret === undefined) throw refused("there is no bearer token in the request");
  demandSameOrigin(c, signIn.publicUrl().origin);
  const principal = await attempts.make(c, secret, () => signIn.sessions.authenticate("cookie", secret));
  if (principal !== null) return principal;
  cookies.dropSession(c);
  throw new InsituError("auth.missing", "the session has ended; sign in again");
}

function refused(why: string): InsituError {
  return new InsituError(
    "auth.missing",
    `${why}; send Authorization: Bearer <token>, see context.json of the server or \`insitu tokens create\``,
  );
}
