/** Sessions over real TLS: hello, heartbeats, cancels, and how they end. */
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import type { ServerMessage__Output } from "../../shared/wire/gen/insitu/agent/v1/ServerMessage.ts";
import { SEEN_PREFIX, SeenRecord } from "../fleet/agent-record.ts";
import { createFleet, type FleetChange } from "../fleet/fleet-service.ts";
import { openKv } from "../store/kv.ts";
import {
  heartbeat,
  hello,
  Inbox,
  lease,
  openSession,
  Plane,
  startWire,
  startWorld,
  type World,
} from "./gateway.fixture.ts";

let world: World;
let serial = 0;
beforeAll(async () => {
  world = await startWorld();
});
beforeEach(() => {
  Object.assign(world.plane, new Plane());
});
afterAll(async () => {
  await world?.stop();
});

async function joined(environment = "dream") {
  const name = `s${++serial}`;
  const identity = await world.join(environment, name);
  return { id: `${environment}/${name}`, environment, client: world.client(identity) };
}

/** Resolves at the first change of this agent that is of this kind. Ask before what brings it about. */
function change(kind: FleetChange["kind"], agent: string): Promise<FleetChange> {
  return new Promise((resolve) => {
    const stop = world.fleet.onChange((seen) => {
      if (seen.kind !== kind || seen.agent !== agent) return;
      stop();
      resolve(seen);
    });
  });
}

async function endOf(first: object): Promise<unknown> {
  const stream = (await joined()).client.Session();
  const inbox = new Inbox<ServerMessage__Output>(stream as never);
  stream.write(first);
  return await inbox.end();
}

describe("a session", () => {
  test("makes the agent visible with what it said of itself, and its end makes it a memory", async () => {
    const agent = await joined();
    const connected = change("connected", agent.id);
    const sandbox = {
      boxes: true,
      summary: "bubblewrap 0.8.0",
      held: { memory: "cgroup v2" },
      notHeld: {},
      unboxedUpTo: "internal",
      letsOut: true,
    };
    const { stream, inbox } = await openSession(agent.client, { sandbox });
    expect(await connected).toMatchObject({ environment: "dream", agent: agent.id });
    expect(world.fleet.get(agent.id)).toMatchObject({
      connected: true,
      hostname: "host-1",
      slots: 2,
      freeSlots: 2,
      executors: ["noop"],
      datasets: ["penguins"],
      labels: { rack: "7" },
      sandbox,
      software: "test agent",
    });
    stream.write(
      heartbeat(1, { freeSlots: 1, held: [lease("r1")], spoolBytes: 77, notTakingWork: "disk full" }),
    );
    await inbox.find((m) => m.heartbeatReply);
    expect(world.fleet.get(agent.id)).toMatchObject({
      freeSlots: 1,
      leases: [lease("r1")],
      spoolBytes: 77,
      notTakingWork: "disk full",
    });
    expect(Math.abs(world.fleet.get(agent.id)!.clockSkewMs!)).toBeLessThan(5_000);
    expect(world.fleet.agentsOf("dream").find((a) => a.id === agent.id)).toMatchObject({
      slots: 2,
      freeSlots: 1,
    });

    const gone = change("disconnected", agent.id);
    stream.write({ goodbye: { reason: "upgrade" } });
    stream.end();
    await gone;
    expect(await inbox.end()).toBeUndefined();
    expect(world.fleet.get(agent.id)).toMatchObject({
      connected: false,
      hostname: "host-1",
      slots: 2,
      freeSlots: 0,
    });
    expect(world.fleet.get(agent.id)!.lastSeenMs).not.toBeNull();
  });

  test("shows the policy of the agent's site as it was said last, and none of one that has none", async () => {
    const agent = await joined();
    const connected = change("connected", agent.id);
    const { stream, inbox } = await openSession(agent.client);
    await connected;
    expect(world.fleet.get(agent.id)!.sitePolicy).toBeNull();
    const digest = `sha256:${"a".repeat(64)}`;
    const sitePolicy = { digest, trouble: "policy.yaml:2:1: unknown key 'pipeline'" };
    stream.write(heartbeat(1, { sitePolicy }));
    await inbox.find((m) => m.heartbeatReply);
    expect(world.fleet.get(agent.id)!.sitePolicy).toEqual(sitePolicy);
    stream.write(heartbeat(2, { sitePolicy: { digest: "none of ours", trouble: "" } }));
    expect(await inbox.end()).toMatchObject({ details: expect.stringMatching(/sitePolicy/) });
  });

  test("of the last agent of an environment leaves it recognisably empty", async () => {
    const agent = await joined("biscoe");
    expect(world.fleet.agentsOf("biscoe")).toEqual([]);
    const connected = change("connected", agent.id);
    const { stream } = await openSession(agent.client);
    expect((await connected).connectedAgents).toBe(1);
    const gone = change("disconnected", agent.id);
    stream.cancel();
    expect((await gone).connectedAgents).toBe(0);
    expect(world.fleet.agentsOf("biscoe")).toEqual([]);
  });

  test("renews exactly the leases that a heartbeat names, in the name of the certificate", async () => {
    const agent = await joined();
    world.plane.onHeartbeat = (_, held) => ({
      renewed: held.filter((l) => l.runId === "mine"),
      superseded: held.filter((l) => l.runId !== "mine"),
      cancels: [{ lease: lease("mine"), reason: "enough" }],
    });
    const { stream, inbox } = await openSession(agent.client);
    stream.write(heartbeat(41, { held: [lease("mine"), lease("of-biscoe", 3)] }));
    const reply = await inbox.find((m) => m.heartbeatReply);
    expect(reply).toMatchObject({
      seq: "41",
      renewed: [lease("mine")],
      superseded: [lease("of-biscoe", 3)],
      cancels: [{ lease: lease("mine"), reason: "enough" }],
      cordoned: false,
    });
    expect(world.plane.heartbeats.at(-1)).toEqual({
      agent: agent.id,
      held: [lease("mine"), lease("of-biscoe", 3)],
    });
    stream.end();
  });

  test("that begins again renews what is held at once, and hears of cancels it missed", async () => {
    const agent = await joined();
    world.plane.onHeartbeat = (_, held) => ({
      renewed: [],
      superseded: [],
      cancels: held.map((l) => ({ lease: l, reason: "asked meanwhile" })),
    });
    const { stream, inbox } = await openSession(agent.client, { held: [lease("kept")] });
    expect(world.plane.heartbeats).toEqual([{ agent: agent.id, held: [lease("kept")] }]);
    expect(await inbox.find((m) => m.cancel)).toMatchObject({
      lease: lease("kept"),
      reason: "asked meanwhile",
    });
    expect(inbox.all[0]?.message).toBe("welcome");
    stream.end();
  });

  test("gets a cancel pushed at once; an agent that is not connected does not", async () => {
    const agent = await joined();
    expect(world.gateway.sessions.cancel(agent.id, lease("r"), "stop")).toBe(false);
    const { stream, inbox } = await openSession(agent.client);
    expect(world.gateway.sessions.cancel(agent.id, lease("r", 4), "stop")).toBe(true);
    expect(await inbox.find((m) => m.cancel)).toEqual({ lease: lease("r", 4), reason: "stop" });
    const gone = change("disconnected", agent.id);
    stream.cancel();
    await gone;
    expect(world.gateway.sessions.cancel(agent.id, lease("r"), "stop")).toBe(false);
  });

  test("that is opened twice gives way to the newer one, which stays; what is said late on the older counts for nothing", async () => {
    const agent = await joined();
    const old = await openSession(agent.client);
    const newer = await openSession(agent.client, { instanceId: "instance-2" });
    expect(await old.inbox.end()).toMatchObject({
      code: status.ABORTED,
      details: expect.stringMatching(/newer session/),
    });
    expect(world.fleet.get(agent.id)?.connected).toBe(true);
    newer.stream.write(heartbeat(1, { held: [lease("new")] }));
    await newer.inbox.find((m) => m.heartbeatReply);
    old.stream.write(heartbeat(9, { held: [lease("old")] }));
    newer.stream.write(heartbeat(2, { held: [lease("new")] }));
    await newer.inbox.find((m) => m.heartbeatReply?.seq === "2");
    expect(world.fleet.get(agent.id)).toMatchObject({ connected: true, leases: [lease("new")] });
    newer.stream.end();
  });

  test("whose connection is cut is over at once", async () => {
    const identity = await world.join("dream", "cut-off");
    const wire = await startWire(world.gateway.port);
    try {
      const { inbox } = await openSession(world.client(identity, wire.port));
      const gone = change("disconnected", "dream/cut-off");
      wire.cut();
      await gone;
      expect(await inbox.end()).toMatchObject({ code: status.UNAVAILABLE });
      expect(world.fleet.get("dream/cut-off")?.connected).toBe(false);
    } finally {
      wire.cut();
    }
  });

  test("of an agent that goes silent is ended", async () => {
    const quiet = await startWorld({ heartbeatMs: 100, leaseTtlMs: 300 });
    try {
      const { inbox } = await openSession(quiet.client(await quiet.join("dream", "mute")));
      expect(await inbox.end()).toMatchObject({
        code: status.DEADLINE_EXCEEDED,
        details: expect.stringMatching(/no heartbeat/),
      });
      expect(quiet.fleet.get("dream/mute")?.connected).toBe(false);
    } finally {
      await quiet.stop();
    }
  });
});

describe("a session is refused", () => {
  const version = (major: number) => ({ major, minor: 3, software: "agent 9", capabilities: [] });

  test.each([
    [
      "a newer major version: the server is to be upgraded",
      hello({ version: version(2) }),
      status.FAILED_PRECONDITION,
      /agent 9.*protocol 2.*upgrade the server/,
    ],
    [
      "an older major version: the agent is to be upgraded",
      hello({ version: version(0) }),
      status.FAILED_PRECONDITION,
      /upgrade the agent/,
    ],
    ["no version at all", hello({ version: null }), status.FAILED_PRECONDITION, /upgrade the agent/],
    ["a heartbeat before the hello", heartbeat(1), status.INVALID_ARGUMENT, /before the hello/],
    ["a hello without an instance", hello({ instanceId: "" }), status.INVALID_ARGUMENT, /instanceId/],
    [
      "a lease that names no step",
      hello({ held: [{ runId: "r", stepId: "", attempt: 1, epoch: 1 }] }),
      status.INVALID_ARGUMENT,
      /held/,
    ],
    [
      "a run id that would mean something in a subject",
      hello({ held: [lease("a.>")] }),
      status.INVALID_ARGUMENT,
      /runId/,
    ],
  ])("for %s", async (_, first, code, details) => {
    expect(await endOf(first)).toMatchObject({ code, details: expect.stringMatching(details) });
  });

  test("for a hello that comes twice, however late", async () => {
    const { stream, inbox } = await openSession((await joined()).client);
    stream.write(hello());
    expect(await inbox.end()).toMatchObject({
      code: status.INVALID_ARGUMENT,
      details: expect.stringMatching(/twice/),
    });
  });

  test("and a message of a newer agent is passed over", async () => {
    const { stream, inbox } = await openSession((await joined()).client);
    stream.write({});
    stream.write(heartbeat(5));
    expect((await inbox.find((m) => m.heartbeatReply)).seq).toBe("5");
    stream.end();
  });
});

describe("a check", () => {
  const check = (client: Awaited<ReturnType<typeof joined>>["client"]) =>
    new Promise<{ wallMs: string; replicaId: string }>((resolve, reject) => {
      client.Check({}, (err, reply) => (err ? reject(err) : resolve(reply!)));
    });

  test("asked for before, in and after a session disturbs nothing, however often and in whatever order", async () => {
    const agent = await joined();
    const before = systemClock.wallMs();
    await check(agent.client);
    expect(world.fleet.get(agent.id)?.connected ?? false).toBe(false);
    const { inbox, stream } = await openSession(agent.client);
    for (const _ of [1, 2, 3]) {
      const { wallMs } = await check(agent.client);
      expect(Number(wallMs)).toBeGreaterThanOrEqual(before);
    }
    stream.write(heartbeat(7));
    await inbox.find((m) => m.heartbeatReply);
    stream.end();
    await expect.poll(() => world.fleet.get(agent.id)?.connected).toBe(false);
    await check(agent.client);
    expect(world.fleet.get(agent.id)?.connected).toBe(false);
  });

  test("without an agent's certificate is refused", async () => {
    await expect(check(world.client())).rejects.toMatchObject({ code: status.UNAUTHENTICATED });
  });
});

describe("what comes twice, late or in the wrong order", () => {
  test("of heartbeats and goodbyes, sent twice, in another order or late, renews what each names, and ends nothing by itself", async () => {
    const { id, client } = await joined();
    const { stream, inbox } = await openSession(client);
    for (const seq of [2, 1, 2]) stream.write(heartbeat(seq, { held: [lease("r1")] }));
    stream.write({ goodbye: { reason: "stops" } });
    stream.write({ goodbye: { reason: "stops" } });
    stream.write(heartbeat(3, { held: [lease("r1")] }));
    await inbox.find((m) => m.heartbeatReply?.seq === "3" && m);
    expect(inbox.all.flatMap((m) => m.heartbeatReply?.seq ?? [])).toEqual(["2", "1", "2", "3"]);
    expect(world.fleet.get(id)).toMatchObject({ connected: true, leases: [lease("r1")] });
    stream.end();
  });

  test("of what another replica says of an agent, twice, late or in another order, does not part it from the one that it is connected to", async () => {
    const { id, client } = await joined();
    const { stream, inbox } = await openSession(client);
    stream.write(heartbeat(1));
    await inbox.find((m) => m.heartbeatReply);
    const before = world.fleet.get(id);
    const far = {
      kind: "presence",
      from: "replica-2",
      id,
      environment: "dream",
      sinceMs: 1,
      pulse: null,
      refusedReports: { unsigned: 0, forged: 0 },
    } as const;
    const greeting = {
      software: "old",
      hostname: "old",
      slots: 9,
      executors: [],
      datasets: [],
      labels: {},
      instanceId: "old",
      held: [],
      sandbox: null,
      cordonRevision: 0,
    };
    for (const say of [greeting, null, greeting, null, null]) world.fleet.heard({ ...far, hello: say });
    expect(world.fleet.get(id)).toMatchObject({
      connected: true,
      connectedSinceMs: before?.connectedSinceMs,
    });
    expect(world.fleet.get(id)?.hostname).toBe(before?.hostname);
    stream.end();
  });
});

describe("what is remembered", () => {
  test("of agents is there after a restart", async () => {
    const agent = await joined();
    const { stream } = await openSession(agent.client);
    const gone = change("disconnected", agent.id);
    stream.end();
    await gone;
    await world.fleet.close(); // flushes
    const registry = await world.openRegistry();
    const seen = await openKv(world.connection, {
      clock: systemClock,
      bucket: "agents",
      prefix: SEEN_PREFIX,
      schema: SeenRecord,
    });
    const again = createFleet({
      registry,
      seen,
      clock: world.gatewayOptions.clock,
      log: world.log,
      share: () => undefined,
    });
    const signal = new AbortController().signal;
    await registry.start(signal);
    await again.start(signal);
    expect(again.get(agent.id)).toMatchObject({ connected: false, hostname: "host-1", slots: 2 });
    expect(again.get(agent.id)?.lastSeenMs).toBe(world.fleet.get(agent.id)?.lastSeenMs);
    await again.close();
    await registry.close();
  });
});
