/** Where secrets come from: real files, programs and sockets. */
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import type { ServerResponse } from "node:http";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { createAuthority } from "../uplink/gateway.fixture.ts";
import { SecretSource, SecretsConfig, VaultConfig } from "./secret-config.ts";
import { SecretError } from "./secret-error.ts";
import { Secrets } from "./secrets.ts";
import { answer, TestVault } from "./vault.fixture.ts";

const VALUE = "canary-of-the-vault";
let directory: TestDirectory;
beforeEach(() => {
  directory = testDirectory();
});
afterEach(() => directory[Symbol.dispose]());

/** Waits take no time; how long was asked for is kept. */
function patient() {
  const waitsMs: number[] = [];
  const sleep = (ms: number): Promise<void> => {
    waitsMs.push(ms);
    return Promise.resolve();
  };
  return { waitsMs, clock: { ...systemClock, sleep } };
}

function secretsOf(source: object, change: object = {}) {
  const { clock, waitsMs } = patient();
  const sources = SecretsConfig.parse({ s: source });
  const secrets = new Secrets({ clock, sources, environment: {}, memoryDirectories: [], ...change });
  const fetch = async (signal = new AbortController().signal): Promise<string> => {
    const resolved = await secrets.resolve(
      { wanted: { X: { name: "s", as: "file" } }, pipeline: "nightly" },
      signal,
    );
    return resolved.files.X!.toString("utf8");
  };
  return { fetch, waitsMs };
}

async function refusal(fetched: Promise<string>): Promise<SecretError> {
  const thrown = await fetched.then(
    (value) => new Error(`it was given ${value}`),
    (error: unknown) => error,
  );
  expect(thrown).toBeInstanceOf(SecretError);
  expect((thrown as SecretError).message).not.toContain("canary");
  return thrown as SecretError;
}

describe("a file", () => {
  const at = (name: string) => ({ from: "file", path: join(directory.path, name) });
  function write(name: string, text: string | Buffer, mode = 0o600): void {
    writeFileSync(join(directory.path, name), text, { mode });
    chmodSync(join(directory.path, name), mode);
  }

  test("is read anew each time, also through a link", async () => {
    write("v1", `${VALUE}\n`);
    symlinkSync("v1", join(directory.path, "s"));
    const { fetch } = secretsOf(at("s"));
    expect(await fetch()).toBe(`${VALUE}\n`);
    write("v1", "rotated-canary");
    expect(await fetch()).toBe("rotated-canary");
  });

  test.each([
    ["that is not there", () => undefined, /cannot be read \(ENOENT\)/],
    ["that the group may read", () => write("s", VALUE, 0o640), /others may read or write .*chmod 600/],
    ["that all may read", () => write("s", VALUE, 0o604), /others may read/],
    ["that others may write", () => write("s", VALUE, 0o602), /others may read or write/],
    ["that is a directory", () => mkdirSync(join(directory.path, "s")), /not a regular file/],
    ["that is too large", () => write("s", Buffer.alloc(16 * 1024 + 1, "canary")), /16384 are allowed/],
    ["that is too short", () => write("s", "short\n\n"), /shorter than 6 bytes/],
  ])("%s is refused at once", async (_, prepare, message) => {
    prepare();
    const { fetch, waitsMs } = secretsOf(at("s"));
    const error = await refusal(fetch());
    expect([error.kind, waitsMs]).toEqual(["missing", []]);
    expect(error.message).toMatch(message);
    expect(error.message).toMatch(/^secret s: /);
  });
});

describe("a program", () => {
  const run = (script: string, change: object = {}) =>
    secretsOf(
      { from: "exec", argv: ["sh", "-c", script], timeoutMs: 5_000, ...change },
      {
        environment: { PATH: process.env.PATH, TOKEN: VALUE, OTHER: "other-canary" },
      },
    );

  test("is asked with the variables that it was given, and no others", async () => {
    const script = 'printf "%s|%s" "$TOKEN" "$OTHER"';
    expect(await run(script, { passEnv: ["TOKEN"] }).fetch()).toBe(`${VALUE}|`);
  });

  test.each([
    ["that fails", "echo canary; echo canary >&2; exit 3", "unavailable", /exit code 3; run it by hand/],
    ["that is killed", "kill -KILL $$", "unavailable", /ended with SIGKILL/],
    ["that prints too much", "yes canary", "missing", /printed more than the 16384 bytes/],
    ["that prints too little", "echo no", "missing", /shorter than 6 bytes/],
  ] as const)("%s is no secret's source", async (_, script, kind, message) => {
    const error = await refusal(run(script).fetch());
    expect(error.kind).toBe(kind);
    expect(error.message).toMatch(message);
  });

  test("that hangs is ended with all that it started, and asked again twice", async () => {
    const started = join(directory.path, "started");
    const { fetch, waitsMs } = run(`echo x >>${started}; sleep 600 & wait`, { timeoutMs: 300 });
    const error = await refusal(fetch());
    expect([error.kind, waitsMs]).toEqual(["unavailable", [500, 2_000]]);
    expect(error.message).toMatch(/did not end within 300 ms/);
  });

  test("that is not there is said", async () => {
    const error = await refusal(secretsOf({ from: "exec", argv: ["/no/such/program"] }).fetch());
    expect([error.kind, error.message]).toEqual([
      "missing",
      expect.stringMatching(/cannot be started \(ENOENT\)/),
    ]);
  });

  test("that runs when its step is stopped is ended", async () => {
    const stop = new AbortController();
    const fetched = run("sleep 600", { timeoutMs: 60_000 }).fetch(stop.signal);
    stop.abort();
    expect((await refusal(fetched)).message).toMatch(/was stopped/);
  });
});

describe("a vault", () => {
  const source = { from: "vault", mount: "kv", path: "apps/warehouse", field: "password" };

  async function vault(change: object = {}) {
    const server = new TestVault();
    server.secrets.set("kv/apps/warehouse", { password: VALUE, port: 1_234_567, nested: { a: VALUE } });
    const tokenFile = join(directory.path, "token");
    writeFileSync(tokenFile, `${server.token}\n`, { mode: 0o600 });
    const address = `http://127.0.0.1:${await server.listen()}`;
    const config = VaultConfig.parse({ address, tokenFile, timeoutMs: 400, ...change });
    const of = (asked: object = {}) => secretsOf({ ...source, ...asked }, { vault: config });
    return Object.assign(server, { of, tokenFile });
  }

  test("is asked for one field, in its namespace, with the token of this moment", async () => {
    await using server = await vault({ namespace: "site/dream" });
    const { fetch } = server.of();
    expect(await fetch()).toBe(VALUE);
    server.token = "s.renewed";
    writeFileSync(server.tokenFile, "s.renewed");
    server.secrets.set("kv/apps/warehouse", { password: "rotated-canary" });
    expect(await fetch()).toBe("rotated-canary");
    expect(server.requests).toEqual(
      ["s.right", "s.renewed"].map((token) => ({
        ...{ method: "GET", url: "/v1/kv/data/apps/warehouse", namespace: "site/dream", marked: "true" },
        token,
      })),
    );
    expect(await server.of({ field: "password" }).fetch()).toBe("rotated-canary");
  });

  test.each([
    ["no such secret", { path: "apps/other" }, /no kv\/apps\/other.*404/],
    ["no such field", { field: "user" }, /no field user that is text/],
    ["a field of another kind", { field: "nested" }, /no field nested that is text/],
    ["a field of the language", { field: "constructor" }, /no field constructor/],
  ])("%s is missing, and not asked for again", async (_, asked, message) => {
    await using server = await vault();
    const { fetch, waitsMs } = server.of(asked);
    const error = await refusal(fetch());
    expect([error.kind, waitsMs, server.requests.length]).toEqual(["missing", [], 1]);
    expect(error.message).toMatch(message);
  });

  test("a number is given as text", async () => {
    await using server = await vault();
    expect(await server.of({ field: "port" }).fetch()).toBe("1234567");
  });

  test("a token that it does not know is said, without the token", async () => {
    await using server = await vault();
    writeFileSync(server.tokenFile, "s.canary");
    const error = await refusal(server.of().fetch());
    expect([error.kind, error.message]).toEqual(["missing", expect.stringMatching(/denies.*403.*token/)]);
  });

  test("a token that others may read is not used", async () => {
    await using server = await vault();
    chmodSync(server.tokenFile, 0o644);
    expect((await refusal(server.of().fetch())).message).toMatch(/others may read/);
    expect(server.requests).toEqual([]);
  });

  test.each([
    ["too many requests", answer(429, "canary")],
    ["a standby", answer(473, "canary")],
    ["sealed", answer(503, { errors: ["Vault is sealed: canary"] })],
    ["a broken one", answer(500, "canary")],
    ["no answer", () => undefined],
    [
      "half an answer",
      (response: ServerResponse) => {
        response.writeHead(200, { "content-length": "100" });
        response.write("{canary", () => response.destroy());
      },
    ],
    ["a hung body", (response: ServerResponse) => void response.writeHead(200).write("{")],
    ["another's answer", answer(200, "<html>canary</html>")],
    ["too large an answer", answer(200, Buffer.alloc(2 * 1024 * 1024, "canary").toString())],
    ["a cut connection", (response: ServerResponse) => void response.destroy()],
  ])("%s is asked again, and when it stays so, the secret is unavailable", async (_, bad) => {
    await using server = await vault();
    server.instead.push(bad, bad);
    const { fetch, waitsMs } = server.of();
    expect(await fetch()).toBe(VALUE);
    expect(waitsMs).toEqual([500, 2_000]);
    server.instead.push(bad, bad, bad);
    expect((await refusal(fetch())).kind).toBe("unavailable");
    expect(server.requests).toHaveLength(6);
  });

  test("a redirect is not followed: it could lead the token elsewhere", async () => {
    await using server = await vault();
    await using elsewhere = new TestVault();
    const port = await elsewhere.listen();
    server.instead.push(answer(307, "", { location: `http://127.0.0.1:${port}/v1/kv/data/x` }));
    expect((await refusal(server.of().fetch())).message).toMatch(/redirects are not followed/);
    expect(elsewhere.requests).toEqual([]);
  });

  test("that nobody serves is away", async () => {
    const server = await vault();
    await server[Symbol.asyncDispose]();
    const error = await refusal(server.of().fetch());
    expect([error.kind, error.message]).toEqual(["unavailable", expect.stringMatching(/ECONNREFUSED/)]);
  });

  test("over TLS it is trusted by its CA alone", async () => {
    const { caPem, server: own } = await createAuthority();
    await using server = new TestVault({ key: own.keyPem, cert: own.certificatePem });
    server.secrets.set("kv/apps/warehouse", { password: VALUE });
    const tokenFile = join(directory.path, "token");
    const caFile = join(directory.path, "ca.pem");
    writeFileSync(tokenFile, server.token, { mode: 0o600 });
    writeFileSync(caFile, caPem);
    const address = `https://localhost:${await server.listen()}`;
    const trusting = VaultConfig.parse({ address, tokenFile, caFile });
    expect(await secretsOf(source, { vault: trusting }).fetch()).toBe(VALUE);
    const doubting = VaultConfig.parse({ address, tokenFile });
    expect((await refusal(secretsOf(source, { vault: doubting }).fetch())).kind).toBe("unavailable");
    expect(server.requests).toHaveLength(1);
  });

  test.each([
    [{ address: "http://vault.example.org:8200" }, /https; http is for a vault on this host/],
    [{ address: "http://127.0.0.1.example.org" }, /https/],
    [{ address: "ftp://127.0.0.1" }, /Invalid URL/],
  ])("%j is no address for a token", (change, message) => {
    const parsed = VaultConfig.safeParse({ tokenFile: "/t", ...change });
    expect(parsed.error?.issues[0]?.message).toMatch(message);
  });

  test.each(["../sys/seal", "a//b", "/a", "a?x=1", "a/%2e%2e/b"])("a path %s is not asked for", (path) => {
    expect(SecretSource.safeParse({ ...source, path }).success).toBe(false);
  });
});

test.each([
  [["nightly", "weekly"], VALUE],
  [["weekly"], /^secret s: this agent gives it to other pipelines than nightly$/],
] as const)("a secret of the pipelines %j is given to no others", async (pipelines, expected) => {
  const source = { from: "env", variable: "V", pipelines };
  const fetched = secretsOf(source, { environment: { V: VALUE } }).fetch();
  if (typeof expected === "string") expect(await fetched).toBe(expected);
  else expect((await refusal(fetched)).message).toMatch(expected);
});

test("all that is missing is said at once", async () => {
  const secrets = new Secrets({
    ...{ clock: systemClock, memoryDirectories: [], environment: {} },
    sources: { a: { from: "env", variable: "NOT_SET" } },
  });
  const wanted = { A: { name: "a", as: "env" }, B: { name: "b", as: "file" } } as const;
  const error = await refusal(
    secrets.resolve({ wanted, pipeline: "p" }, new AbortController().signal).then(() => ""),
  );
  expect(error.message).toBe(
    "secret a: the agent's environment has no NOT_SET; secret b: not known at this agent; add it to `secrets` in its configuration",
  );
});
