/** What arrives at a replica may be cut or missing while what is stored is whole: real streams, damaged copies. */
import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import { compile } from "../../shared/engine/plan.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { ensureStreams } from "./jetstream.ts";
import { JetStreamRunStore } from "./jetstream-run-store.ts";
import { RunFolds } from "./run-folds.ts";
import { readToEnd, type StreamMessage } from "./stream-reader.ts";

const plan = compile(pipelineSpec("nightly", [stepSpec("load")]));
const grant = { step: "load", attempt: 1, epoch: 1 };
const HISTORY: (runId: string) => RunEvent[][] = (runId) => [
  [
    { kind: "run.created", atMs: 1, runId, pipeline: "nightly", version: "v", params: {}, by: "ana" },
    { kind: "attempt.offered", atMs: 1, ...grant, environment: "site", policyVersion: "p", expiresAtMs: 9 },
  ],
  [{ kind: "attempt.started", atMs: 2, ...grant, agent: "site/a" }],
  [{ kind: "attempt.lost", atMs: 3, ...grant, agent: "site/a", reason: "lease-expired" }],
];
const NOT_JSON = Buffer.from('{"v":1,"events":[{"kind"HMSG run');

let nats: TestNats;
let connection: NatsConnection;
let folds: RunFolds;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});
beforeEach(() => {
  const plans = { load: () => Promise.resolve(plan) };
  folds = new RunFolds({ store: new JetStreamRunStore(connection), plans, versionOf: () => undefined });
});

/** Stores the batches, or the bytes, and returns the messages as a replica is to get them. */
async function stored(runId: string, ...batches: (RunEvent[] | Buffer)[]): Promise<StreamMessage[]> {
  const filter = subjects.run(runId);
  for (const batch of batches) {
    const data = Buffer.isBuffer(batch) ? batch : JSON.stringify({ v: 1, events: batch });
    await connection.jetstream().publish(filter, data);
  }
  const messages: StreamMessage[] = [];
  for await (const message of readToEnd({ connection, stream: STREAMS.runs, filter, fromSeq: 1 }))
    messages.push(message);
  return messages;
}

test("a message that arrives cut is read from the stream", async () => {
  const [created, started] = await stored("cut-1", ...HISTORY("cut-1").slice(0, 2));
  await folds.take(created!);
  const folded = await folds.take({ ...started!, data: NOT_JSON });
  expect(folded?.events.map(({ kind }) => kind)).toEqual(["attempt.started"]);
  expect(folds.get("cut-1")?.detail().steps[0]?.status).toBe("running");
});

test("events that make no sense, because some did not arrive, are folded with those", async () => {
  const [created, , lost] = await stored("gap-1", ...HISTORY("gap-1"));
  await folds.take(created!);
  const folded = await folds.take(lost!);
  expect(folded?.run.seq).toBe(lost!.seq);
  expect(folds.get("gap-1")?.detail().steps[0]?.attempts[0]).toMatchObject({
    agent: "site/a",
    status: "lost",
  });
});

test("events that would fold over a gap are folded with those that did not arrive", async () => {
  const [first, second] = HISTORY("skipped-1");
  const store = new JetStreamRunStore(connection);
  const over: RunEvent[] = [{ kind: "run.taken-over", atMs: 3, shardEpoch: 2, replica: "r2" }];
  let seq = 0;
  for (const [n, events] of [first!, second!, over].entries()) {
    const result = await store.append("skipped-1", events, seq, `skipped-1/${n}`);
    seq = result.kind === "appended" ? result.seq : 0;
  }
  const [created, , takenOver] = await stored("skipped-1");
  await folds.take(created!);
  await folds.take(takenOver!);
  expect(folds.get("skipped-1")?.detail().steps[0]?.status).toBe("running");
});

test("what is stored like that is nobody's event, and the run goes on behind it", async () => {
  const [first, second, third] = HISTORY("foreign-1");
  const messages = await stored("foreign-1", first!, NOT_JSON, second!, third!);
  await folds.take(messages[0]!);
  await expect(folds.take(messages[1]!)).rejects.toThrow(/no JSON object/);
  await folds.take(messages[2]!);
  expect((await folds.take(messages[3]!))?.run.seq).toBe(messages[3]!.seq);
  expect([...folds.whole()]).toHaveLength(1);
});

test("by a run whose history is impossible nobody decides, and what follows is not folded into it", async () => {
  const [first, second] = HISTORY("impossible-1");
  const never: RunEvent[] = [{ kind: "attempt.started", atMs: 2, ...grant, epoch: 7, agent: "site/a" }];
  const messages = await stored("impossible-1", first!, never, second!);
  await folds.take(messages[0]!);
  await expect(folds.take(messages[1]!)).rejects.toThrow(/attempt.started of step load/);
  expect(await folds.take(messages[2]!)).toBeUndefined();
  expect(folds.get("impossible-1")?.seq).toBe(messages[0]!.seq);
  expect([...folds.whole()]).toEqual([]);
});
