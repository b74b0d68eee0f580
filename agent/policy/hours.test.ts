import { expect, test } from "vitest";
import { isOpen } from "./hours.ts";
import { siteRules } from "./policy.fixture.ts";

const at = (iso: string): number => Date.parse(iso);
const hoursOf = (...hours: object[]) => siteRules({ hours }).hours!;

test.each([
  // A Wednesday in winter: Zurich is an hour ahead.
  ["2026-11-25T17:59:00Z", false],
  ["2026-11-25T18:00:00Z", true],
  ["2026-11-25T23:30:00Z", true],
  ["2026-11-26T05:59:00Z", true],
  ["2026-11-26T06:00:00Z", false],
  // Friday's night ends on Saturday; none begins on Saturday.
  ["2026-11-28T05:00:00Z", true],
  ["2026-11-28T19:00:00Z", false],
  // Sunday's morning is Saturday's night.
  ["2026-11-29T05:00:00Z", false],
  // In summer it is two hours.
  ["2026-07-22T16:59:00Z", false],
  ["2026-07-22T17:00:00Z", true],
])("nights of working days in Zurich at %s: %s", (iso, expected) => {
  const days = ["mon", "tue", "wed", "thu", "fri"];
  expect(isOpen(hoursOf({ days, from: "19:00", to: "07:00", zone: "Europe/Zurich" }), at(iso))).toBe(
    expected,
  );
});

test("a whole day is from 00:00 to 24:00", () => {
  const hours = hoursOf({ days: ["wed"], from: "00:00", to: "24:00", zone: "UTC" });
  expect(isOpen(hours, at("2026-11-25T00:00:00Z"))).toBe(true);
  expect(isOpen(hours, at("2026-11-25T23:59:59Z"))).toBe(true);
  expect(isOpen(hours, at("2026-11-26T00:00:00Z"))).toBe(false);
  expect(isOpen(hours, at("2026-11-24T23:59:59Z"))).toBe(false);
});

test("of several times one is enough", () => {
  const hours = hoursOf(
    { from: "01:00", to: "02:00", zone: "UTC" },
    { from: "05:00", to: "06:00", zone: "UTC" },
  );
  expect([1, 3, 5].map((hour) => isOpen(hours, Date.UTC(2026, 0, 1, hour, 30)))).toEqual([true, false, true]);
});
