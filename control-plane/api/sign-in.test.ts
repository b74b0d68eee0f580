/** Cookies, their origin, and failed attempts: over HTTP, with sessions in a real nats-server. */
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { createFirstAdmin, type FirstAdmin, FirstAdminRecord } from "../access/first-admin.ts";
import { createSessions, SessionRecord, type Sessions } from "../access/sessions.ts";
import { openKv } from "../store/kv.ts";
import { TOKEN, testApi } from "./api.fixture.ts";
import { type ApiServer, serveApi } from "./serve.ts";

const log = pino({ level: "silent" });
let nats: TestNats;
let connection: NatsConnection;
let sessions: Sessions;
let firstAdmin: FirstAdmin;
let server: ApiServer;
let origin: string;
let publicUrl: URL | null;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  const clock = systemClock;
  const sessionKv = await openKv(connection, { clock, bucket: "sessions", schema: SessionRecord });
  sessions = createSessions({ kv: sessionKv, clock, log, principalOf: () => null });
  const firstAdminKv = await openKv(connection, { clock, bucket: "first-admin", schema: FirstAdminRecord });
  firstAdmin = createFirstAdmin({ kv: firstAdminKv, clock });
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});
beforeEach(async () => {
  publicUrl = null;
  const { app } = testApi({
    signIn: { sessions, firstAdmin, provider: null, publicUrl: () => publicUrl ?? new URL(server.url) },
  });
  const trustedProxies = ["127.0.0.0/8"];
  server = serveApi(app, { host: "127.0.0.1", port: 0, clock: systemClock, trustedProxies });
  await server.start(new AbortController().signal);
  origin = server.url;
});
afterEach(() => server.close());

function call(
  path: string,
  headers: Record<string, string>,
  method = "GET",
  body?: object,
): Promise<Response> {
  const content = body === undefined ? {} : { "content-type": "application/json" };
  return fetch(origin + path, {
    method,
    headers: { ...content, ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
}

async function cookie(): Promise<string> {
  return `insitu=${(await sessions.open("cookie", null)).secret}`;
}

describe("with the cookie, a change", () => {
  test.each<[string, Record<string, string>, number]>([
    ["from our own page", { "sec-fetch-site": "same-origin" }, 201],
    ["from our own page in an old browser", { origin: "SELF" }, 201],
    ["from another site", { "sec-fetch-site": "cross-site", origin: "https://evil.example" }, 403],
    ["from another site that lies of its origin", { "sec-fetch-site": "cross-site", origin: "SELF" }, 403],
    ["from a host beside ours", { "sec-fetch-site": "same-site" }, 403],
    ["from a bookmark", { "sec-fetch-site": "none" }, 403],
    ["from another site in an old browser", { origin: "https://evil.example" }, 403],
    ["from a sandboxed frame", { origin: "null" }, 403],
    ["from who knows where", {}, 403],
  ])("%s", async (_what, given, status) => {
    const headers: Record<string, string> = { cookie: await cookie(), ...given };
    if (given.origin === "SELF") headers.origin = origin;
    const answer = await call("/v1/runs", headers, "POST", { pipeline: "penguins" });
    expect(answer.status).toBe(status);
  });

  test("is judged by the token alone when there is one", async () => {
    const headers = {
      cookie: await cookie(),
      "sec-fetch-site": "same-origin",
      authorization: "Bearer wrong",
    };
    expect((await call("/v1/runs", headers)).status).toBe(401);
    headers.authorization = "";
    expect((await call("/v1/runs", headers)).status).toBe(401);
  });

  test("reads for the page and for who types the address in, and for no other site", async () => {
    const own = await cookie();
    for (const [site, status] of [
      ["same-origin", 200],
      ["none", 200],
      ["cross-site", 403],
      ["same-site", 403],
    ] as const)
      expect((await call("/v1/runs", { cookie: own, "sec-fetch-site": site })).status, site).toBe(status);
    expect((await call("/v1/runs", { cookie: own })).status).toBe(200);
  });
});

test("a cookie that is good no more is taken back, and the answer is that of one that never was", async () => {
  const own = await cookie();
  await sessions.close("cookie", own.slice("insitu=".length));
  const ended = await call("/v1/runs", { cookie: own });
  const never = await call("/v1/runs", { cookie: `insitu=${"n".repeat(43)}` });
  expect([ended.status, never.status]).toEqual([401, 401]);
  const [one, other] = [await ended.json(), await never.json()] as { detail: string }[];
  expect(one!.detail).toBe(other!.detail);
  expect(ended.headers.get("set-cookie")).toMatch(/^insitu=;.*Max-Age=0/);
});

test("over TLS the cookie is bound to this host, and only then", async () => {
  const page = { "sec-fetch-site": "same-origin" };
  const secret = (await firstAdmin.offer({ firstStart: true, hasAdmin: false }))!;
  const wrong = await call("/auth/first-admin", page, "POST", { secret: `${secret}x` });
  expect(wrong.status).toBe(401);
  expect(wrong.headers.get("set-cookie")).toBeNull();
  expect((await call("/auth/first-admin", {}, "POST", { secret })).status).toBe(403);
  publicUrl = new URL("https://insitu.example.org");
  const answer = await call("/auth/first-admin", page, "POST", { secret });
  expect(answer.status).toBe(204);
  const set = answer.headers.get("set-cookie") ?? "";
  expect(set).toMatch(/^__Host-insitu=[\w-]{43}; Path=\/; HttpOnly; Secure; SameSite=Lax$/);
  const pair = set.slice(0, set.indexOf(";"));
  const me = await call("/v1/access/whoami", { cookie: pair, origin: "https://insitu.example.org" });
  expect(await me.json()).toMatchObject({ name: "link:first-admin", grants: [{ role: "admin" }] });
  expect((await call("/v1/access/whoami", { cookie: pair.replace("__Host-", "") })).status).toBe(401);
  expect((await call("/auth/first-admin", page, "POST", { secret })).status).toBe(401);
});

describe("failed attempts", () => {
  const from = (address: string, token: string) => ({
    "x-forwarded-for": address,
    authorization: `Bearer ${token}`,
  });

  test("are limited for their address, whatever they tried, and not for those who have shown a good token", async () => {
    expect((await call("/v1/runs", from("192.0.2.1", TOKEN))).status).toBe(200);
    const statuses: number[] = [];
    for (let i = 0; i < 22; i++)
      statuses.push((await call("/v1/runs", from("192.0.2.1", `guess-${i}`))).status);
    expect(statuses.slice(0, 20)).toEqual(Array(20).fill(401));
    expect(statuses.at(-1)).toBe(429);
    const limited = await call("/v1/runs", from("192.0.2.1", "guess"));
    expect(Number(limited.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await limited.text()).not.toContain("guess");
    const own = { cookie: await cookie(), "x-forwarded-for": "192.0.2.1" };
    expect((await call("/v1/runs", own)).status).toBe(429);
    const link = { "x-forwarded-for": "192.0.2.1", "sec-fetch-site": "same-origin" };
    expect((await call("/auth/first-admin", link, "POST", { secret: "s" })).status).toBe(429);
    expect((await call("/v1/runs", from("192.0.2.1", TOKEN))).status).toBe(200);
    expect((await call("/v1/runs", from("192.0.2.2", TOKEN))).status).toBe(200);
  });

  test("of who shows nothing are none", async () => {
    for (let i = 0; i < 25; i++) expect((await call("/v1/runs", {})).status).toBe(401);
  });
});

test("without an identity provider the console offers tokens, and nothing hangs", async () => {
  expect(await (await call("/auth/config", {})).json()).toEqual({ oidc: null });
  const away = await fetch(`${origin}/auth/sign-in`, { redirect: "manual" });
  expect(away.headers.get("location")).toBe(`${origin}/#/sign-in/broken`);
  expect((await call("/auth/device", {}, "POST", {})).status).toBe(404);
  expect((await call("/auth/sign-out", {}, "POST")).status).toBe(204);
});
