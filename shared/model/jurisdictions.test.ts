import { expect, test } from "vitest";
import {
  expandResidency,
  isJurisdiction,
  isResidency,
  JURISDICTION_GROUPS,
  JURISDICTIONS,
} from "./jurisdictions.ts";

test("there are 249 countries, each a code of two capital letters", () => {
  expect(new Set(JURISDICTIONS).size).toBe(249);
  expect(JURISDICTIONS.filter((code) => !/^[A-Z]{2}$/.test(code))).toEqual([]);
});

test("the EU has 27 members and the EEA three more, all of them countries", () => {
  expect(JURISDICTION_GROUPS.get("EU")).toHaveLength(27);
  const eea = expandResidency(["EEA"]);
  expect([...eea].filter((code) => !expandResidency(["EU"]).has(code))).toEqual(["IS", "LI", "NO"]);
  expect([...eea].filter((code) => !isJurisdiction(code))).toEqual([]);
});

test("a group is spelled out beside countries, and neither Switzerland nor the United Kingdom comes with it", () => {
  const residency = expandResidency(["EU", "US"]);
  expect(residency.size).toBe(28);
  expect(["DE", "US", "CH", "GB", "NO"].map((code) => residency.has(code))).toEqual([
    true,
    true,
    false,
    false,
    false,
  ]);
});

test.each(["de", "UK", "XX", "", "EU "])("%j admits no place", (entry) => {
  expect(isResidency(entry)).toBe(false);
  expect(expandResidency([entry]).size).toBe(0);
});

test("an environment lies in a country, never in a group", () => {
  expect([isJurisdiction("AQ"), isJurisdiction("EU"), isResidency("EU")]).toEqual([true, false, true]);
});
