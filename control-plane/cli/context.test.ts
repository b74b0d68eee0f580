import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Settings } from "./config.ts";
import { findTarget, forgetToken, keepToken } from "./context.ts";

let root: string;
let settings: Settings;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "insitu-context-"));
  await mkdir(join(root, "a", "b"), { recursive: true });
  settings = {
    server: null,
    token: null,
    caFile: null,
    userContextFile: join(root, "user.json"),
    cwd: join(root, "a", "b"),
    backupPassphrase: null,
    noColor: true,
  };
});
afterEach(() => rm(root, { recursive: true, force: true }));

async function context(directory: string, content: object): Promise<void> {
  await mkdir(join(directory, ".insitu"), { recursive: true });
  await writeFile(join(directory, ".insitu", "context.json"), JSON.stringify(content));
}

test("the nearest context upward wins over those further up and the user's own", async () => {
  await context(root, { server: "http://127.0.0.1:1", token: "far" });
  await context(join(root, "a"), { server: "http://127.0.0.1:2", token: "near" });
  await writeFile(settings.userContextFile, JSON.stringify({ server: "http://127.0.0.1:3", token: "own" }));
  expect(findTarget({}, settings)).toMatchObject({ server: "http://127.0.0.1:2", token: "near" });
});

test("the user's own file is used when no folder has one", async () => {
  await writeFile(settings.userContextFile, JSON.stringify({ server: "http://127.0.0.1:3", token: "own" }));
  expect(findTarget({}, settings)).toMatchObject({
    server: "http://127.0.0.1:3",
    source: settings.userContextFile,
  });
});

test("flags win over the environment, and that over files", async () => {
  await context(root, { server: "http://127.0.0.1:1", token: "file" });
  const fromEnvironment = { ...settings, server: "http://127.0.0.1:2", token: "env" };
  expect(findTarget({}, fromEnvironment)).toMatchObject({
    server: "http://127.0.0.1:2",
    source: "INSITU_SERVER",
  });
  const flags = { server: "http://127.0.0.1:3", token: "flag" };
  expect(findTarget(flags, fromEnvironment)).toMatchObject({ source: "--server", token: "flag" });
});

test("a token from a file is not sent to another server", async () => {
  await context(root, { server: "http://127.0.0.1:1", token: "secret" });
  expect(findTarget({ server: "http://127.0.0.1:2" }, settings).token).toBeNull();
  expect(findTarget({ server: "http://127.0.0.1:1/" }, settings).token).toBe("secret");
});

test("no server is spoken to without TLS off this machine", () => {
  expect(() => findTarget({ server: "http://insitu.example.org" }, settings)).toThrow(/use https/);
});

test("without any address the message says how to start a server", () => {
  expect(() => findTarget({}, settings)).toThrow(/insitu dev/);
});

test("a token of the user's own file opens its server from everywhere, when that is named", async () => {
  await context(root, { server: "http://127.0.0.1:1", token: "near" });
  await writeFile(settings.userContextFile, JSON.stringify({ server: "http://127.0.0.1:3", token: "own" }));
  expect(findTarget({ server: "http://127.0.0.1:3" }, settings).token).toBe("own");
  expect(findTarget({ server: "http://127.0.0.1:1" }, settings).token).toBe("near");
  expect(findTarget({ server: "http://127.0.0.1:4" }, settings).token).toBeNull();
});

test("what was kept is for its user alone, replaces what was there, and is forgotten by its own token", async () => {
  await writeFile(settings.userContextFile, JSON.stringify({ server: "http://127.0.0.1:9" }), {
    mode: 0o644,
  });
  const file = keepToken(settings, { servers: ["http://127.0.0.1:3", "http://127.0.0.1:4"] }, "first");
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  keepToken(settings, { servers: ["http://127.0.0.1:3"], caFile: "/etc/ca.pem" }, "second");
  expect(forgetToken(settings, "first")).toBeNull();
  expect(forgetToken(settings, "second")).toBe(file);
  expect(JSON.parse(await readFile(file, "utf8"))).toEqual({
    server: "http://127.0.0.1:3",
    caFile: "/etc/ca.pem",
  });
  expect(await readdir(root)).toEqual(["a", "user.json"]);
});
