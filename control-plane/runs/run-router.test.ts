import { expect, test } from "vitest";
import { InsituError, InvariantError } from "../../shared/errors.ts";
import { systemClock } from "../../shared/system.ts";
import type { InboxItem } from "../shards/ports.ts";
import { RunRouter } from "./run-router.ts";
import type { RunService } from "./run-service.ts";

const lease = { runId: "r", stepId: "fit", attempt: 1, epoch: 1 };
const report = { kind: "started", lease, atMs: 1 } as const;

function router(err: Error) {
  const kept: InboxItem[] = [];
  const runs = { owns: () => true, accept: () => Promise.reject(err) } as Partial<RunService> as RunService;
  const routed = new RunRouter({
    runs,
    shards: { replicaId: "a", size: 1, ownerOf: () => "a" },
    bus: { broadcast: () => undefined, send: () => undefined, request: () => Promise.reject(err) },
    inbox: { put: async (_shard, item) => void kept.push(item) },
    clock: systemClock,
    verify: async () => undefined,
    refused: async () => undefined,
    tell: () => false,
    stop: () => false,
  });
  return { routed, kept };
}

test.each([
  ["was set aside", new InvariantError("impossible")],
  ["was written by another release", new InsituError("internal", "not a batch of run events")],
])(
  "the report of a run that %s is kept in the inbox, and holds up no later report of its agent",
  async (_, err) => {
    const { routed, kept } = router(err);
    expect(await routed.accept("site/a", report)).toEqual({ accepted: true });
    expect(kept).toEqual([{ agent: "site/a", report }]);
  },
);

test("a report that the store could not take now is neither acknowledged nor put elsewhere", async () => {
  const { routed, kept } = router(new InsituError("store.unavailable", "away", { retryable: true }));
  await expect(routed.accept("site/a", report)).rejects.toThrow("away");
  expect(kept).toEqual([]);
});
