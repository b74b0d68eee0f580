import { expect, test } from "vitest";
import { InsituError, InvariantError } from "../../shared/errors.ts";
import { systemClock } from "../../shared/system.ts";
import type { InboxItem } from "../shards/ports.ts";
import { RunRouter } from "./run-router.ts";
import type { RunService } from "./run-service.ts";

const lease = { runId: "r", stepId: "fit", attempt: 1, epoch: 1 };
const report = { kind: "started", lease, atMs: 1 } as const;

function router(err: Error, verify: () => Promise<void> = async () => undefined) {
  const kept: InboxItem[] = [];
  const refusals: string[] = [];
  const runs = { owns: () => true, accept: () => Promise.reject(err) } as Partial<RunService> as RunService;
  const routed = new RunRouter({
    runs,
    shards: { replicaId: "a", size: 1, ownerOf: () => "a" },
    bus: { broadcast: () => undefined, send: () => undefined, request: () => Promise.reject(err) },
    inbox: { put: async (_shard, item) => void kept.push(item) },
    clock: systemClock,
    verify,
    refused: async ({ agent }, { code }) => void refusals.push(`${agent} ${code}`),
    tell: () => false,
    stop: () => false,
  });
  return { routed, kept, refusals };
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

test.each(["report.unsigned", "report.forged"] as const)(
  "what the inbox holds and its agent has not signed (%s) is refused before the run hears of it, and leaves the inbox",
  async (code) => {
    const heard = new Error("the run has heard of it");
    const { routed, refusals } = router(heard, () => Promise.reject(new InsituError(code, "not signed")));
    expect(await routed.acceptFromInbox({ agent: "site/a", report })).toBe(true);
    expect(refusals).toEqual([`site/a ${code}`]);
  },
);

test("what the inbox holds and nobody can verify now stays there, and is refused to nobody", async () => {
  const away = new InsituError("store.unavailable", "the keys cannot be read now", { retryable: true });
  const { routed, refusals } = router(new Error("the run has heard of it"), () => Promise.reject(away));
  await expect(routed.acceptFromInbox({ agent: "site/a", report })).rejects.toBe(away);
  expect(refusals).toEqual([]);
});
