import { expect, test } from "vitest";
import { insitu, json, SmallServer } from "../cli.fixture.ts";

const FINGERPRINT = `sha256:${"a".repeat(64)}`;
const WAITING = {
  environment: "hq",
  name: "new",
  fingerprint: FINGERPRINT,
  address: "192.0.2.7:1",
  recovers: false,
  askedAtMs: 1,
  expiresAtMs: 9_000_000_000_000,
};
const REQUESTS = { "GET /v1/join-requests": json({ items: [WAITING] }) };
const LIST = { "GET /v1/agents": json({ items: [], nextCursor: null }) };

test("agents list shows who waits for approval, with the key that the agent itself shows", async () => {
  await using server = await SmallServer.start({ ...REQUESTS, ...LIST });
  const all = await insitu(["agents", "list"], { server: server.url, token: "t" });
  expect([all.code, all.stdout]).toEqual([
    0,
    `hq/new is waiting for approval, with the key ${FINGERPRINT}\n\n`,
  ]);
  const others = await insitu(["agents", "list", "--environment", "dream"], {
    server: server.url,
    token: "t",
  });
  expect(others.stdout).not.toContain("waiting");
});

test("agents list does without a server's knowledge of approvals", async () => {
  await using server = await SmallServer.start({
    "GET /v1/join-requests": json(
      { code: "not-found", title: "Not found", detail: "no such route", status: 404 },
      404,
    ),
    ...LIST,
  });
  const written = await insitu(["agents", "list"], { server: server.url, token: "t" });
  expect(written.code).toBe(0);
});

test.each([
  ["approve", [], { approve: true, fingerprint: FINGERPRINT }],
  ["deny", [], { approve: false, fingerprint: FINGERPRINT }],
  [
    "approve",
    ["--fingerprint", `sha256:${"b".repeat(64)}`],
    { approve: true, fingerprint: `sha256:${"b".repeat(64)}` },
  ],
])("agents %s %j names the key that it is about", async (command, flags, body) => {
  await using server = await SmallServer.start({
    ...REQUESTS,
    "POST /v1/join-requests/hq/new": json({}, 200),
  });
  const written = await insitu(["agents", command, "hq/new", ...flags], { server: server.url, token: "t" });
  expect([written.code, written.stderr]).toEqual([0, ""]);
  expect(server.received.at(-1)!.body).toEqual(body);
});

test("agents approve of one that does not wait says who does", async () => {
  await using server = await SmallServer.start(REQUESTS);
  const written = await insitu(["agents", "approve", "hq/old"], { server: server.url, token: "t" });
  expect(written.code).toBe(4);
  expect(written.stderr).toContain("no agent waits for approval as hq/old; there waits hq/new");
});

test("agents revoke needs a reason, and sends it", async () => {
  const agent = { id: "hq/old", revoked: { atMs: 1, by: "ada", reason: "host stolen" } };
  await using server = await SmallServer.start({ "POST /v1/agents/hq/old/revoke": json(agent) });
  const without = await insitu(["agents", "revoke", "hq/old"], { server: server.url, token: "t" });
  expect([without.code, server.received]).toEqual([2, []]);
  const command = ["agents", "revoke", "hq/old", "--reason", "host stolen"];
  const written = await insitu(command, { server: server.url, token: "t" });
  expect([written.code, written.stdout]).toEqual([0, "agent hq/old is revoked\n"]);
  expect(server.received[0]!.body).toEqual({ reason: "host stolen" });
});
