/** The HTTP API: guards in front, then routes, and a problem for whatever goes wrong. */
import { OpenAPIHono } from "@hono/zod-openapi";
import type { Context, MiddlewareHandler } from "hono";
import { InsituError } from "../../shared/errors.ts";
import { newId } from "../../shared/system.ts";
import { accessRoutes } from "./access-routes.ts";
import { approvalRoutes } from "./approval-routes.ts";
import { keepUnused } from "./approving.ts";
import { Attempts } from "./attempts.ts";
import { authorityRoutes } from "./authority-routes.ts";
import { findCaller } from "./caller.ts";
import type { ConsoleAssets } from "./console.ts";
import type { ApiEnv, ApiOptions, RouteDeps } from "./context.ts";
import { Cookies } from "./cookies.ts";
import { fleetRoutes } from "./fleet-routes.ts";
import { checkGuards } from "./guard.ts";
import { healthRoutes } from "./health-routes.ts";
import { idempotent } from "./idempotency.ts";
import { ledgerRoutes } from "./ledger-routes.ts";
import { openApiDocument } from "./openapi.ts";
import { poisonRoutes } from "./poison-routes.ts";
import { problemResponse, toInsituError, validationError } from "./problem.ts";
import { readJsonText } from "./request-body.ts";
import { resourceRoutes } from "./resource-routes.ts";
import { runRoutes } from "./run-routes.ts";
import type { ApiServices } from "./services.ts";
import { signInRoutes } from "./sign-in.ts";

/** Without `'unsafe-inline'` and without other hosts: a step's output that reaches the page cannot run or phone out. */
const CONSOLE_CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const API_CSP = "default-src 'none'; frame-ancestors 'none'";

/** POST paths whose answers are kept under an Idempotency-Key. */
const IDEMPOTENT_PATHS = ["/v1/apply", "/v1/runs", "/v1/runs/:id/cancel"];

/** The whole API. Opens nothing: pass it to `serveApi`, or call `app.request()`. */
export function createApi(services: ApiServices, options: ApiOptions): OpenAPIHono<ApiEnv> {
  const app = new OpenAPIHono<ApiEnv>({
    defaultHook: (result) => {
      if (!result.success) throw validationError(result.target, result.error);
    },
  });
  app.use("*", framed(options));
  app.use("*", hostGuard(options.allowedHosts));
  const { access, signIn, clock, log } = options;
  const attempts = new Attempts(options);
  const cookies = new Cookies(() => signIn?.publicUrl().protocol === "https:");
  app.use("/v1/*", async (c, next) => {
    const principal = await findCaller(c, { access, attempts, cookies, signIn });
    c.set("principal", principal);
    c.set("judge", options.judge);
    c.set("approvals", services.approvals);
    c.set("caller", principal.name);
    await next();
  });
  app.use("/v1/*", bodyReader);
  app.use("/v1/*", keepUnused(services.approvals, options.log));
  for (const path of IDEMPOTENT_PATHS) app.on("POST", path, idempotent(options.idempotency, options.log));

  const deps: RouteDeps = { ...services, ...options, heartbeatMs: options.heartbeatMs ?? 15_000 };
  addRoutes(app, deps);
  const document = JSON.stringify(openApiDocument(app));
  app.get("/v1/openapi.json", (c) => c.body(document, 200, { "content-type": "application/json" }));
  if (signIn !== undefined) signInRoutes(app, { ...signIn, attempts, cookies, clock, log });
  if (options.console !== undefined) consoleRoutes(app, options.console);

  app.notFound((c) => refuse(c, options, notFound(app, c)));
  app.onError((err, c) => refuse(c, options, toInsituError(err)));
  return app;
}

/** Everything that the description covers. Calls nothing in `deps` before a request comes. */
export function addRoutes(app: OpenAPIHono<ApiEnv>, deps: RouteDeps): void {
  healthRoutes(app, deps);
  resourceRoutes(app, deps);
  runRoutes(app, deps);
  fleetRoutes(app, deps);
  accessRoutes(app, deps);
  authorityRoutes(app, deps);
  approvalRoutes(app, deps);
  poisonRoutes(app, deps);
  ledgerRoutes(app, deps);
  checkGuards(app);
}

/** Request id, security headers and the access log, around everything else. */
function framed({ clock, log }: ApiOptions): MiddlewareHandler<ApiEnv> {
  return async (c, next) => {
    const startedMs = clock.monotonicMs();
    const requestId = newId(clock.wallMs());
    c.set("requestId", requestId);
    c.set("bodyText", "");
    await next();
    const { headers } = c.res;
    headers.set("x-request-id", requestId);
    headers.set("x-content-type-options", "nosniff");
    headers.set("x-frame-options", "DENY");
    headers.set("referrer-policy", "no-referrer");
    // RFC 6797; browsers pass over it where there is no TLS.
    if (new URL(c.req.url).protocol === "https:")
      headers.set("strict-transport-security", "max-age=31536000");
    headers.set("cross-origin-opener-policy", "same-origin");
    headers.set("cross-origin-resource-policy", "same-origin");
    if (!headers.has("content-security-policy")) headers.set("content-security-policy", API_CSP);
    if (!headers.has("cache-control")) headers.set("cache-control", "no-store");
    const durationMs = Math.round(clock.monotonicMs() - startedMs);
    log.debug(
      { requestId, method: c.req.method, path: c.req.path, status: c.res.status, durationMs },
      "request",
    );
  };
}

function hostGuard(allowed: readonly string[] | null): MiddlewareHandler<ApiEnv> {
  return async (c, next) => {
    const host = c.req.header("host") ?? new URL(c.req.url).host;
    const name = host.replace(/:\d+$/, "").toLowerCase();
    if (allowed !== null && !allowed.includes(name)) {
      throw new InsituError(
        "request.host-refused",
        `this server answers as ${allowed.join(", ")}, not as ${name}`,
      );
    }
    await next();
  };
}

/** Leaves a request whose body is plain JSON; no body reads as an empty object, whose schema says what is missing. */
const bodyReader: MiddlewareHandler<ApiEnv> = async (c, next) => {
  if (c.req.method === "POST") {
    const text = await readJsonText(c.req.raw);
    c.set("bodyText", text);
    const headers = new Headers([...c.req.raw.headers]);
    for (const name of ["content-encoding", "content-length", "transfer-encoding"]) headers.delete(name);
    headers.set("content-type", "application/json");
    c.req.raw = new Request(c.req.url, { method: "POST", headers, body: text === "" ? "{}" : text });
  }
  await next();
};

function consoleRoutes(app: OpenAPIHono<ApiEnv>, assets: ConsoleAssets): void {
  for (const [path, { body, contentType, etag }] of assets) {
    app.get(path, (c) => {
      const headers = { etag, "cache-control": "no-cache", "content-security-policy": CONSOLE_CSP };
      if (c.req.header("if-none-match") === etag) return c.body(null, 304, headers);
      return c.body(body, 200, { ...headers, "content-type": contentType });
    });
  }
}

function refuse(c: Context<ApiEnv>, { log }: ApiOptions, error: InsituError): Response {
  const requestId = c.get("requestId");
  if (error.httpStatus >= 500)
    log.error({ requestId, path: c.req.path, code: error.code, err: error }, "request failed");
  if (error.code === "auth.denied")
    log.info({ requestId, method: c.req.method, path: c.req.path, ...error.details }, "request denied");
  return problemResponse(c, error, `urn:insitu:request:${requestId}`);
}

function notFound(app: OpenAPIHono<ApiEnv>, c: Context<ApiEnv>): InsituError {
  const allowed = app.openAPIRegistry.definitions.flatMap((definition) => {
    if (definition.type !== "route" || !matches(definition.route.path, c.req.path)) return [];
    return [definition.route.method.toUpperCase()];
  });
  if (allowed.length === 0)
    return new InsituError("not-found", `there is nothing at ${c.req.path}; see /v1/openapi.json`);
  const methods = [
    ...new Set(allowed.flatMap((method) => (method === "GET" ? ["GET", "HEAD"] : [method]))),
  ].sort();
  c.header("allow", methods.join(", "));
  return new InsituError("request.method-not-allowed", `${c.req.path} answers to ${methods.join(", ")}`);
}

/** @param template such as `/v1/runs/{id}` */
function matches(template: string, path: string): boolean {
  const want = template.split("/");
  const got = path.split("/");
  return (
    want.length === got.length &&
    want.every((part, i) => part === got[i] || (part.startsWith("{") && got[i] !== ""))
  );
}
