/** What decides for runs, over a real NATS, without a gateway. */
import type { NatsConnection } from "nats";
import { pino } from "pino";
import { compile } from "../../shared/engine/plan.ts";
import type { StepSpec } from "../../shared/model/spec.ts";
import { systemClock } from "../../shared/system.ts";
import { pipelineSpec } from "../../test/support/specs.ts";
import { JetStreamOfferQueue } from "../store/jetstream-offer-queue.ts";
import { JetStreamRunStore } from "../store/jetstream-run-store.ts";
import type { PlacementDesk } from "./ports.ts";
import { RunService } from "./run-service.ts";

export const VERSION = `sha256:${"0".repeat(64)}`;
let instances = 0;

/** A world with one environment, which is there once it is opened, and one pool with one place. */
export function runWorld(
  connection: NatsConnection,
  steps: StepSpec[],
  { open = true, store = new JetStreamRunStore(connection), leaseTtlMs = 30_000 } = {},
) {
  const site = { open, confirm: (): Promise<boolean> => Promise.resolve(true) };
  const desk: PlacementDesk = {
    policyVersion: "p1",
    explain: () => [{ environment: "site", allowed: site.open, reasons: [] }],
    choose: (verdicts) => verdicts.find((verdict) => verdict.allowed)?.environment ?? null,
    poolCapacity: () => 1,
    classificationOf: () => "public",
  };
  const plan = compile(pipelineSpec("nightly", steps));
  const service = new RunService({
    clock: systemClock,
    random: () => 0,
    log: pino({ level: "silent" }),
    store,
    offers: new JetStreamOfferQueue(connection, () => "signature"),
    plans: { load: () => Promise.resolve(plan) },
    desk,
    agents: { cancel: () => false },
    instanceId: `i${++instances}`,
    leaseTtlMs,
    offerTtlMs: 60_000,
    replicaId: "r1",
    isOver: () => false,
    confirm: () => site.confirm(),
  });
  service.start();
  service.own(new Map(Array.from({ length: 64 }, (_, shard) => [shard, 1])), []);
  return { service, site, [Symbol.asyncDispose]: () => service.close() };
}
