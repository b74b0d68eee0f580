import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type NatsConnection } from "nats";
import { describe, expect, test, vi } from "vitest";
import { z } from "zod";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { InsituError } from "../../shared/errors.ts";
import { systemClock } from "../../shared/system.ts";
import { BUCKETS, STREAMS, subjects, workConsumer } from "../../shared/wire/subjects.ts";
import { Chance } from "../../test/simulation/chance.ts";
import { beginDirectory, beginFile, restoreImage } from "../../test/support/sync-record.mjs";
import { ensureStreams, ensureWorkConsumer } from "./jetstream.ts";
import { openKv } from "./kv.ts";
import { NatsDisk, type NatsDiskOptions, type Syncing } from "./nats-disk.ts";
import { type NatsServer, startNatsServer } from "./nats-server.ts";
import { publish } from "./publish.ts";
import { flushBeforeAnswer } from "./stream-disk.ts";

const clock = systemClock;
const log = { debug() {}, info() {}, warn() {} };
const Text = z.object({ text: z.string() });

/** A nats-server whose disk is recorded, and which loses its power. */
class Machine implements AsyncDisposable {
  readonly #base = mkdtempSync(join(tmpdir(), "insitu-disk-"));
  readonly #record = join(this.#base, "record");
  #life = 0;
  server!: NatsServer;
  connection!: NatsConnection;
  disk!: NatsDisk;
  syncs = 0;
  failure: Error | undefined;

  /** Of its `store_dir`, as it was before each life and since. */
  get directory(): string {
    return join(this.#base, `life-${this.#life}`, "nats");
  }

  readonly #syncing: Syncing = {
    file: async (handle) => {
      this.syncs += 1;
      if (this.failure) throw this.failure;
      const end = beginFile(this.#record, handle.fd);
      await handle.datasync();
      end();
    },
    directory: async (handle, path) => {
      const end = beginDirectory(this.#record, path);
      await handle.sync();
      end();
    },
  };

  get diskOptions(): NatsDiskOptions {
    return { storeDirectory: this.directory, clock, syncing: this.#syncing };
  }

  async start(): Promise<this> {
    const { path: binary } = await findNatsServer();
    const user = { user: "test", password: "test" };
    mkdirSync(this.directory, { recursive: true });
    this.server = await startNatsServer({
      binary,
      directory: this.directory,
      host: "127.0.0.1",
      port: 0,
      users: [user],
      log,
      clock,
    });
    this.connection = await connect({ servers: this.server.url, user: user.user, pass: user.password });
    this.disk = new NatsDisk(this.diskOptions);
    await this.disk.flushAll();
    return this;
  }

  /** @param luck of a path: whether the kernel had written by itself what it held in the end */
  async powerCut(luck: (path: string) => boolean = () => false): Promise<void> {
    const exited = this.server.exited;
    process.kill(this.server.pid, "SIGKILL");
    await exited;
    await this.#close();
    const before = this.directory;
    this.#life += 1;
    mkdirSync(join(this.directory, ".."), { recursive: true });
    restoreImage(this.#record, before, this.directory, luck);
    rmSync(this.#record, { recursive: true, force: true });
    await this.start();
  }

  async #close(): Promise<void> {
    await this.connection.close();
    await this.disk[Symbol.asyncDispose]();
    await this.server.stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
    rmSync(this.#base, { recursive: true, force: true });
  }
}

async function newMachine({ flushing = true } = {}): Promise<Machine> {
  const machine = await new Machine().start();
  if (flushing) flushBeforeAnswer(machine.connection, machine.disk);
  await ensureStreams(await machine.connection.jetstreamManager(), 1);
  return machine;
}

/** Gives its sequence, once it is acknowledged. */
async function append(machine: Machine, runId: string, payload: string): Promise<number> {
  const published = await publish(
    { connection: machine.connection, clock, patienceMs: 0 },
    {
      what: "test",
      stream: STREAMS.runs,
      subject: subjects.run(runId),
      payload,
      messageId: `${runId}/${payload.slice(0, 40)}`,
    },
  );
  return published.kind === "stored" ? published.seq : 0;
}

async function at(machine: Machine, seq: number): Promise<string> {
  const manager = await machine.connection.jetstreamManager();
  return (await manager.streams.getMessage(STREAMS.runs, { seq })).string();
}

const lastSeq = async (machine: Machine, stream: string = STREAMS.runs) =>
  (await (await machine.connection.jetstreamManager()).streams.info(stream)).state.last_seq;

function bucket(machine: Machine, name: string = BUCKETS.agents) {
  return openKv(machine.connection, { clock, bucket: name, schema: Text });
}

describe("a nats-server that does not sync by itself", () => {
  test("without us a power cut takes all that it acknowledged", async () => {
    await using machine = await newMachine({ flushing: false });
    for (let i = 0; i < 10; i++) await append(machine, "r", `event ${i}`);
    await machine.powerCut();
    await ensureStreams(await machine.connection.jetstreamManager(), 1);
    expect(await lastSeq(machine)).toBe(0);
  });

  test("with us it takes nothing, over several blocks and under its sequence", {
    timeout: 60_000,
  }, async () => {
    await using machine = await newMachine();
    const acknowledged = new Map<number, string>();
    const write = async (runId: string, events: number, bytes: number) => {
      for (let i = 0; i < events; i++) {
        const payload = `event ${i} of ${runId} `.padEnd(bytes, "x");
        acknowledged.set(await append(machine, runId, payload), payload);
      }
    };
    await Promise.all(["a", "b", "c"].map((runId) => write(runId, 30, 300)));
    // Blocks of 8 MiB: this fills several.
    await Promise.all(Array.from({ length: 30 }, (_, i) => write(`d${i}`, 1, 1_000_000)));
    await write("f", 5, 100);
    const blocks = readdirSync(join(machine.directory, "jetstream/$G/streams/RUNS/msgs"));
    expect(blocks.filter((name) => name.endsWith(".blk")).length).toBeGreaterThan(2);

    await machine.powerCut();
    expect(await lastSeq(machine)).toBe(Math.max(...acknowledged.keys()));
    for (const [seq, payload] of acknowledged) expect(await at(machine, seq)).toBe(payload);
    expect(acknowledged.size).toBe(125);
  });

  test("what an earlier process left behind is on the disk once we have started", async () => {
    await using machine = await newMachine({ flushing: false });
    const seqs: number[] = [];
    for (let i = 0; i < 20; i++) seqs.push(await append(machine, "r", `${i} `.padEnd(1_000_000, "x")));
    await using next = new NatsDisk(machine.diskOptions);
    await next.flushAll();
    await machine.powerCut();
    for (const [i, seq] of seqs.entries())
      expect(await at(machine, seq)).toBe(`${i} `.padEnd(1_000_000, "x"));
  });

  test.each([1, 2, 3, 4, 5, 6])("whatever else has reached the disk by itself, seed %i", async (seed) => {
    const chance = new Chance(seed);
    await using machine = await newMachine();
    const appended = new Map<number, string>();
    const values = new Map<string, string>();
    for (let life = 0; life < 3; life++) {
      flushBeforeAnswer(machine.connection, machine.disk);
      const kv = await bucket(machine);
      const churn = async (key: string) => {
        for (let i = 0; i < 20; i++) {
          const text = `${key} ${life} ${i}`;
          const held = await kv.get(key);
          if (held) await kv.update(key, { text }, held.revision);
          else await kv.create(key, { text });
          values.set(key, text);
        }
      };
      const run = async (runId: string) => {
        for (let i = 0; i < 20; i++) {
          const payload = `${runId} ${life} ${i}`;
          appended.set(await append(machine, runId, payload), payload);
        }
      };
      await Promise.all([churn("k"), churn("l"), churn(`only-${life}`), run("r"), run("s")]);
      const lost = new Promise<void>((resolve) => {
        // What nobody is told of: it may be there or not.
        void append(machine, "u", `nobody ${life}`).catch(() => {});
        setImmediate(resolve);
      });
      await lost;
      await machine.powerCut(() => chance.happens(0.5));
      const after = await bucket(machine);
      for (const [key, text] of values) expect((await after.get(key))?.value).toEqual({ text });
      for (const [seq, payload] of appended) expect(await at(machine, seq)).toBe(payload);
    }
    expect(appended.size).toBe(120);
  });

  test("many that wait share a sync", async () => {
    await using machine = await newMachine();
    await append(machine, "r", "first");
    machine.syncs = 0;
    await Promise.all(Array.from({ length: 200 }, (_, i) => append(machine, `r${i}`, "event")));
    expect(machine.syncs).toBeGreaterThan(0);
    expect(machine.syncs).toBeLessThan(100);
  });

  test("a stream that an operator empties is followed to its new files", async () => {
    await using machine = await newMachine();
    await append(machine, "r", "before");
    const manager = await machine.connection.jetstreamManager();
    await manager.streams.purge(STREAMS.runs);
    const seq = await append(machine, "r", "after");
    await machine.powerCut();
    expect(await at(machine, seq)).toBe("after");
  });

  test("a stream that is deleted and made anew is followed to its new files", async () => {
    await using machine = await newMachine();
    await append(machine, "r", "before");
    const manager = await machine.connection.jetstreamManager();
    await manager.streams.delete(STREAMS.runs);
    await ensureStreams(manager, 1);
    const seq = await append(machine, "r", "after");
    await machine.powerCut();
    expect(await at(machine, seq)).toBe("after");
    expect(await lastSeq(machine)).toBe(seq);
  });

  test("when a sync fails nothing is acknowledged any more, though the next sync would succeed", async () => {
    await using machine = await newMachine();
    await append(machine, "r", "good");
    machine.failure = Object.assign(new Error("EIO: i/o error, fdatasync"), { code: "EIO" });
    const failed = append(machine, "r", "bad").catch(InsituError.from);
    expect(await failed).toMatchObject({ code: "store.unavailable" });
    machine.failure = undefined;
    const after = await append(machine, "r", "later").catch(InsituError.from);
    expect(after).toMatchObject({
      code: "store.unavailable",
      message: expect.stringContaining("see to the disk"),
    });
    // Other streams have other files.
    await (await bucket(machine)).create("k", { text: "still" });
  });

  test("a stream of the same name in another account is not taken for ours", async () => {
    await using machine = await newMachine();
    await append(machine, "r", "before");
    const other = join(machine.directory, "jetstream", "A", "streams", "RUNS");
    cpSync(join(machine.directory, "jetstream/$G/streams/RUNS"), other, { recursive: true });
    await using unsure = new NatsDisk(machine.diskOptions);
    flushBeforeAnswer(machine.connection, unsure);
    const refused = await append(machine, "r", "unsure").catch(InsituError.from);
    expect(refused).toMatchObject({ message: expect.stringContaining("several accounts") });

    await using sure = new NatsDisk({ ...machine.diskOptions, account: "$G" });
    flushBeforeAnswer(machine.connection, sure);
    const seq = await append(machine, "r", "ours");
    rmSync(join(machine.directory, "jetstream", "A"), { recursive: true });
    await machine.powerCut();
    expect(await at(machine, seq)).toBe("ours");
  });

  test("a stream whose files are elsewhere is not acknowledged", async () => {
    await using machine = await newMachine();
    const elsewhere = new NatsDisk({ storeDirectory: join(machine.directory, "nothing-here"), clock });
    flushBeforeAnswer(machine.connection, elsewhere);
    const refused = await append(machine, "r", "event").catch(InsituError.from);
    expect(refused).toMatchObject({
      code: "store.unavailable",
      message: expect.stringContaining("no files"),
    });
  });
});

test("a queue that a power cut has shortened gives what comes next", async () => {
  await using machine = await newMachine();
  const { connection } = machine;
  const manager = await connection.jetstreamManager();
  await ensureWorkConsumer(manager, "site", workConsumer("site"));
  await machine.disk.flushAll();
  for (let i = 0; i < 5; i++) await connection.jetstream().publish(subjects.work("site"), `old ${i}`);
  const consumer = await connection.jetstream().consumers.get(STREAMS.work, workConsumer("site"));
  for (let i = 0; i < 5; i++) await (await consumer.next({ expires: 5_000 }))?.ackAck();
  const known = join(machine.directory, "jetstream/$G/streams/WORK/obs/env-site/o.dat");
  await vi.waitFor(() => expect(statSync(known).size).toBeGreaterThan(0), 10_000);
  // What the consumer has seen was written by chance, and what was in the queue was not.
  await machine.powerCut((path) => path.includes("/obs"));
  const restored = await machine.connection.jetstreamManager();
  expect(
    (await restored.consumers.info(STREAMS.work, workConsumer("site"))).delivered.stream_seq,
  ).toBeGreaterThan(await lastSeq(machine, STREAMS.work));

  await ensureWorkConsumer(restored, "site", workConsumer("site"));
  await machine.connection.jetstream().publish(subjects.work("site"), "new");
  const after = await machine.connection.jetstream().consumers.get(STREAMS.work, workConsumer("site"));
  expect((await after.next({ expires: 5_000 }))?.string()).toBe("new");
});
