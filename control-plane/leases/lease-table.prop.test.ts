import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import { LeaseTable } from "./lease-table.ts";

const TTL_MS = 100;
const key = (step: number, epoch: number): LeaseKey => ({
  runId: "r",
  stepId: `s${step}`,
  attempt: 1,
  epoch,
});
const never = () => {
  throw new Error("asked about a lease that the table knows");
};

const step = fc.nat(2);
const epoch = fc.integer({ min: 1, max: 3 });
const agent = fc.constantFrom("site/a", "site/b");
const actions = fc.array(
  fc.oneof(
    fc.record({ do: fc.constant("begin" as const), step, epoch, agent }),
    fc.record({ do: fc.constant("end" as const), step, epoch }),
    fc.record({ do: fc.constant("heartbeat" as const), agent, held: fc.array(fc.record({ step, epoch })) }),
    fc.record({ do: fc.constant("wait" as const), ms: fc.nat(70) }),
  ),
  { maxLength: 60 },
);

test("a lease is renewed only by its holder, under its epoch, when named; one that outlives its term is reported", () => {
  fc.assert(
    fc.property(actions, (list) => {
      const table = new LeaseTable(TTL_MS);
      const model = new Map<number, { epoch: number; agent: string; untilMs: number }>();
      let nowMs = 0;
      for (const action of list) {
        if (action.do === "wait") nowMs += action.ms;
        if (action.do === "begin") {
          table.begin(key(action.step, action.epoch), action.agent, nowMs);
          model.set(action.step, { epoch: action.epoch, agent: action.agent, untilMs: nowMs + TTL_MS });
        }
        if (action.do === "end") {
          table.end("r", `s${action.step}`, action.epoch);
          if (model.get(action.step)?.epoch === action.epoch) model.delete(action.step);
        }
        if (action.do === "heartbeat") {
          const held = action.held.map((named) => key(named.step, named.epoch));
          const { renewed, superseded } = table.heartbeat(action.agent, held, nowMs, () => "superseded");
          const mine = action.held.map((named) => {
            const lease = model.get(named.step);
            return lease?.epoch === named.epoch && lease.agent === action.agent ? lease : undefined;
          });
          for (const lease of mine) if (lease) lease.untilMs = nowMs + TTL_MS;
          expect(renewed).toEqual(held.filter((_, n) => mine[n]));
          // A grant that is later than the one known here is another replica's, which has the word about it.
          const later = action.held.map(
            (named) => named.epoch > (model.get(named.step)?.epoch ?? named.epoch),
          );
          expect(superseded).toEqual(held.filter((_, n) => !mine[n] && !later[n]));
        }
        const overdue = [...model].filter(([, lease]) => lease.untilMs <= nowMs).map(([n]) => `s${n}`);
        expect(
          table
            .expired(nowMs)
            .map((lease) => lease.stepId)
            .sort(),
        ).toEqual(overdue.sort());
        expect(table.size).toBe(model.size);
      }
    }),
  );
});

describe("a heartbeat", () => {
  test("is told with each lease that it is to be stopped, for as long as it lasts", () => {
    const table = new LeaseTable(TTL_MS);
    table.begin(key(1, 1), "site/a", 0);
    table.begin(key(2, 1), "site/a", 0);
    table.cancel("r", "s1", "enough");
    for (const nowMs of [10, 20]) {
      expect(table.heartbeat("site/a", [key(1, 1), key(2, 1)], nowMs, never)).toEqual({
        renewed: [key(1, 1), key(2, 1)],
        superseded: [],
        cancels: [{ lease: key(1, 1), reason: "enough" }],
      });
    }
  });

  test("that names a grant whose start is not known yet is neither renewed nor refused", () => {
    const table = new LeaseTable(TTL_MS);
    expect(table.heartbeat("site/a", [key(1, 1)], 0, () => "expected")).toEqual({
      renewed: [],
      superseded: [],
      cancels: [],
    });
  });
});

test("the end of a run ends its leases and no others", () => {
  const table = new LeaseTable(TTL_MS);
  table.begin(key(1, 1), "site/a", 0);
  table.begin({ ...key(1, 1), runId: "other" }, "site/a", 0);
  table.endRun("r", ["s1", "s2"]);
  expect(table.expired(TTL_MS).map((lease) => lease.runId)).toEqual(["other"]);
});
