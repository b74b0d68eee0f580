import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import { subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { ensureStreams } from "./jetstream.ts";
import { JetStreamRunStore } from "./jetstream-run-store.ts";

let nats: TestNats;
let connection: NatsConnection;
let store: JetStreamRunStore;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
  store = new JetStreamRunStore(connection);
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

const cancelled = (reason: string): RunEvent => ({
  kind: "run.cancel-requested",
  atMs: 1,
  by: "ana",
  reason,
});

async function appended(runId: string, reason: string, expectedSeq: number, id = reason): Promise<number> {
  const result = await store.append(runId, [cancelled(reason)], expectedSeq, `${runId}-${id}`);
  if (result.kind !== "appended") throw new Error(`append of ${reason} met a conflict`);
  return result.seq;
}

describe("an append", () => {
  test("is a conflict when the run has moved on, and stores nothing", async () => {
    const seq = await appended("moved", "first", 0);
    expect(await store.append("moved", [cancelled("late")], 0, "moved-late")).toEqual({ kind: "conflict" });
    expect(await store.append("moved", [cancelled("early")], seq + 1, "moved-early")).toEqual({
      kind: "conflict",
    });
    expect(await store.read("moved", 0)).toEqual([{ seq, runId: "moved", events: [cancelled("first")] }]);
  });

  test("is not disturbed by what other runs append", async () => {
    const seq = await appended("quiet", "first", 0);
    await appended("loud", "first", 0);
    expect(await appended("quiet", "second", seq)).toBeGreaterThan(seq);
  });

  test("repeated with the same message id is answered like the first, though the run has moved on", async () => {
    const first = await appended("repeat", "first", 0);
    const second = await appended("repeat", "second", first);
    expect(await appended("repeat", "first", 0)).toBe(first);
    expect(await appended("repeat", "second", first)).toBe(second);
    expect((await store.read("repeat", 0)).map((batch) => batch.seq)).toEqual([first, second]);
  });

  test("of many writers with one expectation exactly one wins", async () => {
    const results = await Promise.all(
      Array.from({ length: 16 }, (_, n) => store.append("race", [cancelled(`${n}`)], 0, `race-${n}`)),
    );
    expect(results.filter((result) => result.kind === "appended")).toHaveLength(1);
    expect(await store.read("race", 0)).toHaveLength(1);
  });
});

describe("a read", () => {
  test("gives the batches of one run after a sequence, in order, however many", async () => {
    const seqs: number[] = [];
    for (let n = 0; n < 700; n++) seqs.push(await appended("long", `${n}`, seqs.at(-1) ?? 0));
    const all = await store.read("long", 0);
    expect(all.map((batch) => batch.seq)).toEqual(seqs);
    expect(all.map((batch) => batch.events)).toEqual(seqs.map((_, n) => [cancelled(`${n}`)]));
    expect((await store.read("long", seqs[650]!)).map((batch) => batch.seq)).toEqual(seqs.slice(651));
    expect(await store.read("long", seqs.at(-1)!)).toEqual([]);
  });

  test("of a run that is not there gives nothing", async () => {
    expect(await store.read("nobody", 0)).toEqual([]);
  });

  test("steps over what is no JSON object, and goes on behind it", async () => {
    const first = [{ kind: "run.cancel-requested", atMs: 1, by: "ana", reason: "" } as const];
    await store.append("stray", first, 0, "stray-1");
    const ack = await connection.jetstream().publish(subjects.run("stray"), "no events");
    const read = await store.read("stray", 0);
    expect(read.map(({ seq, events }) => [seq, events])).toEqual([
      [expect.any(Number), first],
      [ack.seq, []],
    ]);
    expect(await store.append("stray", first, ack.seq, "stray-2")).toMatchObject({ kind: "appended" });
  });

  test("of a batch that another release wrote is an error that names it", async () => {
    const ack = await connection.jetstream().publish(subjects.run("strange"), '{"v":9}');
    await expect(store.read("strange", 0)).rejects.toThrow(`message ${ack.seq} of RUNS`);
  });
});
