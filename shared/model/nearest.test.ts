import { describe, expect, test } from "vitest";
import { unknownName } from "./nearest.ts";

describe("a name that is not known", () => {
  test("is answered with the one that was probably meant", () => {
    const known = ["flights", "penguins", "penguins-pooled"];
    expect(unknownName({ kind: "pipeline", name: "pengiuns", known })).toBe(
      "there is no pipeline pengiuns; did you mean 'penguins'?",
    );
  });

  test.each<[string[], string]>([
    [[], "there is none"],
    [["hq"], "there is hq"],
    [["biscoe", "hq"], "there are biscoe, hq"],
    [
      Array.from({ length: 13 }, (_, at) => `s${at}`),
      "there are s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 3 more",
    ],
  ])("is answered with what there is, when nothing is near: %j", (known, told) => {
    expect(unknownName({ kind: "environment", name: "atlantis", known })).toBe(
      `there is no environment atlantis; ${told}`,
    );
  });

  test("says where it was looked for", () => {
    expect(unknownName({ kind: "step", name: "marge", known: ["merge"], within: "run 01k9" })).toBe(
      "there is no step marge in run 01k9; did you mean 'merge'?",
    );
  });

  test("that is no word stands in quotes, so that it is no part of the sentence", () => {
    expect(unknownName({ kind: "parameter", name: "a; all is well\n", known: [] })).toBe(
      'there is no parameter "a; all is well\\n"; there is none',
    );
  });
});
