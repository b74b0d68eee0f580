import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { type LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import { decodeLogEntries, encodeLogEntries } from "../../shared/wire/log-codec.ts";
import { finished, LIMITS, leaseKey, MiB, offerOf, started, testDirectory } from "../agent.fixture.ts";
import { type Bundle, bundleOf } from "../bundle.fixture.ts";
import { Journal } from "./journal.ts";

const MARK = { lastSeq: 1, endOffset: 0, bytes: 0, lostBytes: 0 };

const payloadOf = (report: { payload: Buffer }) =>
  ReportPayload.parse(JSON.parse(report.payload.toString("utf8")));

const chunkOf = (lease: LeaseKey, data: Buffer, firstEntry = 1) => {
  const entry = { seq: firstEntry, atMs: 7, stream: "stdout" as const, data, droppedBytes: 0 };
  // Not compressed, so that sizes are what they seem.
  const { bytes } = encodeLogEntries([{ ...entry, data: Buffer.alloc(0) }]);
  return {
    lease,
    firstEntry,
    entryCount: 1,
    encoding: "identity" as const,
    atMs: 7,
    entries: Buffer.concat([bytes, data]),
    contentBytes: data.length,
  };
};

/** JSON knows no such number: the transaction fails half-way, as it does on a full disk. */
const unwritable = { kind: "started", lease: leaseKey(), atMs: 1n } as unknown as ReportPayload;

test("a lease and its report are there again after a restart, until an outcome replaces the lease", async () => {
  using directory = testDirectory();
  const lease = leaseKey();
  const before = new Journal(directory.path, LIMITS);
  await before.take({ offer: offerOf({ lease }), takenAtMs: 5 }, started(lease));
  await before.close();

  const after = new Journal(directory.path, LIMITS);
  expect(after.held()).toEqual([{ offer: offerOf({ lease }), takenAtMs: 5 }]);
  expect(after.reportsAfter(0, 10).map(payloadOf)).toEqual([started(lease)]);
  await after.finish(finished(lease));
  expect(after.held()).toEqual([]);
  expect(after.undelivered()).toEqual([lease]);
  await after.close();
});

test("sequences go on after a restart, also when everything was delivered", async () => {
  using directory = testDirectory();
  const before = new Journal(directory.path, LIMITS);
  await before.take({ offer: offerOf(), takenAtMs: 5 }, started(leaseKey()));
  await before.appendLog(chunkOf(leaseKey(), Buffer.from("x")), MARK);
  before.ackReports(1);
  before.ackLogs(1);
  await before.close();

  const after = new Journal(directory.path, LIMITS);
  expect(after.delivered).toBe(true);
  await after.finish(finished(leaseKey()));
  await after.appendLog(chunkOf(leaseKey(), Buffer.from("y"), 2), MARK);
  expect(after.reportsAfter(0, 10).map(({ seq }) => seq)).toEqual([2]);
  expect(after.logsAfter(0, 10).map(({ seq }) => seq)).toEqual([2]);
  await after.close();
});

test("an acknowledgement forgets everything up to its sequence and nothing beyond", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, LIMITS);
  const leases = [1, 2, 3].map((n) => leaseKey({ runId: `run-${n}` }));
  for (const lease of leases) await journal.finish(finished(lease));
  journal.ackReports(2);
  await journal.appendLog(chunkOf(leases[2]!, Buffer.from("x")), MARK); // in the same transaction or after it
  expect(journal.reportsAfter(0, 10).map(({ seq }) => seq)).toEqual([3]);
  expect(journal.undelivered()).toEqual([leases[2]]);
  await journal.close();
});

test("what was acknowledged is not sent again on a new stream, and is gone from disk after a restart", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, LIMITS);
  for (const n of [1, 2, 3]) await journal.finish(finished(leaseKey({ runId: `run-${n}` })));
  await journal.appendLog(chunkOf(leaseKey(), Buffer.from("x")), MARK);
  journal.ackReports(2);
  journal.ackLogs(1);
  // At once, and from the beginning.
  expect(journal.reportsAfter(0, 10).map(({ seq }) => seq)).toEqual([3]);
  expect(journal.logsAfter(0, 10)).toEqual([]);
  expect(journal.undelivered()).toEqual([leaseKey({ runId: "run-3" })]);
  await journal.close();
  const again = new Journal(directory.path, LIMITS);
  expect(again.reportsAfter(0, 10).map(({ seq }) => seq)).toEqual([3]);
  expect(again.logsAfter(0, 10)).toEqual([]);
  await again.close();
});

test("what was acknowledged leaves the disk without another write", async () => {
  using directory = testDirectory();
  let fire = (): void => {};
  const clock = {
    ...systemClock,
    after(_: number, fn: () => void) {
      fire = fn;
      return { cancel: () => undefined };
    },
  };
  const journal = new Journal(directory.path, { ...LIMITS, clock });
  await journal.finish(finished(leaseKey()));
  journal.ackReports(1);
  const other = new Journal(directory.path, LIMITS); // another look at the same store
  expect(other.delivered).toBe(false);
  await other.close();
  fire();
  const later = new Journal(directory.path, LIMITS);
  expect(later.delivered).toBe(true);
  await later.close();
  await journal.close();
});

test("a transaction that fails leaves neither a lease, nor a number, nor a byte on the accounts", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, LIMITS);
  const lease = leaseKey();
  await expect(journal.take({ offer: offerOf({ lease }), takenAtMs: 5 }, unwritable)).rejects.toMatchObject({
    code: "store.unavailable",
    retryable: true,
  });
  expect(journal.held()).toEqual([]);
  expect(journal.spoolBytes).toBe(0);
  expect(journal.delivered).toBe(true);
  await journal.finish(finished(lease));
  expect(journal.reportsAfter(0, 10).map(({ seq }) => seq)).toEqual([1]);
  await journal.close();
});

test("an outcome that could not be written does not stay among the undelivered", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, LIMITS);
  const outcome = finished(leaseKey());
  // Fails after the outcome, in the same transaction.
  const writes = [journal.finish(outcome), journal.take({ offer: offerOf(), takenAtMs: 5 }, unwritable)];
  expect((await Promise.allSettled(writes)).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  expect(journal.undelivered()).toEqual([]);
  expect(journal.spoolBytes).toBe(0);
  await journal.close();
});

test("when the log spool is full the oldest chunks give way to one note of the loss, and results stay", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, { ...LIMITS, logSpoolMaxBytes: MiB });
  const lease = leaseKey();
  await journal.finish(finished(leaseKey({ runId: "other" })));
  const written = 40;
  const data = Buffer.alloc(64 * 1024, "x");
  data[9] = data[99] = 10;
  const lines = { contentLines: 2 };
  for (let i = 0; i < written; i++)
    await journal.appendLog({ ...chunkOf(lease, data, i + 1), ...lines }, MARK);

  const [note, ...rest] = journal.logsAfter(0, 100);
  expect(note).toMatchObject({ dropped: true, firstEntry: 1 });
  const lost = note!.entryCount;
  expect(lost).toBeGreaterThan(written / 2);
  expect(rest.map(({ firstEntry }) => firstEntry)).toEqual(rest.map((_, i) => lost + 1 + i)); // without a gap
  expect(rest.at(-1)).toMatchObject({ firstEntry: written });
  const droppedBytes = lost * 64 * 1024;
  expect(decodeLogEntries(note!.encoding, note!.entries)).toEqual([
    { seq: lost, atMs: 7, stream: "agent", data: Buffer.alloc(0), droppedBytes, droppedLines: 2 * lost },
  ]);
  expect(journal.droppedLogBytes).toBe(droppedBytes);
  expect(journal.spoolBytes).toBeLessThan(MiB + 64 * 1024);
  expect(journal.reportsAfter(0, 10)).toHaveLength(1);
  await journal.close();

  const again = new Journal(directory.path, { ...LIMITS, logSpoolMaxBytes: MiB });
  expect(again.droppedLogBytes).toBe(droppedBytes);
  for (let i = 0; i < written; i++)
    await again.appendLog({ ...chunkOf(lease, data, written + i + 1), ...lines }, MARK);
  expect(again.logsAfter(0, 100).filter(({ dropped }) => dropped)).toHaveLength(1);
  await again.close();
});

test("of two attempts that write in turn each has one note of what was lost, however much that is", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, { ...LIMITS, logSpoolMaxBytes: MiB });
  const leases = ["run-1", "run-2"].map((runId) => leaseKey({ runId }));
  for (let i = 0; i < 60; i++) {
    for (const lease of leases) await journal.appendLog(chunkOf(lease, Buffer.alloc(32 * 1024), i + 1), MARK);
  }
  const chunks = journal.logsAfter(0, 1_000);
  for (const { runId } of leases) {
    const own = chunks.filter(({ lease }) => lease.runId === runId);
    expect(own.filter(({ dropped }) => dropped)).toHaveLength(1);
    expect(own.reduce((sum, { entryCount }) => sum + entryCount, 0)).toBe(60);
  }
  expect(journal.spoolBytes).toBe(chunks.reduce((sum, { entries }) => sum + entries.length, 0));
  await journal.close();
});

test("no more chunks are read than are wanted, and one at least", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, LIMITS);
  for (let i = 0; i < 5; i++) await journal.appendLog(chunkOf(leaseKey(), Buffer.alloc(1_000), i + 1), MARK);
  expect(journal.logsAfter(0, 10, 2_500)).toHaveLength(2);
  expect(journal.logsAfter(0, 10, 1)).toHaveLength(1);
  await journal.close();
});

test("results beyond the limit are kept, and the journal says that it is full", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, { ...LIMITS, outboxMaxBytes: 2_000 });
  for (let i = 0; i < 20; i++) await journal.finish(finished(leaseKey({ runId: `run-${i}` })));
  expect(journal.outboxFull).toBe(true);
  expect(journal.reportsAfter(0, 100)).toHaveLength(20);
  journal.ackReports(20);
  await journal.finish(finished(leaseKey({ runId: "last" })));
  expect(journal.outboxFull).toBe(false);
  await journal.close();
});

test("a closed journal refuses writes", async () => {
  using directory = testDirectory();
  const journal = new Journal(directory.path, LIMITS);
  await journal.close();
  await expect(journal.finish(finished(leaseKey()))).rejects.toMatchObject({ code: "unavailable" });
});

let writer: Bundle;
beforeAll(async () => {
  writer = await bundleOf(new URL("./journal-writer.fixture.ts", import.meta.url));
});
afterAll(() => writer?.[Symbol.dispose]());

test("what was said to be durable is there after each of eight kills in the middle of writing", async () => {
  using directory = testDirectory();
  const said = { taken: new Set<number>(), logged: new Set<number>(), finished: new Set<number>() };
  let next = 0;
  for (let round = 0; round < 8; round++) {
    const child = spawn(process.execPath, [writer.path, directory.path, String(next)], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const exited = once(child, "exit");
    let lines = 0;
    for await (const line of createInterface({ input: child.stdout! })) {
      const [what, n] = line.split(" ") as [keyof typeof said, string];
      said[what].add(Number(n));
      if (++lines === 50 + round * 7) child.kill("SIGKILL");
    }
    expect((await exited)[1]).toBe("SIGKILL");

    const journal = new Journal(directory.path, LIMITS);
    const reports = journal.reportsAfter(0, 10_000);
    expect(reports.map(({ seq }) => seq)).toEqual(reports.map((_, i) => i + 1)); // no gap, no repeat
    const of = (kind: string) =>
      reports
        .map(payloadOf)
        .filter((payload) => payload.kind === kind)
        .map(({ lease }) => Number(lease.runId.slice(4)));
    const found = {
      taken: new Set(of("started")),
      logged: new Set(journal.logsAfter(0, 10_000).map(({ lease }) => Number(lease.runId.slice(4)))),
      finished: new Set(of("finished")),
    };
    for (const what of ["taken", "logged", "finished"] as const)
      expect([...said[what]].filter((n) => !found[what].has(n))).toEqual([]);
    // A lease is held exactly as long as its outcome is missing.
    const held = journal.held().map(({ offer }) => Number(offer.lease.runId.slice(4)));
    expect(held).toEqual([...found.taken].filter((n) => !found.finished.has(n)));
    for (const n of held) await journal.finish(finished(leaseKey({ runId: `run-${n}` })));
    next = Math.max(...found.taken) + 1;
    await journal.close();
  }
  expect(said.finished.size).toBeGreaterThan(8 * 15);
});
