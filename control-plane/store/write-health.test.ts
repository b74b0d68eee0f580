import type { NatsConnection } from "nats";
import { ErrorCode, NatsError } from "nats";
import { beforeEach, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import { FAILS_AFTER_MS, FORGOTTEN_AFTER_MS, noteWrite, WriteHealth } from "./write-health.ts";

const connection = {} as NatsConnection;
const SILENCE = new NatsError("TIMEOUT", ErrorCode.Timeout);
let nowMs = 0;
let said: string[] = [];
let health: WriteHealth;

beforeEach(() => {
  nowMs = 0;
  said = [];
  const log = {
    error: (_: object, text: string) => void said.push(text),
    info: (_: object, text: string) => void said.push(text),
  };
  health = new WriteHealth({ clock: { monotonicMs: () => nowMs }, log }).watch(connection);
});

function failUntil(untilMs: number, stream = "RUNS", err: unknown = SILENCE): void {
  for (; nowMs <= untilMs; nowMs += 3_000) noteWrite(connection, stream, err);
}

test("a stream that answers no write for a while is told of once, and again when it stores", () => {
  failUntil(FAILS_AFTER_MS - 1);
  noteWrite(connection, "WORK");
  expect([health.failing(), said]).toEqual([[], []]);
  failUntil(FAILS_AFTER_MS + 9_000);
  expect(health.failing()).toEqual(["RUNS"]);
  expect(said).toEqual([expect.stringMatching(/nats-disk-full/)]);
  noteWrite(connection, "RUNS");
  expect(health.failing()).toEqual([]);
  expect(said[1]).toBe("NATS stores again");
});

test("single failures far apart are none", () => {
  for (let round = 0; round < 3; round++, nowMs += FORGOTTEN_AFTER_MS + 1)
    noteWrite(connection, "RUNS", SILENCE);
  expect([health.failing(), said]).toEqual([[], []]);
});

test("a stream that nobody writes to any more does not count as failing for ever", () => {
  failUntil(FAILS_AFTER_MS + 3_000);
  expect(health.failing()).toEqual(["RUNS"]);
  nowMs += FORGOTTEN_AFTER_MS;
  expect(health.failing()).toEqual([]);
});

test.each([
  [
    "a stream at its limit",
    Object.assign(new NatsError("full", "503"), {
      api_error: { code: 503, err_code: 10_077, description: "maximum bytes exceeded" },
    }),
  ],
  ["what is refused for good", new InsituError("request.invalid", "no")],
])("%s was answered", (_, err) => {
  failUntil(2 * FAILS_AFTER_MS, "WORK", err);
  expect(health.failing()).toEqual([]);
});
