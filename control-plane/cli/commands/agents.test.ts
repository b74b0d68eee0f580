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

type Cordoned = { state: string; left: number | null };

/** An agent that is being drained, as a server shows it. */
function drained({ state, left }: Cordoned, change: object = {}) {
  const drain = { deadlineMs: null, once: false };
  const cordon = { atMs: 1, by: "ana", reason: "disk change", drain, state, left };
  const leases = left ? [{ runId: "r1", stepId: "fit", attempt: 1, epoch: 1 }] : [];
  return { id: "hq/old", connected: true, revoked: null, leases, cordon, ...change };
}

const DRAIN = "POST /v1/agents/hq/old/drain";
const GET = "GET /v1/agents/hq/old";
const waiting = ["agents", "drain", "hq/old", "--wait"];

test("agents drain --wait tells what is left, also while the server is away, and ends when the agent is drained", async () => {
  const away = {
    code: "unavailable",
    title: "Not available now",
    detail: "restarting",
    status: 503,
    retryable: true,
  };
  await using server = await SmallServer.start({
    [DRAIN]: json(drained({ state: "not-heard", left: null })),
    [GET]: [
      json(drained({ state: "draining", left: 1 })),
      ...Array.from({ length: 8 }, () => json(away, 503)),
      json(drained({ state: "drained", left: 0 })),
    ],
  });
  const command = [...waiting, "--reason", "disk change", "--deadline", "30m", "--force"];
  const written = await insitu(command, { server: server.url, token: "t" });
  expect([written.code, written.stdout]).toEqual([0, "agent hq/old is drained\n"]);
  expect(written.stderr).toMatch(/has not heard of it yet\n.*1 step left \(fit of run r1\)\n/);
  expect(server.received[0]!.body).toEqual({ reason: "disk change", withinMs: 1_800_000, once: true });
});

test.each([
  ["called off", { cordon: null }, /somebody has called it off/],
  ["revoked", { revoked: { atMs: 1, by: "ada", reason: "stolen" } }, /it was revoked/],
])("agents drain --wait fails when the drain is %s", async (_, change, said) => {
  await using server = await SmallServer.start({
    [DRAIN]: json(drained({ state: "draining", left: 1 })),
    [GET]: json(drained({ state: "draining", left: 1 }, change)),
  });
  const written = await insitu(waiting, { server: server.url, token: "t" });
  expect([written.code, written.stderr]).toEqual([1, expect.stringMatching(said)]);
});

test("agents drain --wait gives up after its time-out, and the drain goes on", async () => {
  await using server = await SmallServer.start({
    [DRAIN]: json(drained({ state: "draining", left: 1 })),
    [GET]: json(drained({ state: "draining", left: 1 })),
  });
  const written = await insitu([...waiting, "--timeout", "1ms"], { server: server.url, token: "t" });
  expect([written.code, written.stderr]).toEqual([124, expect.stringMatching(/the drain goes on/)]);
});

test.each([
  [["--force"], /needs --deadline/],
  [["--timeout", "1m"], /needs --wait/],
  [["--deadline", "soon"], /takes a duration/],
])("agents drain %j is refused, and nothing is asked of the server", async (flags, said) => {
  await using server = await SmallServer.start({});
  const written = await insitu(["agents", "drain", "hq/old", ...flags], { server: server.url, token: "t" });
  expect([written.code, server.received]).toEqual([2, []]);
  expect(written.stderr).toMatch(said);
});

test("agents cordon and uncordon say what they did, and the list shows who did it and why", async () => {
  const cordon = { atMs: 1, by: "ana", reason: "disk change", drain: null, state: "cordoned", left: 0 };
  const view = { ...drained({ state: "cordoned", left: 0 }), cordon, notTakingWork: "cordoned" };
  const listed = { ...view, freeSlots: 0, slots: 1, datasets: [], lastSeenMs: 1, software: "s" };
  await using server = await SmallServer.start({
    "POST /v1/agents/hq/old/cordon": json(view),
    "POST /v1/agents/hq/old/uncordon": json({ ...view, cordon: null }),
    "GET /v1/agents": json({ items: [listed], nextCursor: null }),
    "GET /v1/join-requests": json({ items: [] }),
  });
  const asked = { server: server.url, token: "t" };
  const first = await insitu(["agents", "cordon", "hq/old", "--reason", "disk change"], asked);
  expect([first.code, first.stdout]).toEqual([0, "agent hq/old is cordoned\n"]);
  expect(server.received[0]!.body).toEqual({ reason: "disk change" });
  expect((await insitu(["agents", "list"], asked)).stdout).toContain("cordoned by ana: disk change");
  const last = await insitu(["agents", "uncordon", "hq/old"], asked);
  expect([last.code, last.stdout]).toEqual([0, "agent hq/old may take work again\n"]);
});
