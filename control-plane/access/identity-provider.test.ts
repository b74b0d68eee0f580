/** Against a provider on loopback that lies in every way that a token can. */
import { createHmac, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { ManualClock } from "../api/manual-clock.fixture.ts";
import { type IdentityProvider, openIdProvider, type PendingSignIn } from "./identity-provider.ts";

const REDIRECT = "http://127.0.0.1:7070/auth/callback";
const ours = generateKeyPairSync("rsa", { modulusLength: 2048 });
const another = generateKeyPairSync("rsa", { modulusLength: 2048 });

type Claims = Record<string, unknown>;

/** What its endpoints answer; each test changes what it is about. */
class Liar {
  server!: Server;
  issuer = "";
  described: Claims = {};
  claims: Claims = {};
  userinfo: Claims = { sub: "ada", email: "ada@example.org", groups: ["ops"] };
  token: (claims: Claims) => string | undefined = (claims) =>
    jwt({ alg: "RS256", kid: "1" }, claims, ours.privateKey);
  error: string | null = null;
  asked: string[] = [];
  encoding: string | null = null;
  padding = "";
  verificationUri = "https://id.example.org/d";

  async start(port = 0): Promise<void> {
    this.server = createServer((request, response) => void this.#answer(request, response));
    this.server.listen(port, "127.0.0.1");
    await once(this.server, "listening");
    this.issuer = `http://127.0.0.1:${(this.server.address() as { port: number }).port}`;
  }

  async stop(): Promise<void> {
    this.server.close();
    this.server.closeAllConnections();
    await once(this.server, "close");
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let body = "";
    for await (const chunk of request) body += String(chunk);
    const { pathname } = new URL(request.url ?? "", this.issuer);
    this.asked.push(`${pathname} ${body}`);
    response.setHeader("content-type", "application/json");
    if (this.encoding !== null) response.setHeader("content-encoding", this.encoding);
    if (pathname === "/token" && this.error !== null) response.statusCode = 400;
    response.end(JSON.stringify(this.#body(pathname)) + this.padding);
  }

  #body(pathname: string): Claims {
    if (pathname === "/jwks")
      return { keys: [{ ...ours.publicKey.export({ format: "jwk" }), kid: "1", alg: "RS256" }] };
    if (pathname === "/userinfo") return this.userinfo;
    if (pathname === "/device")
      return {
        device_code: "d",
        user_code: "AB-CD",
        verification_uri: this.verificationUri,
        expires_in: 60,
      };
    if (pathname !== "/token") return this.#description();
    if (this.error !== null) return { error: this.error };
    const id_token = this.token(this.claims);
    return { access_token: "a", token_type: "Bearer", ...(id_token === undefined ? {} : { id_token }) };
  }

  #description(): Claims {
    const { issuer } = this;
    return {
      issuer,
      authorization_endpoint: `${issuer}/authorize`,
      token_endpoint: `${issuer}/token`,
      userinfo_endpoint: `${issuer}/userinfo`,
      device_authorization_endpoint: `${issuer}/device`,
      jwks_uri: `${issuer}/jwks`,
      id_token_signing_alg_values_supported: ["RS256", "HS256", "none"],
      ...this.described,
    };
  }
}

let liar: Liar;
beforeEach(async () => {
  liar = new Liar();
  await liar.start();
});
afterEach(() => liar.stop());

function open(clock = systemClock): IdentityProvider {
  return openIdProvider({
    issuer: liar.issuer,
    clientId: "insitu",
    clientSecret: "shared",
    scopes: ["openid", "email"],
    groupsClaim: "groups",
    ca: undefined,
    clock,
    log: pino({ level: "silent" }),
  });
}

/** Up to the way back, with a token that is right. */
async function begin(): Promise<{ provider: IdentityProvider; pending: PendingSignIn; back: URL }> {
  const provider = open();
  const { url, ...pending } = await provider.begin(REDIRECT);
  expect(new URL(url).searchParams.get("code_challenge_method")).toBe("S256");
  const nowS = Math.floor(systemClock.wallMs() / 1_000);
  const { nonce } = pending;
  liar.claims = { iss: liar.issuer, aud: "insitu", sub: "ada", nonce, iat: nowS, exp: nowS + 60 };
  const back = new URL(`${REDIRECT}?code=c&state=${pending.state}`);
  return { provider, pending, back };
}

test("who signed in is taken from the token and the userinfo endpoint", async () => {
  const { provider, pending, back } = await begin();
  expect(await provider.finish(back, pending)).toEqual({
    issuer: liar.issuer,
    subject: "ada",
    display: "ada@example.org",
    groups: ["ops"],
  });
  const [, body = ""] = liar.asked.find((one) => one.startsWith("/token"))!.split(" ");
  const sent = new URLSearchParams(body);
  expect(sent.get("code_verifier")).toBe(pending.verifier);
  expect(sent.get("redirect_uri")).toBe(REDIRECT);
  expect(sent.has("client_secret")).toBe(false);
});

describe("nobody is signed in by a token", () => {
  const past = (): Claims => ({ exp: Math.floor(systemClock.wallMs() / 1_000) - 40 });
  const future = (): Claims => ({ nbf: Math.floor(systemClock.wallMs() / 1_000) + 3_600 });
  test.each<[string, () => Claims]>([
    ["for another client", () => ({ aud: "another" })],
    ["for several clients, asked for by another", () => ({ aud: ["insitu", "another"], azp: "another" })],
    ["of another issuer", () => ({ iss: "http://127.0.0.1:1" })],
    ["with another nonce", () => ({ nonce: "x".repeat(43) })],
    ["without a nonce", () => ({ nonce: undefined })],
    ["that has expired", past],
    ["that never expires", () => ({ exp: undefined })],
    ["that is not good yet", future],
    ["without a subject", () => ({ sub: undefined })],
  ])("%s", async (_what, change) => {
    const { provider, pending, back } = await begin();
    liar.claims = { ...liar.claims, ...change() };
    await expect(provider.finish(back, pending)).rejects.toMatchObject({ code: "auth.missing" });
  });

  test.each<[string, Liar["token"]]>([
    ["that is not there", () => undefined],
    ["that nobody signed", (claims) => jwt({ alg: "none" }, claims, null)],
    ["with another key", (claims) => jwt({ alg: "RS256", kid: "1" }, claims, another.privateKey)],
    ["with the client's own secret", (claims) => jwt({ alg: "HS256" }, claims, "shared")],
    [
      "with the public key taken for a secret",
      (claims) => jwt({ alg: "HS256", kid: "1" }, claims, publicPem()),
    ],
    [
      "with an algorithm that is not the key's",
      (claims) => jwt({ alg: "ES256", kid: "1" }, claims, ours.privateKey),
    ],
    [
      "with a key that it brings along",
      (claims) =>
        jwt({ alg: "RS256", jwk: another.publicKey.export({ format: "jwk" }) }, claims, another.privateKey),
    ],
    [
      "whose claims were changed",
      (claims) => changed(jwt({ alg: "RS256", kid: "1" }, claims, ours.privateKey)),
    ],
  ])("%s", async (_what, token) => {
    const { provider, pending, back } = await begin();
    liar.token = token;
    await expect(provider.finish(back, pending)).rejects.toMatchObject({ code: "auth.missing" });
  });

  test("also not on the command line", async () => {
    const { provider } = await begin();
    expect(await provider.askDevice("d")).toMatchObject({ kind: "person" });
    liar.claims = { ...liar.claims, aud: "another" };
    await expect(provider.askDevice("d")).rejects.toMatchObject({ code: "auth.missing" });
    liar.claims = { ...liar.claims, aud: "insitu" };
    liar.token = (claims) => jwt({ alg: "RS256", kid: "1" }, claims, another.privateKey);
    await expect(provider.askDevice("d")).rejects.toMatchObject({ code: "auth.missing" });
  });
});

test("the way back needs the state, the person must be one and the same, and a refusal stays one", async () => {
  const { provider, pending, back } = await begin();
  const noState = new URL(back);
  noState.searchParams.delete("state");
  await expect(provider.finish(noState, pending)).rejects.toMatchObject({ code: "auth.missing" });
  const twice = new URL(`${back.href}&code=other`);
  await expect(provider.finish(twice, pending)).rejects.toMatchObject({ code: "auth.missing" });
  const denied = new URL(`${REDIRECT}?error=access_denied&state=${pending.state}`);
  await expect(provider.finish(denied, pending)).rejects.toMatchObject({ code: "auth.missing" });
  const otherIssuer = new URL(`${back.href}&iss=${encodeURIComponent("http://127.0.0.1:1")}`);
  await expect(provider.finish(otherIssuer, pending)).rejects.toMatchObject({ code: "auth.missing" });
  liar.userinfo = { ...liar.userinfo, sub: "eve" };
  await expect(provider.finish(back, pending)).rejects.toMatchObject({ code: "auth.missing" });
  liar.error = "invalid_client";
  await expect(provider.finish(back, pending)).rejects.toMatchObject({
    code: "auth.missing",
    message: expect.not.stringContaining("invalid_client"),
    details: { why: expect.stringContaining("it said invalid_client") },
  });
});

test("the command line is told to wait, and to wait longer", async () => {
  const { provider } = await begin();
  expect(await provider.beginDevice()).toMatchObject({
    userCode: "AB-CD",
    expiresInMs: 60_000,
    intervalMs: 5_000,
  });
  liar.error = "authorization_pending";
  expect(await provider.askDevice("d")).toEqual({ kind: "waiting" });
  liar.error = "slow_down";
  expect(await provider.askDevice("d")).toEqual({ kind: "too-fast" });
  liar.error = "expired_token";
  await expect(provider.askDevice("d")).rejects.toMatchObject({ code: "auth.missing" });
});

test("one that is away is asked again later, and one that was there is not forgotten", async () => {
  const clock = new ManualClock();
  const provider = open(clock);
  const port = Number(new URL(liar.issuer).port);
  await liar.stop();
  await expect(provider.begin(REDIRECT)).rejects.toMatchObject({ code: "unavailable", retryable: true });
  await liar.start(port);
  await expect(provider.begin(REDIRECT)).rejects.toMatchObject({ code: "unavailable" });
  expect(liar.asked).toEqual([]);
  clock.advance(3_000);
  const { url } = await provider.begin(REDIRECT);
  expect(url).toContain(`${liar.issuer}/authorize`);
  await liar.stop();
  clock.advance(3_600_000);
  expect((await provider.begin(REDIRECT)).url).toContain(`${liar.issuer}/authorize`);
  await expect(provider.askDevice("d")).rejects.toMatchObject({ code: "unavailable" });
  await liar.start(port);
});

test.each<[string, () => void]>([
  ["describes another issuer", () => Object.assign(liar.described, { issuer: "http://127.0.0.1:1" })],
  [
    "signs with nothing that we trust",
    () => Object.assign(liar.described, { id_token_signing_alg_values_supported: ["HS256", "none"] }),
  ],
  ["answers in Brotli", () => Object.assign(liar, { encoding: "br" })],
  ["answers without an end", () => Object.assign(liar, { padding: " ".repeat(1024 * 1024 + 1) })],
])("one that %s is not used", async (_what, change) => {
  change();
  await expect(open().begin(REDIRECT)).rejects.toMatchObject({ code: "unavailable" });
});

test("one that offers the command line nothing says so, and no address but that of a page is shown", async () => {
  liar.verificationUri = "javascript:alert(1)";
  await expect(open().beginDevice()).rejects.toMatchObject({ code: "auth.missing" });
  Object.assign(liar.described, { device_authorization_endpoint: undefined });
  await expect(open().beginDevice()).rejects.toMatchObject({ code: "request.invalid" });
});

/** @param key null: not signed at all */
function jwt(header: Claims, claims: Claims, key: KeyObject | string | null): string {
  const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");
  const text = `${part({ typ: "JWT", ...header })}.${part(claims)}`;
  if (key === null) return `${text}.`;
  const signature =
    typeof key === "string"
      ? createHmac("sha256", key).update(text).digest()
      : sign("sha256", Buffer.from(text), key);
  return `${text}.${signature.toString("base64url")}`;
}

function changed(token: string): string {
  const [header, payload = "", signature] = token.split(".");
  const claims = JSON.parse(Buffer.from(payload, "base64url").toString("utf8")) as Claims;
  const other = Buffer.from(JSON.stringify({ ...claims, sub: "eve" })).toString("base64url");
  return [header, other, signature].join(".");
}

function publicPem(): string {
  return ours.publicKey.export({ type: "spki", format: "pem" }).toString();
}
