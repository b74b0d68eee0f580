/** How long it took until work went on, by kind of fault. */
import type { Fault, FaultKind } from "./faults.ts";
import type { Seen } from "./traffic.ts";

/** A fault as it was done. Times count from the start of the faults. */
export interface DoneFault extends Fault {
  beganMs: number;
  healedMs: number;
  /** Of a killed replica: the shards that it decided for. */
  shards: readonly number[];
}

export interface Recovery {
  kind: FaultKind;
  faults: number;
  /** From the heal of each to the next run that ended. */
  timesMs: readonly number[];
  /** From the heal to the next run that ended; null when none did after any of them. */
  medianMs: number | null;
  worstMs: number | null;
  /** Of `kill replica`: from the kill to the next decision for a run of its shards. */
  decisionMedianMs: number | null;
  decisionWorstMs: number | null;
}

/** By kind, in the order of their first fault. */
export function recoveries(
  faults: readonly DoneFault[],
  seen: readonly Seen[],
  shardOf: (runId: string) => number,
): Recovery[] {
  const kinds = [...new Set(faults.map(({ kind }) => kind))];
  const ends = seen.filter(({ kind }) => kind === "run.finished");
  return kinds.map((kind) => {
    const own = faults.filter((fault) => fault.kind === kind);
    const times = own.flatMap(({ healedMs }) => after(ends, healedMs, () => true));
    const decisions = own.flatMap(({ beganMs, shards }) =>
      shards.length === 0 ? [] : after(seen, beganMs, ({ runId }) => shards.includes(shardOf(runId))),
    );
    return {
      kind,
      faults: own.length,
      timesMs: times,
      medianMs: median(times),
      worstMs: worst(times),
      decisionMedianMs: median(decisions),
      decisionWorstMs: worst(decisions),
    };
  });
}

/** Runs that ended, by piece of `bucketMs`. */
export function throughput(seen: readonly Seen[], bucketMs: number, untilMs: number): number[] {
  const buckets = Array.from({ length: Math.max(1, Math.ceil(untilMs / bucketMs)) }, () => 0);
  for (const { kind, atMs } of seen) {
    const at = Math.floor(atMs / bucketMs);
    if (kind === "run.finished" && at >= 0 && at < buckets.length) buckets[at]! += 1;
  }
  return buckets;
}

function after(seen: readonly Seen[], atMs: number, counts: (one: Seen) => boolean): number[] {
  const next = seen.find((one) => one.atMs >= atMs && counts(one));
  return next ? [next.atMs - atMs] : [];
}

function median(times: readonly number[]): number | null {
  const sorted = [...times].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? null;
}

function worst(times: readonly number[]): number | null {
  return times.length === 0 ? null : Math.max(...times);
}
