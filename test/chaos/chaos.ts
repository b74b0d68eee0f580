/** One run of chaos: start everything, break it as the seed says, heal it, wait for the end of all runs, compare. */
import { setMaxListeners } from "node:events";
import { systemClock } from "../../shared/system.ts";
import { shardOf } from "../../shared/wire/subjects.ts";
import { Client } from "./client.ts";
import { type Fault, type FaultKind, scheduleFaults } from "./faults.ts";
import { check, type History, type Violation } from "./history.ts";
import type { NetworkName } from "./network.ts";
import { type Pressure, PressureGauge } from "./pressure.ts";
import { type DoneFault, type Recovery, recoveries } from "./recovery.ts";
import { type Seen, Traffic } from "./traffic.ts";
import { expectations } from "./workload.ts";
import { World, type WorldOptions } from "./world.ts";

/** From the last heal until every run has ended, and then until all was read. */
const SETTLE_MAX_MS = 120_000;
const COLLECT_MAX_MS = 300_000;

export interface ChaosOptions extends WorldOptions {
  seed: number;
  durationMs: number;
  meanMs: number;
  concurrentMax: number;
  /** Runs at the same time. */
  width: number;
  say: (line: string) => void;
  /** When everyone's logs stay. */
  keepLogs: "never" | "when something was found" | "always";
  signal: AbortSignal;
}

export interface Verdict {
  seed: number;
  network: NetworkName;
  durationMs: number;
  /** From the start of the faults until every run had ended. */
  settledMs: number;
  faults: DoneFault[];
  skipped: { kind: FaultKind; reason: string }[];
  history: History;
  seen: Seen[];
  violations: Violation[];
  recoveries: Recovery[];
  ends: { name: string; how: string }[];
  pressure: readonly Pressure[];
}

export async function chaos(options: ChaosOptions): Promise<Verdict> {
  const { seed, durationMs, say, signal, keepLogs } = options;
  // Every run that is followed and every fault that is to come listens to it.
  setMaxListeners(0, signal);
  say("starting");
  await using world = await World.start(options);
  for (const [kind, reason] of world.skipped)
    if (options.kinds.includes(kind)) say(`skipped: ${kind}: ${reason}`);
  const schedule = scheduleFaults({ ...options, kinds: world.kinds, cast: world.cast });
  const startedMs = systemClock.monotonicMs();
  const nowMs = (): number => systemClock.monotonicMs() - startedMs;
  using gauge = new PressureGauge(nowMs);
  const traffic = new Traffic({ client: new Client(world.replicas, world.token), seed, nowMs });
  const enough = new AbortController();
  const settle = new AbortController();
  const stop = AbortSignal.any([settle.signal, signal]);
  setMaxListeners(0, stop);
  const flow = traffic.flow(options.width, enough.signal, stop);
  const faults = await breakThings({ ...options, world, traffic, schedule, nowMs });
  say(`${faults.length} faults done and healed; ${traffic.acknowledged} runs were started`);
  enough.abort();
  const late = systemClock.after(SETTLE_MAX_MS, () => settle.abort());
  await flow;
  late.cancel();
  signal.throwIfAborted();
  const settledMs = nowMs();
  say(settle.signal.aborted ? `not all runs ended within ${SETTLE_MAX_MS / 1_000} s` : "every run has ended");
  const collecting = new AbortController();
  const giveUp = systemClock.after(COLLECT_MAX_MS, () => collecting.abort());
  const expected = expectations(Object.keys(world.cast.sites));
  const history = await traffic.collect(
    expected,
    world.witness(),
    AbortSignal.any([collecting.signal, signal]),
  );
  giveUp.cancel();
  const violations = check(history);
  world.keep = keepLogs === "always" || (keepLogs !== "never" && violations.length > 0);
  if (world.keep) say(`everyone's logs: ${world.directory}`);
  return {
    seed,
    network: world.network.name,
    durationMs,
    settledMs,
    faults,
    skipped: [...world.skipped].map(([kind, reason]) => ({ kind, reason })),
    history,
    seen: traffic.seen,
    violations,
    recoveries: recoveries(faults, traffic.seen, shardOf),
    ends: world.ends,
    pressure: gauge.samples,
  };
}

/** Resolves when the last fault is healed. */
async function breakThings(
  options: ChaosOptions & { world: World; traffic: Traffic; schedule: Fault[]; nowMs: () => number },
): Promise<DoneFault[]> {
  const { world, traffic, schedule, nowMs, durationMs, say, signal } = options;
  const until = (atMs: number): Promise<void> => systemClock.sleep(Math.max(0, atMs - nowMs()), signal);
  const doOne = async (fault: Fault): Promise<DoneFault> => {
    await until(fault.atMs);
    const shards = fault.kind === "kill replica" ? await shardsOf(fault.target, world, traffic) : [];
    const beganMs = nowMs();
    await world.begin(fault);
    say(`${(beganMs / 1_000).toFixed(1)} s: ${describe(fault)}`);
    await until(Math.min(beganMs + fault.lengthMs, durationMs));
    world.heal(fault);
    return { ...fault, beganMs, healedMs: nowMs(), shards };
  };
  const done = await Promise.all(schedule.map(doOne));
  await until(durationMs);
  return done;
}

async function shardsOf(replica: string, world: World, traffic: Traffic): Promise<number[]> {
  const url = world.replicas.find(({ name }) => name === replica)?.url ?? "";
  return (await traffic.owners()).get(url) ?? [];
}

function describe({ kind, target, lengthMs, amountMs, lossPercent }: Fault): string {
  const amount = lossPercent > 0 ? ` of ${lossPercent} %` : amountMs === 0 ? "" : ` by ${amountMs} ms`;
  return `${kind} ${target}${amount} for ${(lengthMs / 1_000).toFixed(1)} s`;
}
