import { expect, test } from "vitest";
import { parseTarget } from "../../shared/model/target.ts";
import { isTargetRule, matchesTarget, namesAddress } from "./target-rule.ts";

test.each([
  ["db.site.example:5432", "db.site.example:5432", true],
  ["DB.site.example:5432", "db.site.example:5432", true],
  ["db.site.example:5432", "db.site.example:5433", false],
  ["db.site.example:*", "db.site.example:5433", true],
  ["*.site.example:443", "a.site.example:443", true],
  ["*.site.example:443", "a.b.site.example:443", true],
  ["*.site.example:443", "site.example:443", false],
  ["*.site.example:443", "evilsite.example:443", false],
  ["*:443", "anything.example:443", true],
  ["*:443", "10.0.0.1:443", true],
  ["*:*", "[2001:db8::7]:1", true],
  ["*:443", "anything.example:80", false],
  ["10.20.0.7:*", "10.20.0.7:22", true],
  ["10.20.0.7:*", "10.20.0.70:22", false],
  ["[2001:db8:0::7]:443", "[2001:db8::7]:443", true],
])("%s on %s: %s", (rule, target, expected) => {
  expect(isTargetRule(rule)).toBe(true);
  expect(matchesTarget(rule, parseTarget(target)!)).toBe(expected);
});

test.each([
  "",
  "*",
  "a.example",
  "*a.example:1",
  "10.*:1",
  "*.10.0.0.1:1",
  "*.:1",
  "a.example:0",
  "**:1",
  "localhost:1",
])("%j is no rule", (rule) => {
  expect(isTargetRule(rule)).toBe(false);
});

test("only a rule with the address itself names it", () => {
  const target = parseTarget("127.0.0.1:5432")!;
  expect(namesAddress("127.0.0.1:5432", target)).toBe(true);
  expect(namesAddress("127.0.0.1:*", target)).toBe(true);
  expect(namesAddress("*:5432", target)).toBe(false);
  expect(namesAddress("127.0.0.1:5433", target)).toBe(false);
  expect(namesAddress("db.site.example:5432", parseTarget("db.site.example:5432")!)).toBe(false);
});
