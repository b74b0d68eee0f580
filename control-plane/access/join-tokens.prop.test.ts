import fc from "fast-check";
import { expect, test } from "vitest";
import { type JoinTokenRecord, spend } from "./join-tokens.ts";

const claim = fc.record({
  agentName: fc.constantFrom("a", "b", "c"),
  spkiSha256: fc.constantFrom("k1", "k2"),
  nowMs: fc.integer({ min: 0, max: 100 }),
  removedAtMs: fc.option(fc.integer({ min: 0, max: 100 })),
});

test("a token never gives more uses than it has, none after it expired, and one agent spends one", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 4 }), fc.array(claim, { maxLength: 30 }), (uses, claims) => {
      let record: JoinTokenRecord = {
        v: 1,
        environment: "dream",
        createdBy: "test",
        createdAtMs: 20,
        expiresAtMs: 80,
        uses,
        approval: false,
        redemptions: [],
        revoked: null,
      };
      for (const { nowMs, removedAtMs, ...who } of claims) {
        const before = record;
        const decided = spend(record, who, { nowMs, removedAtMs });
        if (decided.kind === "spent") record = decided.record;
        if (nowMs >= 80) expect(decided).toEqual({ kind: "refused", fault: "expired" });
        else if (removedAtMs !== null && removedAtMs >= 20) expect(decided.kind).toBe("refused");
        else if (decided.kind === "refused") expect(before.redemptions).toHaveLength(uses);
        expect(record.redemptions.length).toBeLessThanOrEqual(uses);
      }
      const spent = record.redemptions.map((r) => `${r.agentName} ${r.spkiSha256}`);
      expect(new Set(spent).size).toBe(spent.length);
    }),
  );
});

test("a token that is not there is unknown", () => {
  const decided = spend(undefined, { agentName: "a", spkiSha256: "k" }, { nowMs: 0, removedAtMs: null });
  expect(decided).toEqual({ kind: "refused", fault: "unknown" });
});
