import { expect, test } from "vitest";
import {
  FULL_BELOW_BYTES,
  type Look,
  look,
  ROOM_AT_START,
  ROOM_FROM_BYTES,
  STARTS_APART_MS,
} from "./room.ts";

const ROOMY: Look = { freeBytes: ROOM_FROM_BYTES, inodesLeft: true, writeFailed: false, nowMs: 1_000 };
const FULL = { ...ROOM_AT_START, full: true };

test.each([
  ["with little left", { freeBytes: FULL_BELOW_BYTES - 1 }],
  ["without an inode", { inodesLeft: false }],
  ["when the server says that a write failed", { writeFailed: true }],
])("a disk is full %s, which is said once", (_, change) => {
  const first = look(ROOM_AT_START, { ...ROOMY, ...change });
  expect(first).toEqual({ room: FULL, effect: "say full" });
  const again = look(first.room, { ...ROOMY, ...change, freeBytes: FULL_BELOW_BYTES - 1 });
  expect(again).toEqual({ room: FULL, effect: undefined });
});

test("a disk that was never full starts nothing", () => {
  expect(look(ROOM_AT_START, ROOMY)).toEqual({ room: ROOM_AT_START, effect: undefined });
});

test("the server is started again when there is room, and not at the edge", () => {
  expect(look(FULL, { ...ROOMY, freeBytes: ROOM_FROM_BYTES - 1 }).effect).toBeUndefined();
  expect(look(FULL, { ...ROOMY, inodesLeft: false }).effect).toBeUndefined();
  expect(look(FULL, ROOMY)).toEqual({ room: { full: false, startedAtMs: 1_000 }, effect: "start again" });
});

test("a server whose writes fail on though there is room is started again at a measured pace", () => {
  const started = look(FULL, ROOMY).room;
  const failed = look(started, { ...ROOMY, writeFailed: true, nowMs: 2_000 });
  expect(failed.effect).toBe("say full");
  expect(look(failed.room, { ...ROOMY, nowMs: 999 + STARTS_APART_MS }).effect).toBeUndefined();
  expect(look(failed.room, { ...ROOMY, nowMs: 1_000 + STARTS_APART_MS }).effect).toBe("start again");
});
