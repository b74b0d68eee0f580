import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { decodeLogEntries } from "../../shared/wire/log-codec.ts";
import { LOG_CHUNK_MAX_BYTES } from "../../shared/wire/protocol.ts";
import { LIMITS, leaseKey, offerOf, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { Journal } from "./journal.ts";
import { LogWriter } from "./log-writer.ts";

const AT = { atMs: 1, endOffset: 0 };
const START = { lastSeq: 0, endOffset: 0, bytes: 0, lostBytes: 0 };

let directory: TestDirectory;
/** On a disk that is full for a while. */
class SmallJournal extends Journal {
  isFull = false;
  refused = 0;
  override appendLog(...args: Parameters<Journal["appendLog"]>): Promise<void> {
    if (!this.isFull) return super.appendLog(...args);
    this.refused += 1;
    return Promise.reject(new Error("no room"));
  }
}

let journal: SmallJournal;
beforeEach(() => {
  directory = testDirectory();
  journal = new SmallJournal(join(directory.path, "journal"), LIMITS);
});
afterEach(async () => {
  await journal.close();
  directory[Symbol.dispose]();
});
const open = (siteFile: string | null = null, from = START) =>
  new LogWriter({ lease: leaseKey(), journal, clock: systemClock, siteFile, from });
const entries = () => journal.logsAfter(0, 10_000).flatMap((c) => decodeLogEntries(c.encoding, c.entries));

test("what a running step wrote is on record soon, without more being written", async () => {
  const stored = new Promise<void>((resolve) => journal.onStored({ report: () => undefined, log: resolve }));
  const writer = open();
  writer.log("stderr", Buffer.from("slow"), AT);
  await stored;
  expect(entries()).toMatchObject([{ seq: 1, stream: "stderr", data: Buffer.from("slow") }]);
  await writer.close();
});

test("a flood goes into chunks of bounded size and loses nothing", async () => {
  const writer = open();
  const piece = 10_000;
  for (let i = 0; i < 100; i++) writer.log("stdout", Buffer.alloc(piece, i), AT);
  expect(await writer.close()).toEqual({ lastSeq: 100, bytes: 100 * piece, droppedBytes: 0 });
  const chunks = journal.logsAfter(0, 1_000);
  for (const chunk of chunks) expect(chunk.contentBytes).toBeLessThanOrEqual(LOG_CHUNK_MAX_BYTES);
  expect(chunks.length).toBeLessThan(20);
  expect(entries().map(({ data }) => data[0])).toEqual(Array.from({ length: 100 }, (_, i) => i));
});

test("a writer that is faster than the disk is asked to wait, and told when to go on", async () => {
  const writer = open();
  let taken = 0;
  while (writer.log("stdout", Buffer.alloc(65_536), AT)) taken += 1;
  expect(taken).toBeLessThan(20);
  await new Promise<void>((resolve) => writer.onDrain(resolve));
  expect(writer.log("stdout", Buffer.alloc(10), AT)).toBe(true);
  await writer.close();
});

test("when the journal cannot be written the loss is counted, and the last entry is one that is on record", async () => {
  const stored = new Promise<void>((resolve) => journal.onStored({ report: () => undefined, log: resolve }));
  const writer = open();
  writer.log("stdout", Buffer.alloc(LOG_CHUNK_MAX_BYTES), AT);
  await stored;
  await journal.close();
  writer.log("stdout", Buffer.alloc(LOG_CHUNK_MAX_BYTES), AT);
  expect(await writer.close()).toEqual({
    lastSeq: 1,
    bytes: 2 * LOG_CHUNK_MAX_BYTES,
    droppedBytes: LOG_CHUNK_MAX_BYTES,
  });
});

test("a log that may not leave is in a file of the site and nowhere else", async () => {
  const file = join(directory.path, "site-logs", "run-1", "fit", "1.1.log");
  const writer = open(file);
  writer.log("stdout", Buffer.from("one\n"), AT);
  writer.log("stderr", Buffer.from("two\n"), AT);
  expect(await writer.close()).toEqual({ lastSeq: 0, bytes: 8, droppedBytes: 0 });
  expect(readFileSync(file, "utf8")).toBe("one\ntwo\n");
  expect(entries()).toEqual([]);
});

test("a step whose log cannot be kept at the site goes on, and what was lost is counted", async () => {
  const inTheWay = join(directory.path, "log");
  mkdirSync(inTheWay);
  const writer = open(inTheWay);
  let resumed = true;
  if (!writer.log("stdout", Buffer.alloc(100_000), AT))
    resumed = await new Promise<boolean>((resolve) => writer.onDrain(() => resolve(true)));
  expect(resumed).toBe(true);
  expect(writer.log("stdout", Buffer.alloc(100_000), AT)).toBe(true);
  expect(await writer.close()).toEqual({ lastSeq: 0, bytes: 200_000, droppedBytes: 200_000 });
});

test("the mark of a chunk counts the content that is in it, and no entry of the next one", async () => {
  const stored = new Promise<void>((resolve) => journal.onStored({ report: () => undefined, log: resolve }));
  const writer = open();
  const most = LOG_CHUNK_MAX_BYTES - 100;
  writer.log("stdout", Buffer.alloc(most), { atMs: 1, endOffset: most });
  writer.log("stdout", Buffer.alloc(200), { atMs: 1, endOffset: most + 200 });
  await stored;
  expect(journal.logMark(leaseKey())).toMatchObject({ lastSeq: 1, endOffset: most, bytes: most });
  expect(await writer.close()).toMatchObject({ bytes: most + 200 });
  expect(journal.logMark(leaseKey())).toMatchObject({ lastSeq: 2, bytes: most + 200 });
});

test("a log that stays at the site is taken up behind its mark: each byte is in the file once", async () => {
  const file = join(directory.path, "site.log");
  const lease = leaseKey();
  await journal.take({ offer: offerOf({ lease }), takenAtMs: 1 }, { kind: "started", lease, atMs: 1 });
  const writer = open(file);
  writer.log("stdout", Buffer.from("one\n"), { atMs: 1, endOffset: 40 });
  await vi.waitFor(() => expect(writer.storedOffset).toBe(40));
  writer.log("stdout", Buffer.from("two\n"), { atMs: 1, endOffset: 80 });
  await vi.waitFor(() => expect(readFileSync(file, "utf8")).toBe("one\ntwo\n"));
  // The agent is killed here: the mark says one entry, and the file has two.
  const mark = journal.logMark(lease);
  expect(mark).toMatchObject({ endOffset: 40, bytes: 4 });
  const next = open(file, mark);
  next.log("stdout", Buffer.from("two\n"), { atMs: 1, endOffset: 80 });
  next.log("stdout", Buffer.from("three\n"), { atMs: 1, endOffset: 120 });
  expect(await next.close()).toEqual({ lastSeq: 0, bytes: 14, droppedBytes: 0 });
  expect(readFileSync(file, "utf8")).toBe("one\ntwo\nthree\n");
  await writer.close();
});

test("a chunk that a full disk has cost leaves a note in its place as soon as there is room, and no gap", async () => {
  const writer = open();
  journal.isFull = true;
  writer.log("stdout", Buffer.from("lost\nlost\n"), { atMs: 1, endOffset: 40 });
  await vi.waitFor(() => expect(journal.refused).toBe(1));
  journal.isFull = false;
  writer.log("stdout", Buffer.from("kept\n"), { atMs: 2, endOffset: 60 });
  expect(await writer.close()).toEqual({ lastSeq: 2, bytes: 15, droppedBytes: 10 });
  expect(entries()).toMatchObject([
    { seq: 1, stream: "agent", droppedBytes: 10, droppedLines: 2 },
    { seq: 2, stream: "stdout", data: Buffer.from("kept\n") },
  ]);
  // It is behind what came later in the journal, and does not set the mark back.
  expect(journal.logMark(leaseKey())).toMatchObject({ lastSeq: 2, endOffset: 60 });
});

test("what the supervisor gave up has a note at the end, the same again when the agent ends before its outcome", async () => {
  for (let process = 0; process < 2; process++) {
    const writer = open(null, journal.logMark(leaseKey()));
    if (process === 0) writer.log("stdout", Buffer.from("one\n"), { atMs: 1, endOffset: 40 });
    writer.dropped(500, 20);
    expect(await writer.close()).toEqual({ lastSeq: 2, bytes: 504, droppedBytes: 500 });
  }
  expect(entries().map(({ seq, droppedLines }) => [seq, droppedLines ?? 0])).toEqual([
    [1, 0],
    [2, 20],
    [2, 20],
  ]);
});
