/** People who sign in at an identity provider, with the server as it is shipped. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Browser, type Page } from "../support/browser.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const PROVIDER = fileURLToPath(new URL("../support/identity-provider.mjs", import.meta.url));
const LIMIT_MS = 60_000;

let directory: string;
let provider: ChildProcess;
let issuer: string;
let port: number;
let plant: Plant;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "insitu-sign-in-"));
  port = await freePort();
  const providerPort = await freePort();
  issuer = `http://127.0.0.1:${providerPort}`;
  provider = spawn(
    process.execPath,
    [PROVIDER, String(providerPort), `http://127.0.0.1:${port}/auth/callback`],
    { stdio: ["ignore", "ignore", "inherit", "ipc"] },
  );
  await once(provider, "message");
  const secretFile = join(directory, "client-secret");
  writeFileSync(secretFile, "a-secret-of-the-test\n", { mode: 0o600 });
  const serverFlags = ["--oidc-issuer", issuer, "--oidc-client-id", "insitu"];
  serverFlags.push("--oidc-client-secret-file", secretFile, "--oidc-scope", "groups");
  serverFlags.push("--oidc-role", "platform=admin", "--oidc-role", "science=runner@nightly");
  plant = new Plant({ dist: DIST, serverFlags });
  await plant.startServer({ port });
}, LIMIT_MS);

afterAll(async () => {
  await plant[Symbol.asyncDispose]();
  provider.kill("SIGTERM");
  rmSync(directory, { recursive: true, force: true });
}, LIMIT_MS);

test("who signs in has the roles of their groups, and none after signing out", {
  timeout: LIMIT_MS,
}, async () => {
  const browser = new Browser();
  const end = await signIn(browser, "ada");
  expect(end.url.href).toBe(`${plant.url}/`);
  const me = await whoAmI(browser);
  expect(me).toMatchObject({ name: "oidc:ada", display: "ada@example.org" });
  expect(me.grants).toEqual([{ role: "admin", pipelines: null }]);
  const stolen = browser.cookie(plant.url, "insitu")!;
  const { header } = browser.cookies.get("127.0.0.1")!.get("insitu")!;
  expect(header).toMatch(/HttpOnly/i);
  expect(header).toMatch(/SameSite=Lax/i);

  const out = await browser.fetch(`${plant.url}/auth/sign-out`, { method: "POST" });
  expect(out.status).toBe(204);
  expect(browser.cookie(plant.url, "insitu")).toBeUndefined();
  const thief = new Browser();
  thief.plant(plant.url, "insitu", stolen);
  expect((await thief.fetch(`${plant.url}/v1/runs`)).status).toBe(401);
});

test("a browser that is led back with what is not its own gets no session", {
  timeout: LIMIT_MS,
}, async () => {
  const browser = new Browser();
  const isBack = (url: URL): boolean => url.pathname === "/auth/callback";
  const { url } = await signIn(browser, "ada", isBack);
  const pending = browser.cookie(plant.url, "insitu-sign-in")!;

  // The victim of somebody else's sign-in: led to an address with a good code that its browser did not ask for.
  const victim = new Browser();
  const led = await victim.visit(url.href);
  expect(led.url.hash).toBe("#/sign-in/unfinished");
  expect(victim.cookie(plant.url, "insitu")).toBeUndefined();

  const [state = "", nonce = "", verifier = ""] = pending.split(".");
  const other = "x".repeat(43);
  const forged = { state: `${other}.${nonce}.${verifier}`, nonce: `${state}.${other}.${verifier}` };
  for (const [what, cookie] of Object.entries({ ...forged, verifier: `${state}.${nonce}.${other}` })) {
    const attacker = new Browser();
    attacker.plant(plant.url, "insitu-sign-in", cookie);
    const end = await attacker.visit(url.href);
    expect(end.url.hash, what).toBe("#/sign-in/refused");
    expect(attacker.cookie(plant.url, "insitu"), what).toBeUndefined();
  }
});

test("a code opens one session, which is no session that was there before", {
  timeout: LIMIT_MS,
}, async () => {
  const browser = new Browser();
  const isBack = (url: URL): boolean => url.pathname === "/auth/callback";
  const { url } = await signIn(browser, "bob", isBack);
  const pending = browser.cookie(plant.url, "insitu-sign-in")!;
  browser.plant(plant.url, "insitu", FIXED);
  await browser.visit(url.href);
  const session = browser.cookie(plant.url, "insitu");
  expect(session).toMatch(/^[\w-]{43}$/);
  expect(session).not.toBe(FIXED);
  const attacker = new Browser();
  attacker.plant(plant.url, "insitu", FIXED);
  expect((await attacker.fetch(`${plant.url}/v1/runs`)).status).toBe(401);

  await browser.visit((await config()).signInUrl);
  expect(browser.cookie(plant.url, "insitu")).not.toBe(session);
  attacker.plant(plant.url, "insitu", session!);
  expect((await attacker.fetch(`${plant.url}/v1/runs`)).status).toBe(401);

  attacker.plant(plant.url, "insitu-sign-in", pending);
  expect((await attacker.visit(url.href)).url.hash).toBe("#/sign-in/refused");
});

test("another site changes nothing with the cookie, and a group's grant reaches its pipelines alone", {
  timeout: LIMIT_MS,
}, async () => {
  await plant.apply({ kind: "environment", name: "site", jurisdiction: "DE" });
  for (const name of ["nightly", "payroll"])
    await plant.apply({ kind: "pipeline", name, steps: [{ id: "s", environment: "site", uses: "noop" }] });
  const browser = new Browser();
  await signIn(browser, "bob");
  const start = (pipeline: string, from?: string): Promise<Response> =>
    browser.fetch(
      `${plant.url}/v1/runs`,
      { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ pipeline }) },
      from,
    );
  expect((await start("nightly", "http://evil.example")).status).toBe(403);
  expect((await start("nightly", `http://127.0.0.1:${port + 1}`)).status).toBe(403);
  expect(
    (await browser.fetch(`${plant.url}/auth/sign-out`, { method: "POST" }, "http://evil.example")).status,
  ).toBe(403);
  const { items } = (await plant.call("GET", "/v1/runs")) as { items: unknown[] };
  expect(items).toEqual([]);
  expect((await start("payroll")).status).toBe(404);
  const started = await start("nightly");
  expect(started.status).toBe(201);
  expect(await started.json()).toMatchObject({ createdBy: "oidc:bob" });
});

test("the command line signs in with a browser elsewhere, and out again", { timeout: LIMIT_MS }, async () => {
  const home = join(directory, "home");
  const insitu = (...args: string[]) => startCli(home, args);
  const login = insitu("auth", "login", "--server", plant.url);
  const address = await login.saw(/http\S+user_code=\S+/);
  const browser = new Browser();
  let page = await browser.visit(address);
  page = await browser.submit(page, {});
  page = await browser.submit(page, { confirm: "yes" });
  page = await browser.submit(page, { login: "ada", password: "any" });
  await browser.submit(page, {});
  expect(await login.code).toBe(0);
  expect(login.out()).toContain("signed in as ada@example.org");
  const file = join(home, ".config", "insitu", "context.json");
  expect(statSync(file).mode & 0o777).toBe(0o600);

  const me = insitu("auth", "whoami");
  expect(await me.code).toBe(0);
  expect(me.out()).toBe(
    "oidc:ada (ada@example.org)  admin  everything\n" +
      "oidc:ada (ada@example.org)  in  cn=science,dc=example, platform\n",
  );
  const { token } = JSON.parse(readFileSync(file, "utf8")) as { token: string };
  // Neither of the two ways takes the secret of the other.
  const thief = new Browser();
  thief.plant(plant.url, "insitu", token.slice("inss_".length));
  expect((await thief.fetch(`${plant.url}/v1/runs`)).status).toBe(401);

  expect(await insitu("auth", "logout").code).toBe(0);
  expect(readFileSync(file, "utf8")).not.toContain(token);
  const after = await fetch(`${plant.url}/v1/runs`, { headers: { authorization: `Bearer ${token}` } });
  expect(after.status).toBe(401);
});

test("the first start prints a link that makes one browser the administrator, and no later start does", {
  timeout: LIMIT_MS,
}, async () => {
  const data = join(directory, "first");
  const first = await startAlone(data);
  const link = /http\S+#first-admin=(\S+)/.exec(await first.saw(/#first-admin=\S+\n/))!;
  const { origin } = new URL(link[0]);
  const redeem = (browser: Browser): Promise<Response> =>
    browser.fetch(`${origin}/auth/first-admin`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ secret: link[1] }),
    });
  const [one, other] = [new Browser(), new Browser()];
  const statuses = await Promise.all([redeem(one), redeem(other)]);
  expect(statuses.map(({ status }) => status).sort()).toEqual([204, 401]);
  const admin = statuses[0]?.status === 204 ? one : other;
  const me = await admin.fetch(`${origin}/v1/access/whoami`);
  expect(await me.json()).toMatchObject({ name: "link:first-admin", grants: [{ role: "admin" }] });
  expect(readFileSync(join(data, "context.json"), "utf8")).not.toContain(link[1]);
  await first.stop();
  expect(
    first
      .out()
      .split("\n")
      .filter((line) => line.startsWith("{"))
      .join(),
  ).not.toContain(link[1]);

  const second = await startAlone(data);
  await second.saw(/server ready/);
  await second.stop();
  expect(second.out()).not.toContain("#first-admin=");
});

/** As a person starts it: nobody to report to but the terminal. */
async function startAlone(data: string) {
  const flags = ["--data", data, "--port", "0", "--gateway-port", "0", "--nats-port", "0"];
  const child = spawn(process.execPath, [join(DIST, "insitu.js"), "server", ...flags], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let out = "";
  const listeners = new Set<() => void>();
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    out += chunk;
    for (const look of listeners) look();
  });
  const gone = once(child, "close");
  return {
    out: () => out,
    saw: (pattern: RegExp) =>
      new Promise<string>((resolve, reject) => {
        const look = (): void => {
          if (pattern.test(out)) resolve(out);
        };
        listeners.add(look);
        look();
        gone.then(() => reject(new Error(`ended: ${out}`)), reject);
      }),
    async stop(): Promise<void> {
      child.kill("SIGTERM");
      await gone;
    },
  };
}

const FIXED = "f".repeat(43);

/** The shipped program with a home of its own. */
function startCli(home: string, args: string[]) {
  mkdirSync(home, { recursive: true });
  const { INSITU_SERVER: _, INSITU_TOKEN: __, XDG_CONFIG_HOME: ___, ...env } = process.env;
  const child = spawn(process.execPath, [join(DIST, "insitu.js"), ...args], {
    cwd: home,
    env: { ...env, HOME: home },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const text = { out: "", err: "" };
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    text.out += chunk;
  });
  child.stderr.setEncoding("utf8");
  const code = once(child, "close").then(([exit]) => exit as number);
  return {
    code,
    out: () => text.out,
    saw(pattern: RegExp): Promise<string> {
      return new Promise((resolve, reject) => {
        child.stderr.on("data", (chunk: string) => {
          text.err += chunk;
          const found = pattern.exec(text.err)?.[0];
          if (found !== undefined) resolve(found);
        });
        child.once("close", () => reject(new Error(`ended without ${pattern}: ${text.err}`)));
      });
    },
  };
}

async function config(): Promise<{ signInUrl: string }> {
  return ((await (await fetch(`${plant.url}/auth/config`)).json()) as { oidc: { signInUrl: string } }).oidc;
}

async function signIn(browser: Browser, name: string, stop?: (url: URL) => boolean): Promise<Page> {
  const { oidc } = (await (await fetch(`${plant.url}/auth/config`)).json()) as {
    oidc: { signInUrl: string };
  };
  let page = await browser.visit(oidc.signInUrl);
  page = await browser.submit(page, { login: name, password: "any" });
  // Consent is asked for the first time.
  return page.body.includes("<form") && page.url.href.startsWith(issuer)
    ? await browser.submit(page, {}, stop)
    : page;
}

async function whoAmI(browser: Browser) {
  const response = await browser.fetch(`${plant.url}/v1/access/whoami`);
  expect(response.status).toBe(200);
  return (await response.json()) as { name: string; grants: unknown[] };
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}
