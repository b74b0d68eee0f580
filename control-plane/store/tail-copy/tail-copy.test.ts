import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type NatsConnection } from "nats";
import { describe, expect, test, vi } from "vitest";
import { z } from "zod";
import type { RunEvent } from "../../../shared/engine/events.ts";
import { systemClock } from "../../../shared/system.ts";
import { STREAMS, subjects } from "../../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../../test/support/nats.ts";
import { connectNats, ensureStreams } from "../jetstream.ts";
import { JetStreamRunStore } from "../jetstream-run-store.ts";
import { openKv } from "../kv.ts";
import { publish } from "../publish.ts";
import { noteMade } from "../stream-disk.ts";
import { lastSeqOf } from "../stream-reader.ts";
import { TailCopy } from "./tail-copy.ts";

const clock = systemClock;
const Text = z.object({ text: z.string() });
const RUNS = ["01J00000000000000000000001", "01J00000000000000000000002"] as const;

/** A nats-server of others, on a host that loses its power. */
class Host implements AsyncDisposable {
  readonly nats: TestNats;
  readonly base = mkdtempSync(join(tmpdir(), "insitu-tail-"));
  readonly replicas: Replica[] = [];

  constructor(nats: TestNats) {
    this.nats = nats;
  }

  get streams(): string {
    return join(this.nats.directory, "jetstream");
  }

  /** As the disk would have it if nothing were synced from now on. */
  synced(): string {
    const copy = mkdtempSync(join(this.base, "disk-"));
    if (existsSync(this.streams)) cpSync(this.streams, copy, { recursive: true });
    return copy;
  }

  async powerCut(disk: string): Promise<void> {
    await this.nats.kill();
    rmSync(this.streams, { recursive: true, force: true });
    cpSync(disk, this.streams, { recursive: true });
    await this.nats.restart();
  }

  async replica(id: string, options: { keepMs?: number; peersMaxMs?: number } = {}): Promise<Replica> {
    const { url, user, password } = this.nats;
    const connection = await connectNats({ servers: [url], user, password, name: id });
    const told: { level: string; about: Record<string, unknown>; text: string }[] = [];
    const tell = (level: string) => (about: Record<string, unknown>, text: string) =>
      void told.push({ level, about, text });
    const log = { debug: tell("debug"), info: tell("info"), warn: tell("warn"), error: tell("error") };
    const copy = new TailCopy({
      directory: join(this.base, id),
      connection,
      dial: () => connectNats({ servers: [url], user, password, name: `${id}-writer`, reconnect: false }),
      replicaId: id,
      clock,
      log: log as never,
      ...options,
    });
    const replica = new Replica(connection, copy, told);
    this.replicas.push(replica);
    return replica;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const replica of this.replicas) await replica.stop();
    await this.nats.stop();
    rmSync(this.base, { recursive: true });
  }
}

class Replica {
  readonly connection: NatsConnection;
  readonly copy: TailCopy;
  readonly told: { level: string; about: Record<string, unknown>; text: string }[];
  readonly runs: JetStreamRunStore;

  constructor(connection: NatsConnection, copy: TailCopy, told: Replica["told"]) {
    this.connection = connection;
    this.copy = copy;
    this.told = told;
    this.runs = new JetStreamRunStore(connection);
  }

  async start(): Promise<this> {
    await this.copy.start(new AbortController().signal);
    await ensureStreams(await this.connection.jetstreamManager(), 1);
    await noteMade(this.connection, Object.values(STREAMS));
    return this;
  }

  append(run: string, note: string, expectedSeq: number, id = `${run}/${note}`): Promise<number> {
    const event = { kind: "test", note } as unknown as RunEvent;
    return this.runs.append(run, [event], expectedSeq, id).then((result) => {
      if (result.kind !== "appended") throw new Error(`append of ${note} was a ${result.kind}`);
      return result.seq;
    });
  }

  async notes(run: string): Promise<[number, string][]> {
    const batches = await this.runs.read(run, 0);
    return batches.map(({ seq, events }) => [seq, (events[0] as unknown as { note: string }).note]);
  }

  async bucket() {
    return await openKv(this.connection, { bucket: "records", schema: Text, clock });
  }

  /** As a crash: what it had under way has no answer. */
  async stop(): Promise<void> {
    await this.copy[Symbol.asyncDispose]();
    await this.connection.close();
  }
}

/** Once. */
function restoredBy({ copy }: Replica): Promise<void> {
  return new Promise((resolve) => copy.onRestored(async () => resolve()));
}

async function startHost(): Promise<Host> {
  return new Host(await startTestNats());
}

describe("what a power cut of NATS took", () => {
  test("is back under its sequences when the replica starts again, streams and buckets too", async () => {
    await using host = await startHost();
    const disk = host.synced();
    const before = await (await host.replica("a")).start();
    const kv = await before.bucket();
    const revision = await kv.create("used", { text: "no" });
    const used = await kv.update("used", { text: "yes" }, revision);
    const first = await before.append(RUNS[0], "one", 0);
    const other = await before.append(RUNS[1], "other", 0);
    const second = await before.append(RUNS[0], "two", first);
    await before.stop();
    await host.powerCut(disk);

    const after = await (await host.replica("a")).start();
    expect(await after.notes(RUNS[0])).toEqual([
      [first, "one"],
      [second, "two"],
    ]);
    expect(await after.notes(RUNS[1])).toEqual([[other, "other"]]);
    expect(await (await after.bucket()).get("used")).toEqual({
      key: "used",
      value: { text: "yes" },
      revision: used,
    });
    expect(await after.append(RUNS[0], "three", second)).toBe(second + 1);
  });

  test("is back before anything else is published, when the replica stays up", async () => {
    await using host = await startHost();
    const replica = await (await host.replica("a")).start();
    const first = await replica.append(RUNS[0], "one", 0);
    const disk = host.synced();
    let seq = first;
    for (let i = 0; i < 50; i++) seq = await replica.append(RUNS[0], `note ${i}`, seq);
    const restored = restoredBy(replica);
    const cut = host.powerCut(disk);
    // A new run would take the place of what was lost.
    const next = vi.waitFor(() => replica.append(RUNS[1], "other", 0), { timeout: 20_000 });
    await cut;
    await restored;
    expect(await next).toBe(seq + 1);
    expect(await vi.waitFor(() => replica.notes(RUNS[0]))).toHaveLength(51);
  });

  test("streams and buckets are made again that had nothing in them", async () => {
    await using host = await startHost();
    const disk = host.synced();
    const replica = await (await host.replica("a")).start();
    const kv = await replica.bucket();
    const restored = restoredBy(replica);
    await host.powerCut(disk);
    await restored;
    expect(await kv.get("nothing")).toBeUndefined();
    for (const stream of Object.values(STREAMS)) expect(await lastSeqOf(replica.connection, stream)).toBe(0);
  });

  test("a sequence that nobody was told of is filled, so that what follows has its own again", async () => {
    await using host = await startHost();
    const replica = await (await host.replica("a")).start();
    const disk = host.synced();
    const kv = await replica.bucket();
    // Stored, and never acknowledged by us.
    const stray = await connect({ servers: host.nats.url, user: host.nats.user, pass: host.nats.password });
    await stray.jetstream().publish(subjects.run(RUNS[1]), "stray");
    await stray.jetstream().publish("$KV.records.stray", "stray");
    await stray.close();
    const seq = await replica.append(RUNS[0], "one", 0);
    expect(seq).toBe(2);
    const revision = await kv.create("key", { text: "kept" });
    await replica.stop();
    await host.powerCut(disk);
    const after = await (await host.replica("a")).start();
    expect(await after.notes(RUNS[0])).toEqual([[seq, "one"]]);
    expect(await (await after.bucket()).get("key")).toMatchObject({ value: { text: "kept" }, revision });
  });

  test("an append whose answer was lost is copied when it is found", async () => {
    await using host = await startHost();
    const replica = await (await host.replica("a")).start();
    const disk = host.synced();
    const stray = await connect({ servers: host.nats.url, user: host.nats.user, pass: host.nats.password });
    const batch = JSON.stringify({ v: 1, events: [{ kind: "test", note: "found" }] });
    await stray.jetstream().publish(subjects.run(RUNS[0]), batch, { msgID: "x" });
    await stray.close();
    expect(await replica.notes(RUNS[0])).toEqual([[1, "found"]]);
    await replica.stop();
    await host.powerCut(disk);
    const after = await (await host.replica("a")).start();
    expect(await after.notes(RUNS[0])).toEqual([[1, "found"]]);
  });

  test("what took its place meanwhile stays, and what is lost for good is said and kept", async () => {
    await using host = await startHost();
    const replica = await (await host.replica("a")).start();
    const disk = host.synced();
    const first = await replica.append(RUNS[0], "one", 0);
    await replica.append(RUNS[0], "two", first);
    await replica.stop();
    await host.powerCut(disk);
    const stray = await connect({ servers: host.nats.url, user: host.nats.user, pass: host.nats.password });
    await stray.jetstream().publish(subjects.run(RUNS[1]), "stray");
    await stray.close();
    const after = await (await host.replica("a")).start();
    const lost = after.told.filter(({ level }) => level === "error");
    // The second would be a history with a hole.
    expect(lost.map(({ about }) => [about.seq, about.subject])).toEqual([
      [1, subjects.run(RUNS[0])],
      [2, subjects.run(RUNS[0])],
    ]);
    const [file] = readdirSync(join(host.base, "a", "lost"));
    const kept = JSON.parse(readFileSync(join(host.base, "a", "lost", file!), "utf8")) as { data: string };
    expect(Buffer.from(kept.data, "base64").toString()).toContain("one");
    expect(await after.notes(RUNS[0])).toEqual([]);
  });

  test("of several replicas is put back by each, in the order that it had", async () => {
    await using host = await startHost();
    const a = await (await host.replica("a")).start();
    const b = await (await host.replica("b")).start();
    const disk = host.synced();
    const seqs: Record<string, number> = { [RUNS[0]]: 0, [RUNS[1]]: 0 };
    const written: [number, string][] = [];
    for (let i = 0; i < 60; i++) {
      const [replica, run] = i % 3 === 0 ? ([a, RUNS[0]] as const) : ([b, RUNS[1]] as const);
      seqs[run] = await replica.append(run, `note ${i}`, seqs[run]!);
      written.push([seqs[run]!, `note ${i}`]);
    }
    const restored = Promise.all([a, b].map(restoredBy));
    await host.powerCut(disk);
    await restored;
    const found = [
      ...(await vi.waitFor(() => a.notes(RUNS[0]))),
      ...(await vi.waitFor(() => a.notes(RUNS[1]))),
    ];
    expect(found.sort(([x], [y]) => x - y)).toEqual(written);
    expect([...a.told, ...b.told].filter(({ level }) => level === "error")).toEqual([]);
  });

  test("waits for a replica that is away, and goes on without it in the end", async () => {
    await using host = await startHost();
    const a = await (await host.replica("a", { peersMaxMs: 1_500 })).start();
    const b = await (await host.replica("b")).start();
    const disk = host.synced();
    await b.append(RUNS[1], "of b", 0);
    const seq = await a.append(RUNS[0], "of a", 0);
    await b.stop();
    const restored = restoredBy(a);
    await host.powerCut(disk);
    await restored;
    expect(a.told.find(({ level }) => level === "error")?.about).toMatchObject({ replicas: ["b"] });
    expect(await vi.waitFor(() => a.notes(RUNS[0]))).toEqual([[seq, "of a"]]);
    const late = await (await host.replica("b")).start();
    expect(late.told.find(({ level }) => level === "error")?.about).toMatchObject({
      stream: STREAMS.runs,
      seq: 1,
    });
  });
});

test("a NATS that has less than the copy reaches back to is refused, and said so", async () => {
  await using host = await startHost();
  const empty = host.synced();
  const replica = await (await host.replica("a", { keepMs: 0 })).start();
  const first = await replica.append(RUNS[0], "one", 0);
  await replica.stop();
  // Long enough ago for the copy to have dropped it.
  const again = await (await host.replica("a", { keepMs: 0 })).start();
  await again.copy.dropOld();
  await again.append(RUNS[0], "two", first);
  await again.stop();
  await host.powerCut(empty);
  const after = await host.replica("a");
  await expect(after.start()).rejects.toMatchObject({ code: "conflict" });
});

test("nothing is acknowledged that cannot be copied", async () => {
  await using host = await startHost();
  const replica = await (await host.replica("a")).start();
  await replica.copy.dropOld();
  rmSync(join(host.base, "a"), { recursive: true });
  writeFileSync(join(host.base, "a"), "in the way");
  await expect(replica.append(RUNS[0], "one", 0)).rejects.toMatchObject({
    code: "store.unavailable",
    retryable: true,
  });
  rmSync(join(host.base, "a"));
});

test("a copy is dropped when NATS was seen to run for long enough, and not before", async () => {
  await using host = await startHost();
  const replica = await (await host.replica("a", { keepMs: 0 })).start();
  const world = { connection: replica.connection, clock, patienceMs: 5_000 };
  for (let i = 0; i < 5; i++)
    await publish(world, {
      what: "log",
      stream: STREAMS.logs,
      subject: subjects.log(RUNS[0], "s", 1),
      payload: "x".repeat(1_000),
      messageId: `log ${i}`,
    });
  expect(await lastSeqOf(replica.connection, STREAMS.logs)).toBe(5);
  const files = (): number => readdirSync(join(host.base, "a")).length;
  const [size] = readdirSync(join(host.base, "a")).map(
    (name) => readFileSync(join(host.base, "a", name)).length,
  );
  expect(size).toBeGreaterThan(5_000);
  await replica.copy.dropOld();
  expect(files()).toBe(1);
  expect(readFileSync(join(host.base, "a", readdirSync(join(host.base, "a"))[0]!)).length).toBeLessThan(
    size!,
  );
});
