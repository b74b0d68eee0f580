/** Signing in and out: `/auth/…`. Open to all, so what fails is counted, and says nothing of who or what is known here. */
import type { Context, Hono } from "hono";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { FirstAdmin } from "../access/first-admin.ts";
import type { IdentityProvider } from "../access/identity-provider.ts";
import type { Person } from "../access/people.ts";
import type { Sessions } from "../access/sessions.ts";
import { RateLimit } from "../gateway/rate-limit.ts";
import { bearerOf } from "./access.ts";
import { type Attempts, peerOf, tooMany } from "./attempts.ts";
import type { ApiEnv, ApiOptions } from "./context.ts";
import type { Cookies } from "./cookies.ts";
import { readJsonText } from "./request-body.ts";
import { demandSameOrigin } from "./same-origin.ts";

export interface SignIn {
  sessions: Sessions;
  /** null: none is configured. */
  provider: IdentityProvider | null;
  firstAdmin: FirstAdmin;
  /** Under which people open the console. */
  publicUrl(): URL;
}

export interface SignInDeps extends SignIn, Pick<ApiOptions, "log" | "clock"> {
  attempts: Attempts;
  cookies: Cookies;
}

export const CALLBACK_PATH = "/auth/callback";
const BODY_MAX_BYTES = 16 * 1024;
/** Each makes the server ask the identity provider. */
const DEVICE_RATE = { burst: 30, refillMs: 1_000, maxAddresses: 10_000 };

/** Why it did not work, in the console's address: a word of ours, so that no link can make the console say anything else. */
type Failure = "away" | "refused" | "unfinished" | "too-often" | "broken";

export function signInRoutes(app: Hono<ApiEnv>, deps: SignInDeps): void {
  const { sessions, provider, firstAdmin, publicUrl, attempts, cookies, log } = deps;

  app.get("/auth/config", (c) =>
    c.json({
      oidc: provider && { issuer: provider.issuer, signInUrl: new URL("/auth/sign-in", publicUrl()).href },
    }),
  );

  app.get("/auth/sign-in", (c) =>
    navigation(c, deps, async () => {
      const { url, ...pending } = await demandProvider(provider).begin(callbackUrl(deps).href);
      cookies.keepPending(c, pending);
      return url;
    }),
  );

  app.get(CALLBACK_PATH, (c) =>
    navigation(c, deps, async () => {
      const pending = cookies.takePending(c);
      const person = await attempts.make(c, null, async () => {
        if (pending === null) throw unfinished();
        const callback = callbackUrl(deps);
        callback.search = new URL(c.req.url).search;
        return await demandProvider(provider).finish(callback, pending);
      });
      await startSession(c, deps, person);
      return new URL("/", publicUrl()).href;
    }),
  );

  app.post("/auth/sign-out", async (c) => {
    const token = bearerOf(c.req.header("authorization"));
    const secret = cookies.session(c);
    if (token !== undefined) await sessions.close("bearer", token);
    else if (secret !== undefined) {
      demandSameOrigin(c, publicUrl().origin);
      await sessions.close("cookie", secret);
      cookies.dropSession(c);
    }
    return c.body(null, 204);
  });

  app.post("/auth/first-admin", async (c) => {
    demandSameOrigin(c, publicUrl().origin);
    const { secret } = await bodyOf(c, z.strictObject({ secret: z.string().max(128) }));
    await attempts.make(c, null, () => firstAdmin.redeem(secret).then(() => true));
    log.warn({ peer: peerOf(c) }, "first administrator signed in by the link");
    await startSession(c, deps, null);
    return c.body(null, 204);
  });

  const devices = new RateLimit(DEVICE_RATE);
  const demandCalm = (c: Context<ApiEnv>): void => {
    const peer = peerOf(c);
    if (peer !== undefined && !devices.take(peer, deps.clock.monotonicMs()))
      throw tooMany(DEVICE_RATE.refillMs);
  };

  app.post("/auth/device", async (c) => {
    demandCalm(c);
    return c.json(await demandProvider(provider).beginDevice());
  });

  app.post("/auth/device/token", async (c) => {
    demandCalm(c);
    const { deviceCode } = await bodyOf(c, z.strictObject({ deviceCode: z.string().min(1).max(4096) }));
    const answer = await attempts.make(c, null, () => demandProvider(provider).askDevice(deviceCode));
    if (answer?.kind !== "person") return c.json({ status: answer?.kind ?? "waiting" }, 202);
    const { secret, expiresAtMs } = await sessions.open("bearer", answer.person);
    log.info({ caller: `oidc:${answer.person.subject}`, carrier: "bearer" }, "signed in");
    return c.json({ token: secret, expiresAtMs }, 200);
  });
}

/** A new secret each time, and an end to the session that was there: what was planted before is worth nothing after. */
async function startSession(c: Context<ApiEnv>, deps: SignInDeps, person: Person | null): Promise<void> {
  const { sessions, cookies, log } = deps;
  const before = cookies.session(c);
  const { secret } = await sessions.open("cookie", person);
  if (before !== undefined) await sessions.close("cookie", before);
  cookies.keepSession(c, secret);
  if (person !== null) log.info({ caller: `oidc:${person.subject}`, carrier: "cookie" }, "signed in");
}

/** A person waits for a page: what fails leads to the console, which says why. */
async function navigation(
  c: Context<ApiEnv>,
  { publicUrl, log }: SignInDeps,
  go: () => Promise<string>,
): Promise<Response> {
  try {
    return c.redirect(await go(), 303);
  } catch (thrown) {
    const error = InsituError.from(thrown);
    // What counts as a failed attempt is in the log already.
    if (error.code !== "auth.missing" && error.code !== "limit.exceeded")
      log.warn({ requestId: c.get("requestId"), path: c.req.path, err: error }, "sign-in failed");
    return c.redirect(new URL(`/#/sign-in/${failureOf(error)}`, publicUrl()).href, 303);
  }
}

function failureOf({ code, details }: InsituError): Failure {
  if (code === "limit.exceeded") return "too-often";
  if (code === "auth.missing") return details.unfinished === true ? "unfinished" : "refused";
  return code === "unavailable" || code === "store.unavailable" ? "away" : "broken";
}

function unfinished(): InsituError {
  return new InsituError("auth.missing", "this browser has begun no sign-in that this would be the end of", {
    details: { unfinished: true },
  });
}

function callbackUrl({ publicUrl }: SignIn): URL {
  return new URL(CALLBACK_PATH, publicUrl());
}

function demandProvider(provider: IdentityProvider | null): IdentityProvider {
  if (provider !== null) return provider;
  throw new InsituError("not-found", "this server has no identity provider; it takes tokens");
}

async function bodyOf<T>(c: Context<ApiEnv>, schema: z.ZodType<T>): Promise<T> {
  const text = await readJsonText(c.req.raw, BODY_MAX_BYTES);
  const parsed = schema.safeParse(JSON.parse(text === "" ? "{}" : text));
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new InsituError(
    "request.invalid",
    `the body is not valid: ${issue?.path.join(".")} ${issue?.message}`,
  );
}
