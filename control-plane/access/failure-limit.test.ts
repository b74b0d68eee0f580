import { expect, test } from "vitest";
import { FailureLimit } from "./failure-limit.ts";

const options = { burst: 3, refillMs: 1_000, sourcesMax: 2 };

function failing(limit: FailureLimit, address: string, nowMs: number, times: number): void {
  for (let i = 0; i < times; i++) limit.failed(address, nowMs);
}

test("an address may fail so often in a row, and then once in a while", () => {
  const limit = new FailureLimit(options);
  failing(limit, "192.0.2.1:5000", 10_000, 2);
  expect(limit.waitMs("192.0.2.1:5001", 10_000)).toBe(0);
  failing(limit, "192.0.2.1:5001", 10_000, 1);
  expect(limit.waitMs("192.0.2.1:9", 10_000)).toBe(1_000);
  expect(limit.waitMs("192.0.2.2:9", 10_000)).toBe(0);
  expect(limit.waitMs("192.0.2.1:9", 11_000)).toBe(0);
  failing(limit, "192.0.2.1:9", 11_000, 1);
  expect(limit.waitMs("192.0.2.1:9", 11_000)).toBe(1_000);
  expect(limit.waitMs("192.0.2.1:9", 20_000)).toBe(0);
});

test("a network of IPv6 is one source", () => {
  const limit = new FailureLimit(options);
  failing(limit, "2001:db8:0:1::1:5000", 0, 3);
  expect(limit.waitMs("2001:db8:0:1:ffff::7:5000", 0)).toBeGreaterThan(0);
  expect(limit.waitMs("2001:db8:0:2::1:5000", 0)).toBe(0);
});

test("what was shown to be good there is still looked at, until it fails", () => {
  const limit = new FailureLimit(options);
  limit.succeeded("192.0.2.1:1", "good");
  failing(limit, "192.0.2.1:1", 0, 3);
  expect(limit.waitMs("192.0.2.1:1", 0, "good")).toBe(0);
  expect(limit.waitMs("192.0.2.1:1", 0, "guess")).toBeGreaterThan(0);
  expect(limit.waitMs("192.0.2.9:1", 0, "good")).toBe(0);
  limit.failed("192.0.2.1:1", 0, "good");
  expect(limit.waitMs("192.0.2.1:1", 0, "good")).toBeGreaterThan(0);
});

test("remembers so many addresses at most, those heard of last", () => {
  const limit = new FailureLimit(options);
  for (const last of [1, 2, 3]) failing(limit, `192.0.2.${last}:1`, 0, 3);
  expect(limit.size).toBe(2);
  expect(limit.waitMs("192.0.2.1:1", 0)).toBe(0);
  expect(limit.waitMs("192.0.2.3:1", 0)).toBeGreaterThan(0);
});
