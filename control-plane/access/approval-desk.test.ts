/** Against a real nats-server: one approval is used once, by whichever replica is asked. */
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { openKv } from "../store/kv.ts";
import { createApprovalDesk } from "./approval-desk.ts";
import {
  APPROVAL_BODY_MAX_BYTES,
  APPROVALS_WAITING_MAX,
  ApprovalRecord,
  type ApprovalRequest,
} from "./approvals.ts";

let nats: TestNats;
let connection: NatsConnection;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

async function replica() {
  const kv = await openKv(connection, { clock: systemClock, bucket: "approvals", schema: ApprovalRecord });
  return createApprovalDesk({ kv, clock: systemClock, log: pino({ level: "silent" }) });
}

function request(requester: string, body: string): ApprovalRequest {
  return {
    principal: { name: requester, grants: [] },
    method: "POST",
    path: "/v1/runs",
    body,
    needs: [{ right: "runs:start", target: { kind: "pipeline", name: "ward" }, facts: undefined }],
    because: "rule people/two forbids it",
  };
}

test("asked for at one replica, approved at another, and taken once by ten requests at the same time", async () => {
  const desks = await Promise.all([replica(), replica(), replica()]);
  const asked = await Promise.all(desks.map((desk) => desk.ask(request("ada", "{}"))));
  expect(new Set(asked.map(({ record }) => record.id)).size).toBe(1);
  const { id } = asked[0]!.record;
  expect(await desks[1]!.get(id)).toEqual(asked[0]!.record);
  await desks[1]!.decide(id, { approved: true, by: "bob", reason: "seen" }, () => undefined);
  const tries = Array.from({ length: 10 }, (_, index) => desks[index % 3]!.ask(request("ada", "{}")));
  const verdicts = (await Promise.all(tries)).map(({ verdict }) => verdict);
  expect(verdicts.filter((verdict) => verdict === "take")).toHaveLength(1);
  expect(verdicts.filter((verdict) => verdict === "waiting")).toHaveLength(9);
});

test("one that had no effect is good again, but not one that was asked for anew", async () => {
  const desk = await replica();
  const first = await desk.ask(request("ada", "1"));
  await desk.decide(first.record.id, { approved: true, by: "bob", reason: "" }, () => undefined);
  const taken = await desk.ask(request("ada", "1"));
  expect(taken.verdict).toBe("take");
  await desk.giveBack(taken.record);
  expect((await desk.ask(request("ada", "1"))).verdict).toBe("take");
  const anew = await desk.ask(request("ada", "1"));
  expect(anew.verdict).toBe("waiting");
  await desk.giveBack(taken.record);
  expect((await desk.ask(request("ada", "1"))).verdict).toBe("waiting");
  await expect(
    desk.decide(first.record.id, { approved: true, by: "bob", reason: "" }, () => undefined),
  ).rejects.toMatchObject({ code: "not-found" });
});

test("who may not decide is heard before anything changes", async () => {
  const desk = await replica();
  const { record } = await desk.ask(request("ada", "2"));
  const refuse = () => {
    throw new Error("not you");
  };
  await expect(desk.decide(record.id, { approved: true, by: "eve", reason: "" }, refuse)).rejects.toThrow(
    "not you",
  );
  expect((await desk.ask(request("ada", "2"))).verdict).toBe("waiting");
});

test("a request that nobody could read is refused, and so are too many at once", async () => {
  const desk = await replica();
  await expect(desk.ask(request("eve", "x".repeat(APPROVAL_BODY_MAX_BYTES + 1)))).rejects.toMatchObject({
    code: "request.too-large",
  });
  for (let i = 0; i < APPROVALS_WAITING_MAX; i++) await desk.ask(request("eve", String(i)));
  await expect(desk.ask(request("eve", "one more"))).rejects.toMatchObject({ code: "limit.exceeded" });
  expect((await desk.ask(request("eve", "0"))).verdict).toBe("waiting");
  expect((await desk.ask(request("zoe", "0"))).verdict).toBe("waiting");
});
