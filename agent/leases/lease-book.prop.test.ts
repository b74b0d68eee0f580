import fc from "fast-check";
import { expect, test } from "vitest";
import { leaseKey, offerOf } from "../agent.fixture.ts";
import { LeaseBook } from "./lease-book.ts";

test("of one step the agent takes only ever newer grants, each once, whatever comes twice, late or cannot be written", () => {
  const event = fc.record({
    stepId: fc.constantFrom("fit", "merge"),
    epoch: fc.integer({ min: 1, max: 6 }),
    late: fc.boolean(),
    foreign: fc.boolean(),
    /** The journal takes the lease. */
    written: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(event, { maxLength: 60 }), (events) => {
      const book = new LeaseBook("dream");
      const taken = new Map<string, number>();
      for (const { stepId, epoch, late, foreign, written } of events) {
        const lease = leaseKey({ stepId, epoch });
        const offer = offerOf({ lease, environment: foreign ? "hq" : "dream", expiresAtMs: 100 });
        const last = taken.get(stepId) ?? 0;
        const { kind } = book.decide(offer, late ? 101 : 100);
        if (late || foreign || epoch < last) expect(kind).toBe("refuse");
        if (epoch === last) expect(kind).not.toBe("take");
        if (kind !== "take") continue;
        expect(epoch).toBeGreaterThan(last);
        book.note(lease);
        if (written) taken.set(stepId, epoch);
        else book.forget(lease);
      }
    }),
  );
});
