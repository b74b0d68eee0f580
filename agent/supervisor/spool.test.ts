import { appendFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { LOG_CHUNK_MAX_BYTES } from "../../shared/wire/protocol.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { type Frame, SpoolReader, SpoolWriter } from "./spool.ts";

let directory: TestDirectory;
beforeEach(() => {
  directory = testDirectory();
});
afterEach(() => directory[Symbol.dispose]());

function all(reader: SpoolReader, end: number): Frame[] {
  const frames: Frame[] = [];
  for (let next = reader.read(end); next.length > 0; next = reader.read(end)) frames.push(...next);
  return frames;
}
const textOf = (frames: Frame[]): string => Buffer.concat(frames.map(({ data }) => data)).toString();

test("what was written is read from any frame on, with its stream and time", () => {
  const writer = new SpoolWriter(directory.path);
  writer.append("stdout", 5, Buffer.from("one"));
  const between = writer.end;
  writer.append("stderr", 6, Buffer.from("two"));
  const frames = all(new SpoolReader(directory.path, 0), writer.end);
  expect(frames).toMatchObject([
    { stream: "stdout", atMs: 5, data: Buffer.from("one"), endOffset: between },
    { stream: "stderr", atMs: 6, data: Buffer.from("two"), endOffset: writer.end },
  ]);
  expect(textOf(all(new SpoolReader(directory.path, between), writer.end))).toBe("two");
  expect(all(new SpoolReader(directory.path, 0), between)).toHaveLength(1);
  writer.close();
});

test("a large write becomes frames that each fit into a chunk of log", () => {
  const writer = new SpoolWriter(directory.path);
  writer.append("stdout", 1, Buffer.alloc(3 * LOG_CHUNK_MAX_BYTES + 1));
  const sizes = all(new SpoolReader(directory.path, 0), writer.end).map(({ data }) => data.length);
  expect(sizes).toEqual([LOG_CHUNK_MAX_BYTES, LOG_CHUNK_MAX_BYTES, LOG_CHUNK_MAX_BYTES, 1]);
  writer.close();
});

test("it goes over many segments, of which those that are not needed any more are deleted while it is written", () => {
  const writer = new SpoolWriter(directory.path);
  const reader = new SpoolReader(directory.path, 0);
  let read = 0;
  let most = 0;
  for (let i = 0; i < 400; i++) {
    writer.append("stdout", 1, Buffer.alloc(LOG_CHUNK_MAX_BYTES, i));
    for (const { data } of all(reader, writer.end)) expect(data[0]).toBe(read++ % 256);
    reader.forget(reader.offset);
    const sizes = readdirSync(directory.path).map((name) => statSync(join(directory.path, name)).size);
    most = Math.max(
      most,
      sizes.reduce((sum, size) => sum + size, 0),
    );
  }
  expect(read).toBe(400);
  expect(most).toBeLessThan(400 * LOG_CHUNK_MAX_BYTES * 0.5);
  writer.close();
});

test("of a frame that is half written nothing is read, also when its size is looked up", () => {
  const writer = new SpoolWriter(directory.path);
  writer.append("stdout", 1, Buffer.from("whole"));
  writer.close();
  const [segment] = readdirSync(directory.path);
  appendFileSync(join(directory.path, segment!), Buffer.from([1, 0, 0]));
  const reader = new SpoolReader(directory.path, 0);
  expect(reader.size()).toBe(writer.end + 3);
  expect(textOf(all(reader, reader.size()))).toBe("whole");
  expect(reader.offset).toBe(writer.end);
});

test("what is dropped is counted in bytes and in ends of lines", () => {
  const writer = new SpoolWriter(directory.path);
  writer.drop(Buffer.from("one\ntwo\nthr"));
  expect([writer.droppedBytes, writer.droppedLines, writer.end]).toEqual([11, 2, 0]);
});
