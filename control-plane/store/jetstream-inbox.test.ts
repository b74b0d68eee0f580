import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import type { InboxItem } from "../shards/ports.ts";
import { ensureStreams } from "./jetstream.ts";
import { JetStreamInbox } from "./jetstream-inbox.ts";
import type { PoisonStream } from "./poison-stream.ts";

let nats: TestNats;
let connection: NatsConnection;
let poison: PoisonStream;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
  poison = await poisonOf(connection);
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

const item = (stepId: string): InboxItem => {
  const lease = { runId: "r", stepId, attempt: 1, epoch: 1 };
  return { agent: "site/a", report: { kind: "started", lease, atMs: 1 } };
};

/** `accept` says in turn what becomes of each report; it throws, leaves or takes it. */
async function inbox(answers: ("throw" | "leave" | "take")[]) {
  const seen: string[] = [];
  const complaints: string[] = [];
  const parts = new JetStreamInbox({
    connection,
    manager: await connection.jetstreamManager(),
    clock: systemClock,
    log: pino({}, { write: (line) => void complaints.push((JSON.parse(line) as { msg: string }).msg) }),
    sweepMs: 20,
    poison,
    accept: ({ report }) => {
      seen.push(report.lease.stepId);
      const answer = answers.shift() ?? "take";
      return answer === "throw" ? Promise.reject(new Error("no answer")) : Promise.resolve(answer === "take");
    },
  });
  await parts.start();
  return { parts, seen, complaints, [Symbol.asyncDispose]: () => parts.close() };
}

async function left(): Promise<number> {
  return (await (await connection.jetstreamManager()).streams.info(STREAMS.inbox)).state.messages;
}

test("a report that was left or could not be accepted is come back to, until it is dealt with", async () => {
  await using here = await inbox(["throw", "leave", "throw"]);
  await here.parts.put(3, item("fit"));
  await expect.poll(left).toBe(0);
  expect(here.seen).toEqual(["fit", "fit", "fit", "fit"]);
});

test("what is no report is moved to where poison is kept, and holds nothing up", async () => {
  await using here = await inbox(["leave"]);
  const { seq } = await connection.jetstream().publish(subjects.inbox(5), "no report");
  await here.parts.put(5, item("load"));
  await expect.poll(left).toBe(0);
  expect(here.seen).toEqual(["load", "load"]);
  expect(await poison.list()).toMatchObject([{ source: "inbox", subject: "inbox.5", seq, bytes: 9 }]);
});

test("a report of a later release stays for a replica that can read it, is complained of once, and is copied once", async () => {
  await using here = await inbox(["leave"]);
  const later = { agent: "site/a", report: { ...item("fit").report, kind: "paused" } };
  const { seq } = await connection.jetstream().publish(subjects.inbox(5), JSON.stringify(later));
  await here.parts.put(5, item("score"));
  await expect.poll(() => here.seen).toEqual(["score", "score"]);
  await expect.poll(left).toBe(1);
  expect(here.complaints.filter((text) => text.includes("later release"))).toHaveLength(1);
  expect((await poison.list()).filter((one) => one.seq === seq)).toHaveLength(1);
});
