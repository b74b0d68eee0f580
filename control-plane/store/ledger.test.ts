/** The ledger over a real nats-server: neither gap nor double, whoever writes and however it ends. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import { compile } from "../../shared/engine/plan.ts";
import { InsituError } from "../../shared/errors.ts";
import { type LedgerEntry, parseEntry } from "../../shared/provenance/ledger-entry.ts";
import { leafHash, readerOf, rootHash } from "../../shared/provenance/merkle.ts";
import { systemClock } from "../../shared/system.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { canMount, Disk } from "../../test/support/disk.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { Authority, offerOf, type Sealer } from "../../test/support/receipts.ts";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { loadOrCreateLogKey } from "../access/log-key.ts";
import { loadOrCreateOfferSigner } from "../access/offer-signer.ts";
import { CheckpointService } from "../evidence/checkpoint-service.ts";
import { LedgerService } from "../evidence/ledger-service.ts";
import type { CheckpointStore, LedgerStore } from "../evidence/ports.ts";
import { ensureStreams } from "./jetstream.ts";
import { JetStreamLedger } from "./jetstream-ledger.ts";
import { JetStreamRunStore } from "./jetstream-run-store.ts";
import { JetStreamLedgerSources } from "./ledger-sources.ts";
import { StoredLedgerTree } from "./ledger-tree.ts";

const log = pino({ level: "silent" });
const clock = systemClock;
const version = `sha256:${"a".repeat(64)}`;
const QUIET = `sha256:${"b".repeat(64)}`;
const reading = stepSpec("fit", { reads: ["patients"] });
const plans = {
  load(asked: string) {
    if (asked === version)
      return Promise.resolve(compile(pipelineSpec("study", [reading, stepSpec("tidy")])));
    if (asked === QUIET) return Promise.resolve(compile(pipelineSpec("quiet", [stepSpec("fit")])));
    return Promise.reject(new InsituError("not-found", `there is no version ${asked}`));
  },
};

let nats: TestNats;
let connection: NatsConnection;
let runs: JetStreamRunStore;
let directory: string;
let sealer: Sealer;
const open: { close(): Promise<unknown> }[] = [];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "insitu-ledger-"));
  nats = await startTestNats();
  connection = await connected();
  await ensureStreams(await connection.jetstreamManager(), 1);
  runs = new JetStreamRunStore(connection);
  sealer = await (await Authority.open()).agent("dream", "a1");
});
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
  await connection?.close();
  await nats?.stop();
  rmSync(directory, { recursive: true, force: true });
});

const connected = (): Promise<NatsConnection> =>
  connect({
    servers: nats.url,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
  });

function writer(store: LedgerStore = new JetStreamLedger(connection), at = connection): LedgerService {
  const sources = new JetStreamLedgerSources({ connection: at, plans, clock, log });
  const service = new LedgerService({ store, sources, clock, log });
  service.begin();
  open.push({ close: () => service.end() });
  return service;
}

async function treeOf(name = "tree"): Promise<StoredLedgerTree> {
  const tree = new StoredLedgerTree({ directory: join(directory, name), connection, clock, log });
  await tree.start();
  open.push(tree);
  return tree;
}

const lease = (runId: string) => ({ runId, stepId: "fit", attempt: 1, epoch: 1 });

/** A whole run of one data-bound step, with its receipt, in three messages. */
async function run(runId: string, of = version): Promise<void> {
  const receipt = sealer.seal(offerOf({ lease: lease(runId), step: reading }), outcome());
  const about = { atMs: 1, step: "fit", attempt: 1, epoch: 1 };
  const batches: RunEvent[][] = [
    [
      { kind: "run.created", atMs: 1, runId, pipeline: "study", version: of, params: {}, by: "ana" },
      { ...about, kind: "attempt.offered", environment: "dream", policyVersion: "p1", expiresAtMs: 9 },
    ],
    [{ ...about, kind: "attempt.started", agent: "dream/a1" }],
    [
      {
        ...about,
        kind: "attempt.finished",
        agent: "dream/a1",
        outcome: outcome({ receipt }),
        retryAtMs: null,
      },
      { kind: "step.succeeded", atMs: 1, step: "fit" },
      { kind: "run.finished", atMs: 1, status: "succeeded", reason: "" },
    ],
  ];
  let seq = 0;
  for (const [i, events] of batches.entries()) {
    const appended = await runs.append(runId, events, seq, `${runId}-${i}`);
    if (appended.kind === "conflict") throw new Error("conflict");
    seq = appended.seq;
  }
}
const LEAVES = ["run.started", "attempt.placed", "attempt.taken", "receipt", "attempt.ended"];

async function leaves(tree: StoredLedgerTree, size: number): Promise<LedgerEntry[]> {
  await tree.waitFor(size);
  return (await tree.entries(0, size)).map((bytes) => parseEntry(bytes)!);
}
const kindOf = (entry: LedgerEntry): string => (entry.kind === "decision" ? entry.decision.kind : entry.kind);
/** What each leaf was made from: sorted, there is neither a gap nor a double in it. */
const madeFrom = (entries: readonly LedgerEntry[]): string[] =>
  entries
    .map(({ source }) => `${source.stream}/${String(source.seq).padStart(6, "0")}/${source.part}`)
    .sort();

describe("leaves", () => {
  test("are what agents signed and what was decided about data-bound steps, in order, and their tree is RFC 6962's", async () => {
    await run("r1");
    await run("r2", QUIET);
    writer();
    const tree = await treeOf();
    await run("r3");
    const found = await leaves(tree, 2 * LEAVES.length);
    expect(found.map(kindOf)).toEqual([...LEAVES, ...LEAVES]);
    expect(tree.placesOf("r3", "fit").map(({ kind, index }) => `${index} ${kind}`)).toEqual(
      LEAVES.slice(1).map((kind, i) => `${LEAVES.length + 1 + i} ${kind}`),
    );
    const hashes = (await tree.entries(0, tree.size)).map((bytes) => leafHash(bytes));
    expect(tree.root(tree.size)).toEqual(rootHash(readerOf(hashes), hashes.length));
  });

  test("say of what cannot be made sense of that it was there", async () => {
    await connection.jetstream().publish(subjects.run("junk"), "not JSON");
    const odd: RunEvent = {
      kind: "run.created",
      atMs: 1,
      runId: "odd",
      pipeline: "p",
      version: "v",
      params: {},
      by: "a",
    };
    await runs.append("odd", [odd], 0, "odd");
    writer();
    const found = await leaves(await treeOf(), 2);
    expect(found).toEqual(
      [1, 2].map((seq) =>
        expect.objectContaining({ kind: "opaque", source: { stream: "RUNS", seq, part: 0 } }),
      ),
    );
  });
});

describe("there is neither a gap nor a double", () => {
  const RUNS = 30;
  const all = async (tree: StoredLedgerTree): Promise<void> => {
    const found = await leaves(tree, RUNS * LEAVES.length);
    expect(madeFrom(found)).toEqual([...new Set(madeFrom(found))]);
    expect(await new JetStreamLedger(connection).size()).toBe(RUNS * LEAVES.length);
    for (let i = 0; i < RUNS; i++) expect(tree.placesOf(`r${i}`).map(({ kind }) => kind)).toEqual(LEAVES);
  };

  test("when several write at the same time", async () => {
    const second = await connected();
    open.push(second);
    const third = await connected();
    open.push(third);
    for (const at of [connection, second, third]) writer(new JetStreamLedger(at), at);
    const tree = await treeOf();
    for (let i = 0; i < RUNS; i++) await run(`r${i}`);
    await all(tree);
  });

  test("when a writer ends in the middle of a message, and another goes on", async () => {
    for (let i = 0; i < RUNS; i++) await run(`r${i}`);
    const real = new JetStreamLedger(connection);
    // Ends for good after so many leaves: in a message, between two, at the first and near the last.
    for (const limit of [1, 4, 5, 13, 148]) {
      let ended = (): void => undefined;
      const isOver = new Promise<void>((resolve) => {
        ended = resolve;
      });
      const dying: LedgerStore = {
        size: () => real.size(),
        lastOf: (source) => real.lastOf(source),
        leavesOf: (...about) => real.leavesOf(...about),
        durable: (size) => real.durable(size),
        async append(entries, size) {
          const some = entries.slice(0, limit - size);
          if (some.length > 0) await real.append(some, size);
          if (some.length === entries.length) return "appended";
          ended();
          throw new InsituError("store.unavailable", "it is gone", { retryable: true });
        },
      };
      const service = writer(dying);
      await isOver;
      await service.end();
      expect(await real.size()).toBe(limit);
    }
    writer();
    await all(await treeOf());
  });

  test("when nats-server is killed while it is written to", async () => {
    writer();
    const tree = await treeOf();
    for (let i = 0; i < RUNS; i++) {
      if (i === 10 || i === 20) {
        await nats.kill();
        await nats.restart();
      }
      await expect
        .poll(
          () =>
            run(`r${i}`).then(
              () => "done",
              (err: Error) => err.message,
            ),
          { timeout: 15_000 },
        )
        .toBe("done");
    }
    await all(tree);
  }, 60_000);
});

test("a writer stops when the message of the newest leaf is another one than the leaf says", async () => {
  await run("r1");
  const first = writer();
  const tree = await treeOf();
  await tree.waitFor(LEAVES.length);
  await first.end();
  // The stream of run events was put back, and has gone on otherwise.
  const manager = await connection.jetstreamManager();
  const { config } = await manager.streams.info(STREAMS.runs);
  await manager.streams.delete(STREAMS.runs);
  await manager.streams.add(config);
  const second = writer();
  await expect.poll(() => second.trouble).toMatch(/was changed or put back/);
  await run("r2");
  await expect.poll(() => second.trouble).toMatch(/was changed or put back/);
  expect(await new JetStreamLedger(connection).size()).toBe(LEAVES.length);
});

describe("the tree of a replica", () => {
  test("reads the stream again where more came than may wait", async () => {
    for (let i = 0; i < 20; i++) await run(`r${i}`);
    const service = writer();
    await expect.poll(() => new JetStreamLedger(connection).size()).toBe(20 * LEAVES.length);
    await service.end();
    const small = new StoredLedgerTree({
      directory: join(directory, "few"),
      connection,
      clock,
      log,
      waitingMax: 7,
    });
    await small.start();
    open.push(small);
    await small.waitFor(20 * LEAVES.length);
    const whole = await treeOf();
    await whole.waitFor(20 * LEAVES.length);
    expect(small.root(100)).toEqual(whole.root(100));
  });

  test("goes on where it was, and is built anew when its folder is of another ledger", async () => {
    await run("r1");
    writer();
    const tree = await treeOf();
    await tree.waitFor(LEAVES.length);
    const root = tree.root(LEAVES.length);
    open.splice(open.indexOf(tree), 1);
    await tree.close();
    const again = await treeOf();
    expect([again.size, again.root(LEAVES.length)]).toEqual([LEAVES.length, root]);
    open.splice(open.indexOf(again), 1);
    await again.close();
    open.splice(0).forEach((one) => void one.close());

    await nats.stop();
    nats = await startTestNats();
    await connection.close();
    connection = await connected();
    await ensureStreams(await connection.jetstreamManager(), 1);
    runs = new JetStreamRunStore(connection);
    await run("other");
    writer();
    const other = await treeOf();
    await expect.poll(() => other.size).toBe(LEAVES.length);
    expect(other.root(LEAVES.length)).not.toEqual(root);
    expect(other.placesOf("r1")).toEqual([]);
  });
});

test.skipIf(!canMount(mkdtempSync(join(tmpdir(), "insitu-mount-"))))(
  "the tree waits for a disk that is full, starts on one, and goes on when there is room",
  async () => {
    const disk = new Disk(join(directory, "small"), "16m");
    try {
      writer();
      const tree = await treeOf("small/tree");
      await run("r1");
      await tree.waitFor(LEAVES.length);
      disk.fill();
      // Many, so that they do not fit into what the database has left free.
      for (let i = 0; i < 40; i++) await run(`full-${i}`);
      await expect.poll(() => new JetStreamLedger(connection).size()).toBe(41 * LEAVES.length);
      expect(tree.size).toBeLessThan(41 * LEAVES.length);
      open.splice(open.indexOf(tree), 1);
      await tree.close();
      const again = await treeOf("small/tree");
      disk.free();
      await again.waitFor(41 * LEAVES.length);
      const hashes = (await again.entries(0, again.size)).map((bytes) => leafHash(bytes));
      expect(again.root(again.size)).toEqual(rootHash(readerOf(hashes), hashes.length));
      open.splice(open.indexOf(again), 1);
      await again.close();
    } finally {
      disk.close();
    }
  },
  30_000,
);

describe("a checkpoint", () => {
  function memory(): CheckpointStore & { note?: string } {
    let revision = 0;
    const store: CheckpointStore & { note?: string } = {
      read: async () => (store.note === undefined ? undefined : { note: store.note, revision }),
      async write(note, expected) {
        if ((expected ?? 0) !== revision) throw new InsituError("conflict", "another was first");
        revision += 1;
        store.note = note;
      },
    };
    return store;
  }
  async function checkpointsOver(tree: StoredLedgerTree, store: CheckpointStore, writes = true) {
    const secrets = join(directory, "secrets");
    await loadOrCreateOfferSigner(secrets);
    const key = await loadOrCreateLogKey(secrets, "insitu.test");
    const ledger = new JetStreamLedger(connection);
    const service = new CheckpointService({ key, tree, ledger, store, clock, log, writes: () => writes });
    open.push(service);
    return service;
  }

  test("is of all leaves there are when it is asked for, and other replicas show it as theirs", async () => {
    await run("r1");
    writer();
    const tree = await treeOf();
    await tree.waitFor(LEAVES.length);
    const store = memory();
    const signing = await checkpointsOver(tree, store);
    const newest = await signing.upToDate(AbortSignal.timeout(5_000));
    expect(newest).toMatchObject({ size: LEAVES.length, root: tree.root(LEAVES.length) });
    const reading = await checkpointsOver(await treeOf("other"), store, false);
    expect((await reading.upToDate(AbortSignal.timeout(5_000))).note).toBe(newest.note);
  });

  test("is signed and shown no more when the ledger does not begin as the one before", async () => {
    await run("r1");
    const first = writer();
    const tree = await treeOf();
    await tree.waitFor(LEAVES.length);
    const store = memory();
    const signing = await checkpointsOver(tree, store);
    const { note } = await signing.upToDate(AbortSignal.timeout(5_000));
    await first.end();
    // Whoever runs NATS puts another ledger in the place of this one.
    const manager = await connection.jetstreamManager();
    const { config } = await manager.streams.info(STREAMS.ledger);
    await manager.streams.delete(STREAMS.ledger);
    await manager.streams.add(config);
    const rolledBack = await checkpointsOver(await treeOf("back"), store);
    await rolledBack.look();
    expect(rolledBack.forked).toMatch(/fewer leaves than the 5/);
    for (let i = 0; i < LEAVES.length + 2; i++)
      await connection.jetstream().publish(subjects.ledger("RUNS"), `forged ${i}`);
    const forged = await checkpointsOver(await treeOf("forged"), store);
    await forged.look();
    expect(forged.forked).toMatch(/first 5 leaves of the ledger are not those/);
    expect(forged.newest).toBeUndefined();
    expect(store.note).toBe(note);
  });

  test("of another key is not shown", async () => {
    const store = memory();
    const tree = await treeOf();
    await (await checkpointsOver(tree, store)).upToDate(AbortSignal.timeout(5_000));
    rmSync(join(directory, "secrets"), { recursive: true });
    const other = await checkpointsOver(tree, store);
    await other.look();
    expect(other.forked).toMatch(/not one of this ledger's key/);
    expect(other.newest).toBeUndefined();
  });
});
