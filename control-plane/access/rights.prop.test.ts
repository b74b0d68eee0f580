import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { denied } from "./access-decision.ts";
import { type Grant, may, type Principal, RIGHTS, type Right, ROLES, reach } from "./rights.ts";

const pipeline = fc.constantFrom("nightly", "weekly", "hourly");
const grant: fc.Arbitrary<Grant> = fc.record({
  role: fc.constantFrom(...ROLES),
  pipelines: fc.option(fc.array(pipeline, { maxLength: 2 })),
});
const principal = fc.record({ name: fc.constant("ci"), grants: fc.array(grant, { maxLength: 3 }) });
const right = fc.constantFrom(...RIGHTS);
const OF_PIPELINES: readonly Right[] = RIGHTS.filter((one) => /^(runs|logs):|^resources:view/.test(one));

describe("rights", () => {
  test("a caller without an admin's grant over everything never manages tokens", () => {
    fc.assert(
      fc.property(principal, (who) => {
        const admin = who.grants.some(({ role, pipelines }) => role === "admin" && pipelines === null);
        expect(may(who, "tokens:manage", null)).toBe(admin);
      }),
    );
  });

  test("grants over pipelines never add up to a right over everything", () => {
    fc.assert(
      fc.property(principal, right, (who, asked) => {
        const narrow: Principal = {
          ...who,
          grants: who.grants.map((one) => ({ ...one, pipelines: ["nightly"] })),
        };
        expect(may(narrow, asked, null)).toBe(false);
        expect(may(narrow, asked, "weekly")).toBe(false);
      }),
    );
  });

  test("what is reached is what may be done, pipeline by pipeline", () => {
    fc.assert(
      fc.property(principal, right, pipeline, (who, asked, name) => {
        const reached = reach(who, asked);
        expect(may(who, asked, name)).toBe(reached === null || reached.includes(name));
      }),
    );
  });

  test("another grant never takes a right away", () => {
    fc.assert(
      fc.property(principal, grant, right, fc.option(pipeline), (who, more, asked, name) => {
        const after = { ...who, grants: [...who.grants, more] };
        if (may(who, asked, name)) expect(may(after, asked, name)).toBe(true);
      }),
    );
  });

  test.each([
    ["viewer", ["resources:view", "runs:view"]],
    ["runner", ["resources:view", "runs:view", "runs:start", "runs:cancel", "logs:read"]],
    ["auditor", ["resources:view", "runs:view", "logs:read"]],
    ["editor", ["resources:view", "runs:view"]],
  ] as const)("a %s of one pipeline has these rights on its runs and no others", (role, expected) => {
    const who: Principal = { name: "ci", grants: [{ role, pipelines: ["nightly"] }] };
    expect(OF_PIPELINES.filter((one) => may(who, one, "nightly"))).toEqual(expected);
  });

  test("a refusal names the right and what the caller has", () => {
    const who: Principal = { name: "ci", grants: [{ role: "viewer", pipelines: ["nightly"] }] };
    const error = denied({
      principal: who,
      right: "runs:start",
      target: { kind: "pipeline", name: "nightly" },
    });
    expect(error.code).toBe("auth.denied");
    expect(error.message).toContain("runs:start on pipeline nightly; ci is viewer on nightly");
  });
});
