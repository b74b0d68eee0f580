import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { digestOf } from "../../shared/model/canonical.ts";
import { systemClock } from "../../shared/system.ts";
import { subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import { author } from "../../test/support/signing.ts";
import { pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { ResourceChange } from "../resources/resource-journal.ts";
import { ensureStreams } from "./jetstream.ts";
import type { PoisonStream } from "./poison-stream.ts";
import { ResourceLog } from "./resource-log.ts";

let nats: TestNats;
let connection: NatsConnection;
let poison: PoisonStream;
let opened: ResourceLog[];
let serial = 0;

beforeEach(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
  poison = await poisonOf(connection);
  opened = [];
});
afterEach(async () => {
  for (const log of opened) await log.close();
  await connection?.close();
  await nats?.stop();
});

async function open(): Promise<ResourceLog> {
  const log = pino({ level: "silent" });
  opened.push(await ResourceLog.open({ connection, clock: systemClock, log, replicas: 1, poison }));
  return opened.at(-1)!;
}

const pool = (name: string, capacity: number): ResourceChange => ({
  action: "set",
  kind: "pool",
  name,
  spec: { name, capacity },
});

const apply = (log: ResourceLog, changes: ResourceChange[], expectedSeq = log.seq) =>
  log.append(changes, { by: "ana", atMs: 5, expectedSeq, id: `apply-${++serial}` });

const names = (log: ResourceLog) => log.list("pool").map((resource) => resource.name);

describe("an apply", () => {
  test("is seen whole by the reader that made it, by another, and by one that opens later", async () => {
    const [one, two] = [await open(), await open()];
    const seenByTwo: string[][] = [];
    const told = new Promise<void>((resolve) => {
      two.onChange(() => {
        seenByTwo.push(names(two));
        resolve();
      });
    });
    await apply(one, [pool("b", 2), pool("a", 1)]);
    expect(names(one)).toEqual(["a", "b"]);
    await told;
    expect(seenByTwo).toEqual([["a", "b"]]);
    const later = await open();
    expect(later.list("pool")).toEqual(one.list("pool"));
    expect(later.get("pool", "b")).toMatchObject({ spec: { capacity: 2 }, appliedAtMs: 5, appliedBy: "ana" });
  });

  test("keeps the signatures of each version of a pipeline, as they were applied last, for readers of later too", async () => {
    const log = await open();
    const [one, two] = [pipelineSpec("p", [stepSpec("a")]), pipelineSpec("p", [stepSpec("b")])];
    const signatures = [author().seal(one)];
    for (const spec of [one, two]) await log.keepVersion(digestOf(spec), spec);
    const set = (spec: typeof one, more: object = {}): ResourceChange => ({
      action: "set",
      kind: "pipeline",
      name: "p",
      version: digestOf(spec),
      ...more,
    });
    await apply(log, [set(one, { signatures })]);
    expect(log.get("pipeline", "p")).toMatchObject({ version: digestOf(one), signatures });
    await apply(log, [set(two)]);
    for (const reader of [log, await open()]) {
      expect(reader.get("pipeline", "p")).not.toHaveProperty("signatures");
      // Runs of the first version go on.
      expect(reader.signaturesOf(digestOf(one))).toEqual(signatures);
      expect(reader.signaturesOf(digestOf(two))).toEqual([]);
    }
    await apply(log, [set(one)]);
    expect(log.signaturesOf(digestOf(one))).toEqual([]);
  });

  test("is a conflict when something was applied since, changes nothing, and then sees what came first", async () => {
    const [one, two] = [await open(), await open()];
    const plannedAgainst = two.seq;
    await apply(one, [pool("a", 1)]);
    await expect(apply(two, [pool("a", 9), pool("b", 9)], plannedAgainst)).rejects.toMatchObject({
      code: "conflict",
      retryable: true,
    });
    expect(two.list("pool")).toMatchObject([{ name: "a", spec: { capacity: 1 } }]);
    await apply(two, [pool("b", 9)]);
    expect(names(two)).toEqual(["a", "b"]);
  });

  test("of many at the same time exactly one goes in", async () => {
    const log = await open();
    const results = await Promise.allSettled(
      Array.from({ length: 8 }, (_, n) => apply(log, [pool(`left-${n}`, 1), pool(`right-${n}`, 1)], 0)),
    );
    const won = results.findIndex((result) => result.status === "fulfilled");
    expect(results.filter((result) => result.status === "fulfilled")).toHaveLength(1);
    expect(names(log)).toEqual([`left-${won}`, `right-${won}`]);
  });

  test("of which a part cannot be taken in is not taken in at all", async () => {
    const log = await open();
    await apply(log, [pool("a", 1)]);
    const unknown = `sha256:${"0".repeat(64)}`;
    await apply(log, [
      pool("b", 1),
      { action: "deleted", kind: "pool", name: "a" },
      { action: "set", kind: "pipeline", name: "nightly", version: unknown },
    ]);
    expect(names(log)).toEqual(["a"]);
    expect(log.get("pipeline", "nightly")).toBeUndefined();
  });

  test("that is not understood leaves the resources as they are, and later ones go in", async () => {
    const log = await open();
    await connection.jetstream().publish(subjects.resources, '{"v":1,"changes":"none"}');
    const later = await open();
    expect(later.list("pool")).toEqual([]);
    await apply(later, [pool("a", 1)]);
    await expect(apply(log, [pool("b", 1)], 0)).rejects.toMatchObject({ code: "conflict" });
    expect(names(log)).toEqual(["a"]);
  });
});

test("a pipeline's versions are newest first, its plan is that of its digest, and a deleted one is gone", async () => {
  const log = await open();
  const versions: string[] = [];
  for (const id of ["load", "extract"]) {
    const spec = pipelineSpec("nightly", [stepSpec(id)]);
    versions.push(digestOf(spec));
    await log.keepVersion(versions.at(-1)!, spec);
    await log.keepVersion(versions.at(-1)!, spec);
    await apply(log, [{ action: "set", kind: "pipeline", name: "nightly", version: versions.at(-1)! }]);
  }
  expect(log.versionsOf("nightly").map(({ version }) => version)).toEqual([...versions].reverse());
  expect(log.get("pipeline", "nightly")?.version).toBe(versions[1]);
  expect((await log.load(versions[0]!)).steps.map(({ id }) => id)).toEqual(["load"]);
  await apply(log, [{ action: "deleted", kind: "pipeline", name: "nightly" }]);
  expect(log.get("pipeline", "nightly")).toBeUndefined();
  expect(log.list("pipeline")).toEqual([]);
  await expect(log.load(`sha256:${"0".repeat(64)}`)).rejects.toMatchObject({ code: "not-found" });
});

test("a stored body that does not have its digest is refused", async () => {
  const log = await open();
  const version = digestOf(pipelineSpec("nightly", [stepSpec("load")]));
  await log.keepVersion(version, pipelineSpec("nightly", [stepSpec("steal")]));
  await expect(log.load(version)).rejects.toMatchObject({ code: "internal" });
});
