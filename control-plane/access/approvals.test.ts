/** One approval, one request: what a record becomes, whoever comes in which order. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  APPROVAL_VALID_MS,
  type ApprovalRecord,
  type ApprovalRequest,
  ask,
  digestOfRequest,
  judge,
  sameAsRequester,
  stateOf,
} from "./approvals.ts";
import type { Principal } from "./rights.ts";

const ada: Principal = { name: "ada", grants: [] };
const REQUEST: ApprovalRequest = {
  principal: ada,
  method: "POST",
  path: "/v1/runs",
  body: `{"pipeline":"ward"}`,
  needs: [{ right: "runs:start", target: { kind: "pipeline", name: "ward" } }],
  because: "rule people/two forbids it",
};
const yes = { approved: true, by: "bob", reason: "" };

describe("an approval", () => {
  test("lets the request through once, and then it has to be asked for anew", () => {
    const asked = ask(undefined, REQUEST, { nowMs: 1, id: "a" });
    expect(asked.verdict).toBe("waiting");
    expect(ask(asked.record, REQUEST, { nowMs: 2, id: "b" })).toMatchObject({
      verdict: "waiting",
      changed: false,
      record: { id: "a" },
    });
    const approved = judge(asked.record, yes, 3);
    const taken = ask(approved, REQUEST, { nowMs: 4, id: "c" });
    expect(taken).toMatchObject({ verdict: "take", record: { id: "a", usedAtMs: 4 } });
    expect(ask(taken.record, REQUEST, { nowMs: 5, id: "d" })).toMatchObject({
      verdict: "waiting",
      record: { id: "d", decision: null, usedAtMs: null },
    });
  });

  test("ends a day after it was given, and a request a day after it was made", () => {
    const { record } = ask(undefined, REQUEST, { nowMs: 0, id: "a" });
    expect(stateOf(record, APPROVAL_VALID_MS - 1)).toBe("waiting");
    expect(stateOf(record, APPROVAL_VALID_MS)).toBe("expired");
    expect(() => judge(record, yes, APPROVAL_VALID_MS)).toThrow(/is expired/);
    const approved = judge(record, yes, 10);
    const late = ask(approved, REQUEST, { nowMs: APPROVAL_VALID_MS + 10, id: "b" });
    expect(late).toMatchObject({ verdict: "waiting", record: { id: "b", decision: null } });
  });

  test("does not stand for rights that the request needs since", () => {
    const approved = judge(ask(undefined, REQUEST, { nowMs: 0, id: "a" }).record, yes, 1);
    const more = { ...REQUEST, needs: [...REQUEST.needs, { right: "runs:view" as const, target: null }] };
    expect(ask(approved, more, { nowMs: 2, id: "b" })).toMatchObject({
      verdict: "waiting",
      record: { id: "b", decision: null },
    });
    const moved = {
      ...REQUEST,
      needs: REQUEST.needs.map((need) => ({ ...need, facts: { team: "other", environments: [] } })),
    };
    expect(ask(approved, moved, { nowMs: 2, id: "b" }).verdict).toBe("waiting");
    const of = (version: string) => ({
      ...REQUEST,
      needs: REQUEST.needs.map((need) => ({ ...need, facts: { team: null, environments: [], version } })),
    });
    const first = judge(ask(undefined, of("sha256:1"), { nowMs: 0, id: "a" }).record, yes, 1);
    expect(ask(first, of("sha256:2"), { nowMs: 2, id: "b" }).verdict).toBe("waiting");
    expect(ask(first, of("sha256:1"), { nowMs: 2, id: "b" }).verdict).toBe("take");
  });

  test("that was denied stays so until it ends, and one that was used cannot be denied", () => {
    const { record } = ask(undefined, REQUEST, { nowMs: 0, id: "a" });
    const no = judge(record, { ...yes, approved: false }, 1);
    expect(ask(no, REQUEST, { nowMs: 2, id: "b" })).toMatchObject({ verdict: "denied", changed: false });
    expect(() => judge(no, yes, 2)).toThrow(/is denied by bob/);
    expect(ask(no, REQUEST, { nowMs: APPROVAL_VALID_MS + 1, id: "b" }).verdict).toBe("waiting");
    const taken = ask(judge(record, yes, 1), REQUEST, { nowMs: 2, id: "b" }).record;
    expect(() => judge(taken, { ...yes, approved: false }, 3)).toThrow(/is used by bob/);
  });

  test("that was given can be taken back until it is used", () => {
    const approved = judge(ask(undefined, REQUEST, { nowMs: 0, id: "a" }).record, yes, 1);
    const back = judge(approved, { ...yes, approved: false }, 2);
    expect(ask(back, REQUEST, { nowMs: 3, id: "b" }).verdict).toBe("denied");
  });

  test("however it is asked for and decided, each yes is taken at most once, and never without one", () => {
    const step = fc.constantFrom("ask", "yes", "no", "wait" as const);
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        let [record, nowMs, given, taken]: [ApprovalRecord | undefined, number, number, number] = [
          undefined,
          0,
          0,
          0,
        ];
        for (const [index, one] of steps.entries()) {
          nowMs += one === "wait" ? APPROVAL_VALID_MS / 2 : 1;
          if (one === "ask") {
            const answer = ask(record, REQUEST, { nowMs, id: String(index) });
            record = answer.record;
            if (answer.verdict === "take") taken += 1;
          } else if (one !== "wait" && record !== undefined) {
            const open = stateOf(record, nowMs) === "waiting";
            try {
              record = judge(record, { ...yes, approved: one === "yes" }, nowMs);
              if (one === "yes") given += 1;
            } catch {
              // Of one that is decided already; it must not have been waiting.
              expect(open).toBe(false);
            }
          }
          expect(taken).toBeLessThanOrEqual(given);
        }
      }),
    );
  });
});

test("another caller, method, path, query or body is another request", () => {
  const others = [
    { ...REQUEST, principal: { ...ada, name: "bob" } },
    { ...REQUEST, method: "DELETE" },
    { ...REQUEST, path: "/v1/runs?dry_run=true" },
    { ...REQUEST, body: `{"pipeline":"ward" }` },
  ];
  const digests = new Set([REQUEST, ...others].map(digestOfRequest));
  expect(digests.size).toBe(others.length + 1);
});

test("neither the requester, nor who made its token, nor a token that it made is a second person", () => {
  const own = ask(
    undefined,
    { ...REQUEST, principal: { ...ada, madeBy: "root" } },
    { nowMs: 0, id: "a" },
  ).record;
  expect(sameAsRequester(own, ada)).toMatch(/somebody else/);
  expect(sameAsRequester(own, { name: "ada-2", grants: [], madeBy: "ada" })).toMatch(/count as one/);
  expect(sameAsRequester(own, { name: "root", grants: [] })).toMatch(/count as one/);
  expect(sameAsRequester(own, { name: "bob", grants: [], madeBy: "root" })).toBeNull();
  expect(sameAsRequester(own, { name: "eve", grants: [] })).toBeNull();
});
