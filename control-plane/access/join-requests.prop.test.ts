import fc from "fast-check";
import { expect, test } from "vitest";
import { ask, type JoinRequestRecord } from "./join-requests.ts";

const event = fc.oneof(
  fc.record({
    kind: fc.constant("ask" as const),
    spkiSha256: fc.constantFrom("k1", "k2", "k3"),
    recovers: fc.boolean(),
    passMs: fc.nat(40),
  }),
  fc.record({ kind: fc.constant("decide" as const), approved: fc.boolean(), passMs: fc.nat(40) }),
);

test("nobody is approved but the key that a person looked at, before its token has expired", () => {
  fc.assert(
    fc.property(fc.array(event, { maxLength: 40 }), (events) => {
      let record: JoinRequestRecord | undefined;
      let nowMs = 0;
      for (const happened of events) {
        nowMs += happened.passMs;
        if (happened.kind === "decide") {
          if (record)
            record = { ...record, decision: { approved: happened.approved, by: "ada", atMs: nowMs } };
          continue;
        }
        const { spkiSha256 } = happened;
        const before = record;
        const { recovers } = happened;
        const about = {
          environment: "e",
          name: "a",
          address: "h",
          expiresAtMs: nowMs + 100,
          recovers,
          nowMs,
        };
        const { verdict, next } = ask(record, { ...about, spkiSha256 });
        record = next ?? record;
        if (verdict === "approved") {
          expect(before).toMatchObject({ spkiSha256, recovers, decision: { approved: true } });
          expect(nowMs).toBeLessThan(before!.expiresAtMs);
        }
        if (verdict === "waiting") expect(record).toMatchObject({ spkiSha256, recovers, decision: null });
        // One that waits or is approved gives way to nobody while its token is good.
        const holds =
          before !== undefined && nowMs < before.expiresAtMs && before.decision?.approved !== false;
        if (holds && before.spkiSha256 !== spkiSha256) expect([verdict, record]).toEqual(["taken", before]);
      }
    }),
  );
});
