import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Coverage } from "./coverage.ts";
import { TailFiles } from "./tail-files.ts";
import type { TailMessage } from "./tail-record.ts";

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "insitu-tail-files-"));
});

afterEach(() => rmSync(directory, { recursive: true, force: true }));

function message(seq: number): TailMessage {
  return { kind: "message", stream: "S", seq, subject: "s", headers: [], data: Buffer.from(`data ${seq}`) };
}

async function opened(): Promise<TailFiles> {
  const files = new TailFiles(directory, () => []);
  await files.open();
  return files;
}

async function seqsOf(files: TailFiles): Promise<number[]> {
  const seqs: number[] = [];
  await files.scan((record) => {
    if (record.kind === "message") seqs.push(record.seq);
  });
  return seqs;
}

/** One file, each message in a write of its own. */
async function written(count: number): Promise<string> {
  const files = await opened();
  for (let seq = 1; seq <= count; seq++) await files.append([message(seq)]);
  await files.close();
  return join(directory, readdirSync(directory)[0]!);
}

test("what a crash has torn is cut off, and what comes next is in a new file", async () => {
  const file = await written(3);
  truncateSync(file, statSync(file).size - 1);
  const files = await opened();
  expect(await seqsOf(files)).toEqual([1, 2]);
  expect(await files.append([message(3)])).toBe(2);
  await files.close();
  expect(await seqsOf(await opened())).toEqual([1, 2, 3]);
});

test("at its limit nothing more is taken until an older file went", async () => {
  const files = new TailFiles(directory, () => [], 200);
  await files.open();
  let seq = 0;
  while ((files.newest?.bytes ?? 0) < 200) await files.append([message(++seq)]);
  await expect(files.append([message(seq + 1)])).rejects.toMatchObject({
    code: "store.unavailable",
    retryable: true,
    message: expect.stringContaining("limit of 200 bytes"),
  });
  const [full] = await files.turn();
  await expect(files.append([message(seq + 1)])).rejects.toThrow(/limit of 200 bytes/);
  await files.remove(full!);
  expect(await files.append([message(seq + 1)])).toBe(full! + 1);
  await files.close();
  expect(await seqsOf(await opened())).toEqual([seq + 1]);
});

test("of the last write any part may be there after a crash", async () => {
  const files = await opened();
  await files.append([message(1)]);
  await files.append([message(2)]);
  const before = files.newest!.bytes;
  await files.append([message(3), message(4), message(5)]);
  await files.close();
  const file = join(directory, "1.tail");
  const torn = readFileSync(file);
  torn.fill(0, before, before + 40);
  writeFileSync(file, torn);
  expect(await seqsOf(await opened())).toEqual([1, 2]);
});

test("damage before something that was written later is no crash, and refused", async () => {
  const file = await written(3);
  const bytes = readFileSync(file);
  bytes.fill(0xff, 100, 110);
  writeFileSync(file, bytes);
  await expect(opened()).rejects.toThrow(/is damaged at byte \d+, and goes on behind it/);
});

test("who appends at the same time shares a write, and hears of its failure; the next one may succeed", async () => {
  const files = await opened();
  await Promise.all([1, 2, 3].map((seq) => files.append([message(seq)])));
  await files.turn();
  // The name that comes next is taken.
  mkdirSync(join(directory, "2.tail"));
  const failed = [4, 5].map((seq) => files.append([message(seq)]));
  for (const append of failed)
    await expect(append).rejects.toMatchObject({ code: "store.unavailable", retryable: true });
  rmSync(join(directory, "2.tail"), { recursive: true });
  await files.append([message(6)]);
  await files.close();
  expect(await seqsOf(files)).toEqual([1, 2, 3, 6]);
});

test("a sequence is missing until it was added, whatever the order", () => {
  fc.assert(
    fc.property(
      fc.nat(20),
      fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 60 }),
      fc.nat(60),
      (floor, added, raised) => {
        const coverage = new Coverage(floor);
        for (const seq of added) coverage.add(seq);
        coverage.raiseFloor(raised);
        const low = Math.max(floor, raised);
        const expected = Array.from({ length: 60 }, (_, i) => i + 1).filter(
          (seq) => seq > low && !added.includes(seq),
        );
        expect(coverage.floor).toBe(low);
        expect(coverage.missing(60, 100)).toEqual(expected);
        expect(coverage.missing(60, 2)).toEqual(expected.slice(0, 2));
      },
    ),
  );
});
