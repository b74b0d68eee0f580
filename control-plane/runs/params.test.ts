import { describe, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import type { ParamSpec, ParamValue } from "../../shared/model/spec.ts";
import { pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { resolveParams } from "./params.ts";

const pipeline = (params: Record<string, ParamSpec>) =>
  pipelineSpec("nightly", [stepSpec("load")], { params });

describe("a parameter", () => {
  test.each<[string, ParamSpec, ParamValue | undefined, ParamValue]>([
    ["text as it is", { type: "string" }, "3", "3"],
    ["empty text", { type: "string" }, "", ""],
    ["a number", { type: "number" }, 3, 3],
    ["a number that came as text", { type: "number" }, "-2.5e1", -25],
    ["yes", { type: "boolean" }, true, true],
    ["yes that came as text", { type: "boolean" }, "true", true],
    ["no that came as text", { type: "boolean" }, "false", false],
    ["its default", { type: "number", default: 7 }, undefined, 7],
    ["a default that counts as nothing", { type: "boolean", default: false }, undefined, false],
    ["what is given before its default", { type: "number", default: 7 }, 0, 0],
    ["one of its values", { type: "string", enum: ["eu", "us"] }, "us", "us"],
    ["one of its numbers that came as text", { type: "number", enum: [1, 2] }, "2", 2],
  ])("takes %s", (_what, spec, given, expected) => {
    expect(resolveParams(pipeline({ p: spec }), given === undefined ? {} : { p: given })).toEqual({
      p: expected,
    });
  });

  test.each<[string, ParamSpec, ParamValue | undefined, string]>([
    ["nothing when it has no default", { type: "string" }, undefined, "parameter p is required"],
    ["a number as text", { type: "string" }, 3, "parameter p must be a string, not 3"],
    ["words as a number", { type: "number" }, "three", 'parameter p must be a number, not "three"'],
    ["nothing as a number", { type: "number" }, " ", 'parameter p must be a number, not " "'],
    ["a number without end", { type: "number" }, "1e999", 'parameter p must be a number, not "1e999"'],
    ["another spelling of yes", { type: "boolean" }, "True", 'parameter p must be a boolean, not "True"'],
    [
      "a value outside its set",
      { type: "string", enum: ["eu"] },
      "us",
      'parameter p must be one of eu, not "us"',
    ],
  ])("refuses %s", (_what, spec, given, message) => {
    expect(() => resolveParams(pipeline({ p: spec }), given === undefined ? {} : { p: given })).toThrow(
      message,
    );
  });
});

function faultsOf(params: Record<string, ParamSpec>, given: Record<string, ParamValue>): InsituError {
  try {
    resolveParams(pipeline(params), given);
  } catch (thrown) {
    return InsituError.from(thrown);
  }
  throw new Error("nothing was refused");
}

test("every fault is told at once, each with the place it is about", () => {
  const err = faultsOf({ a: { type: "number" }, b: { type: "string" } }, { a: "x", toString: 1 });
  expect(err.code).toBe("request.invalid");
  expect(err.message).toBe("3 parameters of pipeline nightly are not valid");
  expect(err.details.errors).toEqual([
    {
      pointer: "/params/toString",
      detail: "there is no parameter toString in pipeline nightly; there are a, b",
    },
    { pointer: "/params/a", detail: 'parameter a must be a number, not "x"' },
    { pointer: "/params/b", detail: "parameter b is required" },
  ]);
});

test("a name with the signs that a JSON pointer is made of is escaped (RFC 6901)", () => {
  expect(faultsOf({}, { "a/b~c": 1 }).details.errors).toMatchObject([{ pointer: "/params/a~1b~0c" }]);
});
