/** People who sign in at an identity provider, with the server as it is shipped. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
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
