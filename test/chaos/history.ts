/**
 * Compares what the product says of the runs with what the sites' journals of side effects say, and with what was
 * seen meanwhile. Knows nothing of the product's own code: a fault there does not hide itself here.
 */
import type { RunEvent } from "../../shared/engine/events.ts";
import { checkLogs, type LogPiece } from "./log-check.ts";
import type { WitnessLine } from "./witness.ts";
import type { Expectation, Expectations } from "./workload.ts";

export const VIOLATIONS = [
  "run lost",
  "run started twice",
  "run never ended",
  "run failed without a cause",
  "outcome committed twice",
  "outcome without witness",
  "start without offer",
  "terminal state changed",
  "history rewritten",
  "log line lost",
  "log line doubled",
  "step outside its site",
  "once step started twice",
  "step before its needs",
] as const;
export type ViolationKind = (typeof VIOLATIONS)[number];

export interface Violation {
  kind: ViolationKind;
  runId: string;
  message: string;
}

export interface SeenBatch {
  seq: number;
  events: readonly RunEvent[];
}

/** A run whose start was acknowledged. */
export interface RunRecord {
  id: string;
  /** Of its start: one effect, however often it was asked for. */
  key: string;
  pipeline: string;
  /** In the order in which they came, over all connections. */
  watched: readonly SeenBatch[];
  /** At the end, by replica; null where the run is not known. */
  finals: Readonly<Record<string, readonly SeenBatch[] | null>>;
  /** Each status that a list showed, in order. */
  statuses: readonly string[];
  logs: readonly LogPiece[];
}

export interface History {
  expected: Expectations;
  runs: readonly RunRecord[];
  /** All runs that the lists know at the end. */
  listed: readonly { id: string; key: string }[];
  witness: readonly WitnessLine[];
}

const TERMINAL = new Set(["succeeded", "failed", "cancelled"]);
/** They may come after the end, and change nothing. */
const EVIDENCE = new Set(["attempt.fenced"]);

/** How many of each kind, zeros too: what was looked for is said even where nothing was found. */
export function counts(violations: readonly Violation[]): [ViolationKind, number][] {
  return VIOLATIONS.map((kind) => [kind, violations.filter((one) => one.kind === kind).length]);
}

/** Empty when all is well. */
export function check(history: History): Violation[] {
  const byRun = new Map<string, WitnessLine[]>();
  for (const line of history.witness) byRun.set(line.runId, [...(byRun.get(line.runId) ?? []), line]);
  return [
    ...checkStarts(history),
    ...history.runs.flatMap((run) =>
      checkRun(run, history.expected[run.pipeline] ?? {}, byRun.get(run.id) ?? []),
    ),
    ...checkStrangers(history, byRun),
  ];
}

function checkStarts({ runs, listed }: History): Violation[] {
  const found: Violation[] = [];
  const known = new Set(listed.map(({ id }) => id));
  const byKey = new Map<string, Set<string>>();
  for (const { id, key } of [...listed, ...runs]) byKey.set(key, (byKey.get(key) ?? new Set()).add(id));
  for (const { id } of runs)
    if (!known.has(id)) found.push({ kind: "run lost", runId: id, message: "acknowledged, and in no list" });
  for (const [key, ids] of byKey) {
    if (ids.size === 1) continue;
    const [first] = ids;
    const message = `one start (${key}) made ${ids.size} runs: ${[...ids].join(", ")}`;
    found.push({ kind: "run started twice", runId: first!, message });
  }
  return found;
}

/** Steps of runs that nobody acknowledged are bound to their sites all the same; their runs have to exist. */
function checkStrangers({ runs, listed }: History, byRun: Map<string, WitnessLine[]>): Violation[] {
  const known = new Set([...runs, ...listed].map(({ id }) => id));
  return [...byRun]
    .filter(([runId]) => !known.has(runId))
    .map(([runId, lines]) => ({
      kind: "run lost" as const,
      runId,
      message: `a site ran ${lines[0]!.step} of it, and in no list`,
    }));
}

function checkRun(
  run: RunRecord,
  steps: Readonly<Record<string, Expectation>>,
  witness: WitnessLine[],
): Violation[] {
  const found: Violation[] = [];
  const say = (kind: ViolationKind, message: string): void => {
    found.push({ kind, runId: run.id, message });
  };
  checkViews(run, say);
  const final = Object.values(run.finals).find((batches) => batches !== null) ?? run.watched;
  const events = final.flatMap((batch) => batch.events);
  checkEnds(events, run.statuses, say);
  checkOutcomes(events, witness, say);
  checkWitness(events, steps, witness, say);
  checkLogs(events, steps, run.logs, say);
  return found;
}

type Say = (kind: ViolationKind, message: string) => void;

/** What was seen once is there for ever, the same for everybody. */
function checkViews({ watched, finals }: RunRecord, say: Say): void {
  const replicas = Object.entries(finals);
  for (const [replica, batches] of replicas)
    if (batches === null) say("run lost", `acknowledged, and ${replica} does not know it`);
  const seen = new Map<number, { text: string; by: string; late: boolean }>();
  const views: [string, readonly SeenBatch[]][] = [["the watch", watched]];
  for (const [replica, batches] of replicas) if (batches !== null) views.push([replica, batches]);
  for (const [by, batches] of views) {
    let last = -1;
    for (const { seq, events } of batches) {
      if (seq <= last) say("history rewritten", `${by} showed sequence ${seq} after ${last}`);
      last = seq;
      const text = JSON.stringify(events);
      const earlier = seen.get(seq);
      if (earlier && earlier.text !== text)
        say("history rewritten", `sequence ${seq} is not the same for ${by} as for ${earlier.by}`);
      // Evidence may come while the replicas are asked one after the other.
      seen.set(seq, { text, by, late: events.every(({ kind }) => EVIDENCE.has(kind)) });
    }
  }
  // The watch may stop at the run's end; a replica's view may not lack anything that anyone has seen.
  for (const [by, batches] of views.slice(1)) {
    const own = new Set(batches.map(({ seq }) => seq));
    const missing = [...seen].filter(([seq, { late }]) => !own.has(seq) && !late).map(([seq]) => seq);
    if (missing.length > 0)
      say("history rewritten", `${by} lacks sequence ${missing.join(", ")}, which was seen`);
  }
}

function checkEnds(events: readonly RunEvent[], statuses: readonly string[], say: Say): void {
  const end = events.findIndex(({ kind }) => kind === "run.finished");
  if (end === -1) return say("run never ended", `its last event is ${events.at(-1)?.kind ?? "missing"}`);
  const finished = events[end]!;
  for (const event of events.slice(end + 1))
    if (!EVIDENCE.has(event.kind)) say("terminal state changed", `${event.kind} after the run's end`);
  const status = finished.kind === "run.finished" ? finished.status : "";
  const shown = statuses.find((one) => TERMINAL.has(one) && one !== status);
  if (shown) say("terminal state changed", `a list showed ${shown}, and it is ${status}`);
  const ended = new Map<string, string>();
  for (const event of events) {
    if (!("step" in event) || EVIDENCE.has(event.kind)) continue;
    const before = ended.get(event.step);
    if (before) say("terminal state changed", `${event.kind} of step ${event.step} after its ${before}`);
    if (/^step\.(succeeded|failed|skipped|cancelled)$/.test(event.kind)) ended.set(event.step, event.kind);
  }
}

const grantOf = (of: { step: string; attempt: number; epoch: number }): string =>
  `${of.step} ${of.attempt}.${of.epoch}`;

function checkOutcomes(events: readonly RunEvent[], witness: readonly WitnessLine[], say: Say): void {
  const committed = new Map<string, string>();
  const ends = new Set(witness.filter(({ mark }) => mark === "end").map(grantOf));
  for (const event of events) {
    if (event.kind !== "attempt.finished") continue;
    const attempt = `${event.step} ${event.attempt}`;
    const before = committed.get(attempt);
    if (before) say("outcome committed twice", `of attempt ${attempt}: by ${before}, then by ${event.agent}`);
    committed.set(attempt, event.agent);
    const { status } = event.outcome;
    const ran = status === "succeeded" || (status === "failed" && event.outcome.exitCode !== null);
    if (ran && !ends.has(grantOf(event)))
      say("outcome without witness", `${grantOf(event)} ${status}, and its site saw no end of it`);
  }
}

function checkWitness(
  events: readonly RunEvent[],
  steps: Readonly<Record<string, Expectation>>,
  witness: readonly WitnessLine[],
  say: Say,
): void {
  const offers = new Map<string, string>();
  const results = new Map<string, string>();
  for (const event of events) {
    if (event.kind === "attempt.offered") offers.set(grantOf(event), event.environment);
    if (event.kind === "attempt.finished" && event.outcome.status === "succeeded")
      results.set(event.step, grantOf(event));
    if (event.kind === "step.failed") checkCause(event, events, steps[event.step], say);
  }
  // The queue may give one grant to two agents: the first end is what the next step waited for.
  const endedAtMs = new Map<string, number>();
  for (const line of witness) {
    if (line.mark !== "end") continue;
    endedAtMs.set(grantOf(line), Math.min(line.atMs, endedAtMs.get(grantOf(line)) ?? line.atMs));
  }
  const starts = new Map<string, number>();
  for (const line of witness) {
    if (line.mark !== "start") continue;
    const expected = steps[line.step];
    if (!expected?.sites.includes(line.site))
      say("step outside its site", `${line.step} started at ${line.site}`);
    if (offers.get(grantOf(line)) === undefined)
      say("start without offer", `${grantOf(line)} started by ${line.agent}`);
    const count = (starts.get(line.step) ?? 0) + 1;
    starts.set(line.step, count);
    if (expected?.once && count === 2) say("once step started twice", `${line.step}, again by ${line.agent}`);
    for (const need of expected?.needs ?? []) {
      const grant = results.get(need);
      const doneMs = grant === undefined ? undefined : endedAtMs.get(grant);
      if (doneMs === undefined || doneMs > line.atMs)
        say("step before its needs", `${line.step} started before ${need} had ended`);
    }
  }
}

/** A step that may run again and whose command does well ends well, whatever befell its agents. */
function checkCause(
  { step, code, message }: Extract<RunEvent, { kind: "step.failed" }>,
  events: readonly RunEvent[],
  expected: Expectation | undefined,
  say: Say,
): void {
  const last = events.findLast((event) => event.kind === "attempt.finished" && event.step === step);
  const status = last?.kind === "attempt.finished" ? last.outcome.status : "none";
  if (expected?.once && status === "interrupted") return;
  say("run failed without a cause", `step ${step}: ${code}: ${message}`);
}
