import { afterAll, beforeAll, expect, test } from "vitest";
import type { Ack__Output } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";
import { poisonOf } from "../../test/support/poison.ts";
import { Inbox, lease, openSession, startWorld, type World } from "./gateway.fixture.ts";
import { POISON_RATE_LIMIT } from "./poison-limit.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world?.stop());

let serial = 0;
async function joined() {
  const name = `p${++serial}`;
  return { id: `dream/${name}`, client: world.client(await world.join("dream", name)) };
}

async function kept(from: string) {
  const desk = await poisonOf(world.connection);
  return (await desk.list()).filter((one) => one.from === from);
}

test("a malformed report and a malformed log chunk are kept before the agent is told to forget them", async () => {
  const { client, id } = await joined();
  const reports = client.Report();
  const reportAcks = new Inbox<Ack__Output>(reports as never);
  const payload = JSON.stringify({ kind: "started", lease: lease("r1"), atMs: 1 });
  reports.write({
    reports: [
      { seq: 1, payload: Buffer.from("no report") },
      { seq: 2, payload: Buffer.from(payload) },
    ],
  });
  const ack = await reportAcks.find((a) => a.ackedSeq === "2" && a);
  expect(ack).toBeDefined();
  expect(reportAcks.all.flatMap((a) => a.rejected)).toMatchObject([{ seq: "1", code: "request.invalid" }]);
  expect(world.plane.reports.map(({ report }) => report.lease.runId)).toContain("r1");
  const logs = client.Logs();
  const logAcks = new Inbox<Ack__Output>(logs as never);
  logs.write({ chunks: [{ seq: 1, runId: "no.run", entries: Buffer.from("x") }] });
  await logAcks.find((a) => a.ackedSeq === "1" && a);
  expect(await kept(id)).toMatchObject([
    { source: "gateway", subject: "report", bytes: 9 },
    { source: "gateway", subject: "log chunk", bytes: 1 },
  ]);
  reports.end();
  logs.end();
});

test("what an agent could not read as an offer is kept, and an agent cannot push out what others sent", async () => {
  const { client, id } = await joined();
  const { stream } = await openSession(client);
  const [environment] = id.split("/");
  for (let n = 0; n < POISON_RATE_LIMIT.burst + 5; n++) {
    stream.write({ refusedOffer: { payload: Buffer.from(`junk ${n}`), reason: "it is not signed" } });
  }
  await expect.poll(async () => (await kept(id)).length).toBe(POISON_RATE_LIMIT.burst);
  expect((await kept(id))[0]).toMatchObject({
    source: "work",
    subject: `work.${environment}`,
    reason: "it is not signed",
    bytes: 6,
  });
  stream.end();
});
