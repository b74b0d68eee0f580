import { mkdtempSync, rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import { compile } from "../../shared/engine/plan.ts";
import { systemClock } from "../../shared/system.ts";
import { STREAMS } from "../../shared/wire/subjects.ts";
import { canMount, Disk } from "../../test/support/disk.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { PlanSource } from "../runs/ports.ts";
import { ensureStreams } from "./jetstream.ts";
import { JetStreamRunStore } from "./jetstream-run-store.ts";
import type { PoisonStream } from "./poison-stream.ts";
import { ReadModel } from "./read-model.ts";
import { flushBeforeAnswer } from "./stream-disk.ts";

const VERSION = `sha256:${"0".repeat(64)}`;
const plan = compile(pipelineSpec("nightly", [stepSpec("load"), stepSpec("report", { needs: ["load"] })]));
const grant = { attempt: 1, epoch: 1 };
const agent = "site/a";

let nats: TestNats;
let connection: NatsConnection;
let poison: PoisonStream;
let store: JetStreamRunStore;
let directory: string;
let messages = 0;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
  poison = await poisonOf(connection);
  store = new JetStreamRunStore(connection);
  directory = await mkdtemp(join(tmpdir(), "insitu-read-model-"));
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
  if (directory) await rm(directory, { recursive: true, force: true });
});

async function opened(
  name: string,
  plans: PlanSource = { load: () => Promise.resolve(plan) },
): Promise<ReadModel & AsyncDisposable> {
  const model = new ReadModel({
    directory: join(directory, name),
    connection,
    store,
    plans,
    clock: systemClock,
    log: pino({ level: "silent" }),
    poison,
  });
  await model.start();
  return Object.assign(model, { [Symbol.asyncDispose]: () => model.close() });
}

function created(runId: string): RunEvent[] {
  return [
    {
      kind: "run.created",
      atMs: 1,
      runId,
      pipeline: "nightly",
      version: VERSION,
      params: { n: 3 },
      by: "ana",
    },
    offered("load"),
  ];
}
function offered(step: string): RunEvent {
  const at = { atMs: 2, step, ...grant, environment: "site", policyVersion: "p1", expiresAtMs: 90 };
  return { kind: "attempt.offered", ...at };
}
const started = (step: string): RunEvent => ({ kind: "attempt.started", atMs: 3, step, ...grant, agent });
function succeeded(step: string): RunEvent[] {
  const ended = outcome({ logLastSeq: 7, finishedAtMs: 4 });
  return [
    { kind: "attempt.finished", atMs: 5, step, ...grant, agent, outcome: ended, retryAtMs: null },
    { kind: "step.succeeded", atMs: 5, step },
  ];
}
const finished: RunEvent = { kind: "run.finished", atMs: 9, status: "succeeded", reason: "" };
const fenced: RunEvent = {
  kind: "attempt.fenced",
  atMs: 12,
  step: "load",
  ...grant,
  agent: "site/b",
  outcome: outcome(),
};

const wholeRun = (runId: string): RunEvent[][] => [
  created(runId),
  [started("load")],
  [...succeeded("load"), offered("report")],
  [started("report")],
  [...succeeded("report"), finished],
];

/** Appends batches behind one another and gives their sequences. */
async function append(runId: string, batches: RunEvent[][], after = 0): Promise<number[]> {
  const seqs: number[] = [];
  for (const events of batches) {
    const result = await store.append(runId, events, seqs.at(-1) ?? after, `m${++messages}`);
    if (result.kind === "conflict") throw new Error(`batch ${seqs.length} of ${runId} met a conflict`);
    seqs.push(result.seq);
  }
  return seqs;
}

async function followed(model: ReadModel, runId: string, afterSeq: number, seen?: (seq: number) => void) {
  const seqs: number[] = [];
  for await (const { seq } of model.follow(runId, afterSeq, new AbortController().signal)) {
    seqs.push(seq);
    seen?.(seq);
  }
  return seqs;
}

function everything(model: ReadModel) {
  const list = model.list({ limit: 1_000 });
  return { list, details: list.items.map((run) => model.get(run.id)) };
}

describe("the folder", () => {
  test("deleted and built again gives the same list and details", async () => {
    await append("folder-1", wholeRun("folder-1"));
    await append("folder-2", wholeRun("folder-2").slice(0, 3));
    const [last] = (await append("folder-3", wholeRun("folder-3"))).slice(-1);
    await append("folder-3", [[fenced]], last);
    let before: ReturnType<typeof everything>;
    {
      await using model = await opened("folder");
      before = everything(model);
    }
    expect(before.list.items.map((run) => [run.id, run.status]).slice(0, 3)).toEqual([
      ["folder-3", "succeeded"],
      ["folder-2", "running"],
      ["folder-1", "succeeded"],
    ]);
    expect(
      before.details[2]?.steps.map((step) => [step.id, step.status, step.attempts[0]?.logLastSeq]),
    ).toEqual([
      ["load", "succeeded", 7],
      ["report", "succeeded", 7],
    ]);
    await rm(join(directory, "folder"), { recursive: true });
    await using rebuilt = await opened("folder");
    expect(everything(rebuilt)).toEqual(before);
  });

  test("kept over a stop takes up what was appended meanwhile, as one that is built anew does", async () => {
    const runId = "meanwhile-1";
    const [first, ...rest] = wholeRun(runId);
    const seqs = await append(runId, [first!]);
    {
      await using model = await opened("kept");
      expect((await model.unfinished()).map((run) => [run.runId, run.seq])).toContainEqual([runId, seqs[0]]);
    }
    await append(runId, rest, seqs[0]);
    await using kept = await opened("kept");
    await using anew = await opened("anew");
    expect(everything(kept)).toEqual(everything(anew));
    expect(kept.get(runId)?.status).toBe("succeeded");
    expect((await kept.unfinished()).map((run) => run.runId)).not.toContain(runId);
  });

  test.each([
    ["of another stream", 0],
    ["of another history of the stream, as after a restore from a backup,", 2],
  ])("%s is built anew", async (name, runs) => {
    await append(`other-${runs}`, wholeRun(`other-${runs}`));
    {
      await using model = await opened(`foreign-${runs}`);
      expect(model.get(`other-${runs}`)?.status).toBe("succeeded");
    }
    await using elsewhere = await startTestNats();
    const other = await connect({ servers: elsewhere.url, user: elsewhere.user, pass: elsewhere.password });
    await ensureStreams(await other.jetstreamManager(), 1);
    const stream = new JetStreamRunStore(other);
    const ids = Array.from({ length: runs * 100 }, (_, at) => `history-${at}`);
    for (const runId of ids) await stream.append(runId, created(runId), 0, `${name}-${runId}`);
    const model = new ReadModel({
      directory: join(directory, `foreign-${runs}`),
      connection: other,
      store: stream,
      plans: { load: () => Promise.resolve(plan) },
      clock: systemClock,
      log: pino({ level: "silent" }),
      poison: await poisonOf(other),
    });
    await model.start();
    expect(
      model
        .list({ limit: 1_000 })
        .items.map(({ id }) => id)
        .sort(),
    ).toEqual(ids.sort());
    await model.close();
    await other.close();
  });
});

test("pages are newest first and give every run once", async () => {
  for (const n of [1, 2, 3, 4, 5]) await append(`page-${n}`, wholeRun(`page-${n}`).slice(0, n === 3 ? 2 : 5));
  await using model = await opened("pages");
  const all = model.list({ limit: 1_000 }).items.map((run) => run.id);
  const paged: string[] = [];
  let cursor: string | null | undefined;
  while (cursor !== null) {
    const page = model.list({ limit: 2, ...(cursor === undefined ? {} : { cursor }) });
    paged.push(...page.items.map((run) => run.id));
    cursor = page.nextCursor;
  }
  expect(paged).toEqual(all);
  expect(all).toEqual([...all].sort().reverse());
  expect(model.list({ limit: 9, status: "running" }).items.map((run) => run.id)).toContain("page-3");
  expect(model.list({ limit: 9, status: "running" }).items.map((run) => run.id)).not.toContain("page-2");
  expect(model.list({ limit: 9, pipeline: "weekly" }).items).toEqual([]);
});

describe("a run that is followed", () => {
  test("live gives each batch once and ends with the run", async () => {
    await using model = await opened("live");
    const [first, ...rest] = wholeRun("live-1");
    const [seq] = await append("live-1", [first!]);
    let begun = (): void => {};
    const beginning = new Promise<void>((resolve) => {
      begun = resolve;
    });
    const following = followed(model, "live-1", 0, begun);
    await beginning;
    const seqs = await append("live-1", rest, seq);
    expect(await following).toEqual([seq, ...seqs]);
  });

  test("shows no event that is not in the run yet", async () => {
    let gate = Promise.resolve();
    await using model = await opened("behind", { load: () => gate.then(() => plan) });
    let open = (): void => {};
    gate = new Promise((resolve) => {
      open = resolve;
    });
    const seqs = await append("behind-1", wholeRun("behind-1"));
    const following = model.follow("behind-1", 0, new AbortController().signal);
    const first = following.next().then(() => model.get("behind-1")?.id);
    // Later than its own read of the same stream.
    for (const _ of [1, 2]) await store.read("behind-1", 0);
    open();
    expect(await first).toBe("behind-1");
    let last = 0;
    for await (const { seq } of following) last = seq;
    expect(last).toBe(seqs.at(-1));
    expect(model.get("behind-1")?.status).toBe("succeeded");
  });

  test("while it is appended gives each batch once, whenever the reader comes", async () => {
    await using model = await opened("whenever");
    const readers: Promise<number[]>[] = [];
    const seqs: number[] = [];
    for (const batch of wholeRun("whenever-1")) {
      readers.push(followed(model, "whenever-1", seqs.at(-1) ?? 0), followed(model, "whenever-1", 0));
      seqs.push(...(await append("whenever-1", [batch], seqs.at(-1) ?? 0)));
    }
    for (const [n, read] of (await Promise.all(readers)).entries()) {
      expect(read).toEqual(n % 2 === 1 ? seqs : seqs.slice(n / 2));
    }
  });

  test("after its end gives each batch once, or only those that are missing", async () => {
    const seqs = await append("after-1", wholeRun("after-1"));
    await using model = await opened("after");
    expect(await followed(model, "after-1", 0)).toEqual(seqs);
    expect(await followed(model, "after-1", seqs[2]!)).toEqual(seqs.slice(3));
    expect(await followed(model, "after-1", seqs.at(-1)!)).toEqual([]);
  });

  test("from behind its end ends, though a late outcome comes in at that moment", async () => {
    const seqs = await append("late-1", wholeRun("late-1"));
    await using model = await opened("late");
    // The reader's own read waits until the late outcome has been told to those who listen.
    const read = store.read.bind(store);
    let late: number[] = [];
    store.read = async (runId, afterSeq) => {
      store.read = read;
      late = await append("late-1", [[fenced]], seqs.at(-1));
      await model.waitFor(late[0]!);
      return read(runId, afterSeq);
    };
    expect(await followed(model, "late-1", seqs.at(-1)!)).toEqual(late);
  });

  test("shows what came as evidence after its end, to those who come later", async () => {
    const seqs = await append("evidence-1", wholeRun("evidence-1"));
    const late = await append("evidence-1", [[fenced]], seqs.at(-1));
    await using model = await opened("evidence");
    expect(await followed(model, "evidence-1", 0)).toEqual([...seqs, ...late]);
    expect(await followed(model, "evidence-1", seqs[2]!)).toEqual([...seqs.slice(3), ...late]);
  });

  test("that a reader takes slowly are all given, once, though few of them wait in memory", async () => {
    await using model = await opened("slow");
    const runId = "slow";
    const append = async (seq: number, events: RunEvent[], id: string) =>
      (await store.append(runId, events, seq, id)) as { kind: "appended"; seq: number };
    let { seq } = await append(0, created(runId), "slow-created");
    const seqs = [seq];
    const reader = model.follow(runId, 0, new AbortController().signal)[Symbol.asyncIterator]();
    expect((await reader.next()).value?.seq).toBe(seq);
    const second = reader.next();
    const asked = { kind: "run.cancel-requested", atMs: 1, by: "ana", reason: "" } as const;
    for (let n = 0; n < 1_300; n++) {
      ({ seq } = await append(seq, [asked], `slow-${n}`));
      seqs.push(seq);
    }
    await model.waitFor(seq);
    const got = [seqs[0], (await second).value?.seq];
    while (got.length < seqs.length) got.push((await reader.next()).value?.seq);
    expect(got).toEqual(seqs);
    await reader.return?.(undefined);
  });

  test("lets go when the reader leaves", async () => {
    await append("leave-1", [created("leave-1")]);
    await using model = await opened("leave");
    const leaving = new AbortController();
    const seqs: number[] = [];
    for await (const { seq } of model.follow("leave-1", 0, leaving.signal)) {
      seqs.push(seq);
      leaving.abort();
    }
    expect(seqs).toHaveLength(1);
  });
});

test("a message that is not understood does not stop the others", async () => {
  await using model = await opened("strange");
  await connection.jetstream().publish("run.0.strange-1", "{");
  const seqs = await append("strange-2", wholeRun("strange-2"));
  await model.waitFor(seqs.at(-1)!);
  expect(model.get("strange-2")?.status).toBe("succeeded");
  expect(model.get("strange-1")).toBeUndefined();
});

test("a run whose history is impossible keeps no replica from starting", async () => {
  const lost: RunEvent = {
    kind: "attempt.lost",
    atMs: 2,
    step: "report",
    ...grant,
    agent,
    reason: "lease-expired",
  };
  {
    await using model = await opened("impossible");
    const [seq] = await append("impossible-1", [created("impossible-1")]);
    await model.waitFor(seq!);
    await model.waitFor((await append("impossible-1", [[lost]], seq)).at(-1)!);
  }
  await using again = await opened("impossible");
  expect(again.get("impossible-1")?.status).toBe("running");
});

test("what is not on the disk yet is shown to nobody", async () => {
  const own = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  let bring = (): void => {};
  const asked: string[] = [];
  const brought = new Promise<void>((resolve) => {
    bring = resolve;
  });
  const model = new ReadModel({
    directory: join(directory, "unsynced"),
    connection: own,
    store,
    poison,
    plans: { load: () => Promise.resolve(plan) },
    clock: systemClock,
    log: pino({ level: "silent" }),
  });
  await model.start();
  let told = (): void => {};
  const waiting = new Promise<void>((resolve) => {
    told = resolve;
  });
  flushBeforeAnswer(own, {
    flush: async (stream) => {
      asked.push(stream);
      told();
      await brought;
    },
  });
  const appended = await store.append("unsynced", created("unsynced"), 0, "unsynced/1");
  await waiting;
  expect(model.get("unsynced")).toBeUndefined();
  bring();
  if (appended.kind === "appended") await model.waitFor(appended.seq);
  expect(model.get("unsynced")?.id).toBe("unsynced");
  expect(new Set(asked)).toEqual(new Set([STREAMS.runs]));
  await model.close();
  await own.close();
});

describe("on a disk that is full", () => {
  const probe = mkdtempSync(join(tmpdir(), "insitu-mount-"));
  const mounts = canMount(probe);
  rmSync(probe, { recursive: true });

  test.skipIf(!mounts)("it goes on in memory, starts again, and is written when there is room", async () => {
    const disk = new Disk(join(directory, "small"), "16m");
    try {
      const before = await opened("small/read-model");
      const [first] = await append("full-1", wholeRun("full-1"));
      await before.waitFor(first!);
      before.list({ limit: 1 });
      disk.fill();
      const last = (await append("full-2", wholeRun("full-2"))).at(-1)!;
      await before.waitFor(last);
      expect(before.get("full-2")).toMatchObject({ status: "succeeded" });
      expect(() => before.list({ limit: 10 })).toThrow(/cannot write its read model to .*: is there room/);
      await before.close();

      await using again = await opened("small/read-model");
      expect(again.get("full-2")).toMatchObject({ status: "succeeded" });
      disk.free();
      expect(again.list({ limit: 100 }).items.map(({ id }) => id)).toContain("full-2");
    } finally {
      disk.close();
    }
  });
});
