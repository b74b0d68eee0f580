/** What an agent is told of its cordon, over real TLS and a real bucket: by each replica, with each connection, and at once. */
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { cordonAgent, uncordonAgent } from "../fleet/cordon-agent.ts";
import { heartbeat, lease, openSession, startWorld, type World } from "./gateway.fixture.ts";

const log = pino({ level: "silent" });
const ana = { by: "ana", reason: "disk change", drain: null };

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(async () => {
  await world?.stop();
});

/** Another replica's registry. */
async function elsewhere() {
  const registry = await world.openRegistry();
  return { registry, clock: systemClock, log, [Symbol.asyncDispose]: () => registry.close() };
}

test("an agent hears at once of a cordon that another replica has written, and that it was lifted", async () => {
  await using other = await elsewhere();
  const agent = { environment: "dream", name: "told" };
  const { stream, inbox, welcome } = await openSession(world.client(await world.join("dream", "told")));
  expect(welcome).toMatchObject({ cordon: { revision: "0", cordoned: false } });
  const beforeMs = systemClock.wallMs();
  await cordonAgent(other, { ...agent, ...ana, drain: { withinMs: 60_000, once: true } });
  const told = await inbox.find((m) => m.heartbeatReply);
  expect(told).toMatchObject({
    cordoned: true,
    cordon: { cordoned: true, by: "ana", reason: "disk change", drainOnce: true },
    renewed: [],
  });
  const { revision, drainDeadlineMs } = (told as { cordon: { revision: string; drainDeadlineMs: string } })
    .cordon;
  expect(Number(revision)).toBeGreaterThanOrEqual(beforeMs);
  expect(Number(drainDeadlineMs)).toBeGreaterThanOrEqual(beforeMs + 60_000);
  expect(world.fleet.get("dream/told")).toMatchObject({ cordon: { state: "not-heard" } });

  stream.write(heartbeat(1, { cordonRevision: revision, notTakingWork: "cordoned", held: [lease("r")] }));
  await inbox.find((m) => m.heartbeatReply?.seq === "1" && m.heartbeatReply);
  expect(world.fleet.get("dream/told")).toMatchObject({ cordon: { state: "draining", left: 1 } });
  stream.write(heartbeat(2, { cordonRevision: revision, notTakingWork: "cordoned" }));
  await inbox.find((m) => m.heartbeatReply?.seq === "2" && m.heartbeatReply);
  expect(world.fleet.get("dream/told")).toMatchObject({ cordon: { state: "drained", left: 0 } });

  await uncordonAgent(other, { ...agent, by: "bo" });
  const lifted = await inbox.find((m) => m.heartbeatReply?.cordon?.cordoned === false && m.heartbeatReply);
  expect(Number((lifted as { cordon: { revision: string } }).cordon.revision)).toBeGreaterThan(
    Number(revision),
  );
  expect(world.fleet.get("dream/told")?.cordon).toBeNull();
  stream.end();
});

test("an agent that was away hears of its cordon with the welcome, and with every answer to a heartbeat", async () => {
  await using here = await elsewhere();
  const identity = await world.join("dream", "away");
  await cordonAgent(here, { environment: "dream", name: "away", ...ana });
  await world.registry.stored("dream/away");
  for (let connection = 0; connection < 2; connection++) {
    const { stream, inbox, welcome } = await openSession(world.client(identity));
    expect(welcome).toMatchObject({ cordon: { cordoned: true, by: "ana" } });
    stream.write(heartbeat(1));
    const reply = await inbox.find((m) => m.heartbeatReply);
    expect(reply).toMatchObject({ cordoned: true, cordon: { cordoned: true, by: "ana" } });
    stream.end();
  }
});

test("a cordon is of the name: who joins anew under it is told, and may be cordoned and freed any number of times", async () => {
  await using here = await elsewhere();
  const agent = { environment: "dream", name: "again" };
  await world.join("dream", "again");
  await cordonAgent(here, { ...agent, ...ana });
  const first = await here.registry.stored("dream/again");
  await cordonAgent(here, { ...agent, ...ana });
  const second = await here.registry.stored("dream/again");
  expect(second!.cordonRevision).toBeGreaterThan(first!.cordonRevision);
  await here.registry.revoke("dream/again", { by: "ana", reason: "host replaced" });
  await expect(cordonAgent(here, { ...agent, ...ana })).rejects.toMatchObject({ code: "conflict" });
  await expect(
    uncordonAgent(here, { environment: "dream", name: "nobody", by: "ana" }),
  ).rejects.toMatchObject({
    code: "not-found",
  });
  const { welcome, stream } = await openSession(world.client(await world.join("dream", "again")));
  expect(welcome).toMatchObject({ cordon: { cordoned: true, by: "ana" } });
  stream.end();
});
