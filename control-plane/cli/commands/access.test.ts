import { expect, test } from "vitest";
import { insitu, json, SmallServer } from "../cli.fixture.ts";

const TOKEN = {
  name: "ci",
  role: "runner",
  pipelines: ["nightly"],
  groups: [],
  createdBy: "operator",
  createdAtMs: 1,
  expiresAtMs: 9_000_000_000_000,
  lastUsedAtMs: null,
  revokedAtMs: null,
};

test.each([
  ["yes", "yes\n", 0],
  ["no", "no\n", 6],
  ["with-approval", "yes, once a second person has approved it\n", 9],
])("can-i asks about one pipeline; the answer %s ends as a script can tell", async (verdict, out, code) => {
  const answer = { right: "runs:start", pipeline: "nightly", verdict, because: "rule people/night says so" };
  await using server = await SmallServer.start({ "GET /v1/access/can-i": json(answer) });
  const command = ["auth", "can-i", "runs:start", "pipeline/nightly"];
  const written = await insitu(command, { server: server.url, token: "t" });
  expect([written.code, written.stdout]).toEqual([code, out]);
  expect(written.stderr).toContain("rule people/night says so");
  const asked = new URL(server.received[0]?.path ?? "", server.url).searchParams;
  expect(Object.fromEntries(asked)).toEqual({ right: "runs:start", pipeline: "nightly" });
});

test("a right that there is not is refused before the server is asked, with those that there are", async () => {
  const written = await insitu(["auth", "can-i", "runs:strat"], { server: "http://127.0.0.1:1", token: "t" });
  expect(written.code).toBe(2);
  expect(written.stderr).toContain("runs:start");
});

test("tokens create prints the token alone on stdout, for 90 days unless told otherwise", async () => {
  await using server = await SmallServer.start({
    "POST /v1/tokens": json({ ...TOKEN, token: "ins_ci_secret" }, 201),
  });
  const command = ["tokens", "create", "ci", "--role", "runner", "--pipeline", "nightly"];
  const written = await insitu(command, { server: server.url, token: "t" });
  expect([written.code, written.stdout]).toEqual([0, "ins_ci_secret\n"]);
  expect(server.received[0]?.body).toEqual({
    name: "ci",
    role: "runner",
    pipelines: ["nightly"],
    groups: [],
    ttlMs: 90 * 86_400_000,
  });
  // The answer is a secret, and is not kept for a repeat.
  expect(server.received[0]?.headers["idempotency-key"]).toBeUndefined();
});

test("tokens list says which are good, expired and revoked", async () => {
  const items = [
    TOKEN,
    { ...TOKEN, name: "old", expiresAtMs: 2, pipelines: null },
    { ...TOKEN, name: "gone", revokedAtMs: 3 },
  ];
  await using server = await SmallServer.start({ "GET /v1/tokens": json({ items }) });
  const { stdout } = await insitu(["tokens", "list"], { server: server.url, token: "t" });
  expect(stdout).toMatch(/^ci +runner +on nightly +good/m);
  expect(stdout).toMatch(/^old +runner +everything +expired/m);
  expect(stdout).toMatch(/^gone .* revoked/m);
});

test("a role that there is not is refused, with those that there are", async () => {
  const written = await insitu(["tokens", "create", "ci", "--role", "root"], {
    server: "http://127.0.0.1:1",
  });
  expect(written.code).toBe(2);
  expect(written.stderr).toContain("agent-admin");
});
