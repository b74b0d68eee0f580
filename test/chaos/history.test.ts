/** A checker that cannot fail is worth nothing: one made-up history for each thing that must never be. */
import { describe, expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import type { Outcome } from "../../shared/wire/attempt.ts";
import {
  check,
  type History,
  type RunRecord,
  type SeenBatch,
  VIOLATIONS,
  type ViolationKind,
} from "./history.ts";
import type { LogPiece } from "./log-check.ts";
import type { WitnessLine } from "./witness.ts";

const OUTCOME: Outcome = {
  status: "succeeded",
  exitCode: 0,
  signal: null,
  error: null,
  outputs: {},
  artifacts: [],
  egress: [],
  logLastSeq: 2,
  logBytes: 28,
  logDroppedBytes: 0,
  startedAtMs: 10,
  finishedAtMs: 20,
};
const at = { atMs: 1, attempt: 1, epoch: 1, agent: "a/a1" };

function grant(step: string, site: string): RunEvent[] {
  const offered = {
    atMs: 1,
    step,
    attempt: 1,
    epoch: 1,
    environment: site,
    policyVersion: "p",
    expiresAtMs: 9,
  };
  return [
    { kind: "attempt.offered", ...offered },
    { kind: "attempt.started", ...at, step },
    { kind: "attempt.finished", ...at, step, outcome: OUTCOME, retryAtMs: null },
    { kind: "step.succeeded", atMs: 1, step },
  ];
}

const BATCHES: readonly SeenBatch[] = [
  {
    seq: 1,
    events: [{ kind: "run.created", atMs: 1, runId: "r", pipeline: "p", version: "v", params: {}, by: "x" }],
  },
  { seq: 4, events: grant("first", "a") },
  { seq: 7, events: grant("pay", "b") },
  { seq: 9, events: [{ kind: "run.finished", atMs: 1, status: "succeeded", reason: "" }] },
];

const line = (mark: "start" | "end", step: string, site: string, atMs: number): WitnessLine => ({
  mark,
  runId: "r",
  step,
  attempt: 1,
  epoch: 1,
  site,
  agent: `${site}1`,
  atMs,
});

const piece = (step: string, seq: number, text: string): LogPiece => ({
  step,
  attempt: 1,
  epoch: 1,
  seq,
  stream: "stdout",
  text,
  droppedBytes: 0,
});

/** All is well in it. The second line of `pay` comes in two pieces. */
function good(): History & { runs: [RunRecord] } {
  const run: RunRecord = {
    id: "r",
    key: "start-1",
    pipeline: "p",
    watched: BATCHES,
    finals: { r1: BATCHES, r2: BATCHES },
    statuses: ["running", "succeeded", "running"],
    logs: [
      piece("first", 1, "line 1 of 1.1\nline 2 of 1.1\n"),
      piece("pay", 2, "e 2 of 1.1\n"),
      piece("pay", 1, "line 1 of 1.1\nlin"),
    ],
  };
  const any = { once: false, failures: 0, lines: 2 };
  return {
    expected: {
      p: {
        first: { ...any, sites: ["a"], needs: [] },
        pay: { ...any, sites: ["b"], needs: ["first"], once: true },
      },
    },
    runs: [run],
    listed: [{ id: "r", key: "start-1" }],
    witness: [
      line("start", "first", "a", 10),
      line("end", "first", "a", 20),
      line("start", "pay", "b", 30),
      line("end", "pay", "b", 40),
    ],
  };
}

function withRun(change: Partial<RunRecord>): History {
  const history = good();
  return { ...history, runs: [{ ...history.runs[0], ...change }] };
}

/** The same for everybody. */
function withBatches(batches: readonly SeenBatch[]): History {
  return withRun({ watched: batches, finals: { r1: batches, r2: batches }, statuses: ["running"] });
}

const then = (events: RunEvent[]): SeenBatch => ({ seq: 12, events });
const until = (seq: number): SeenBatch[] => BATCHES.filter((batch) => batch.seq <= seq);
const failing: RunEvent = { kind: "step.failed", atMs: 1, step: "pay", code: "lost", message: "no agent" };
const finished: RunEvent = { kind: "run.finished", atMs: 1, status: "failed", reason: "" };

const FOUND: [ViolationKind, string, () => History][] = [
  ["run lost", "no list has it", () => ({ ...good(), listed: [] })],
  ["run lost", "a replica does not know it", () => withRun({ finals: { r1: BATCHES, r2: null } })],
  [
    "run lost",
    "a site ran it, and nobody else heard of it",
    () => ({
      ...good(),
      witness: [...good().witness, { ...line("start", "first", "a", 5), runId: "other" }],
    }),
  ],
  [
    "run started twice",
    "one key, two runs",
    () => ({ ...good(), listed: [...good().listed, { id: "s", key: "start-1" }] }),
  ],
  ["run never ended", "its end is missing", () => withBatches(until(7))],
  [
    "run failed without a cause",
    "its agents were lost too often",
    () => withBatches([...until(4), then([...grant("pay", "b").slice(0, 2), failing, finished])]),
  ],
  [
    "outcome committed twice",
    "under two epochs of one attempt",
    () => {
      const again: RunEvent = {
        kind: "attempt.finished",
        ...at,
        epoch: 2,
        step: "pay",
        outcome: OUTCOME,
        retryAtMs: null,
      };
      const batches = until(7).map(({ seq, events }) => ({
        seq,
        events: events.flatMap((e) => (e.kind === "attempt.finished" && e.step === "pay" ? [e, again] : [e])),
      }));
      return withBatches([...batches, ...BATCHES.slice(-1)]);
    },
  ],
  [
    "outcome without witness",
    "the site saw the start alone",
    () => ({ ...good(), witness: good().witness.slice(0, 3) }),
  ],
  [
    "start without offer",
    "under an epoch that was never granted",
    () => ({ ...good(), witness: [...good().witness, { ...line("start", "first", "a", 5), epoch: 2 }] }),
  ],
  [
    "terminal state changed",
    "the run goes on after its end",
    () => withBatches([...BATCHES, then([finished])]),
  ],
  [
    "terminal state changed",
    "a step goes on after its end",
    () => withBatches([...until(7), then(grant("first", "a").slice(0, 1)), { ...BATCHES[3]!, seq: 13 }]),
  ],
  [
    "terminal state changed",
    "a list showed another end",
    () => withRun({ statuses: ["failed", "succeeded"] }),
  ],
  [
    "history rewritten",
    "two replicas tell two stories",
    () => withRun({ finals: { r1: BATCHES, r2: [...until(7), { seq: 9, events: [finished] }] } }),
  ],
  ["history rewritten", "what was seen is gone", () => withRun({ finals: { r1: until(7), r2: BATCHES } })],
  ["history rewritten", "the watch saw a batch twice", () => withRun({ watched: [...BATCHES, BATCHES[2]!] })],
  ["log line lost", "a piece is missing", () => withRun({ logs: good().runs[0].logs.slice(0, 2) })],
  [
    "log line doubled",
    "a line twice",
    () => withRun({ logs: [...good().runs[0].logs, piece("first", 2, "line 2 of 1.1\n")] }),
  ],
  [
    "step outside its site",
    "started elsewhere",
    () => ({ ...good(), witness: good().witness.map((one) => ({ ...one, site: "a" })) }),
  ],
  [
    "once step started twice",
    "under one grant",
    () => ({ ...good(), witness: [...good().witness, line("start", "pay", "b", 35)] }),
  ],
  [
    "step before its needs",
    "by the sites' clocks",
    () => ({
      ...good(),
      witness: good().witness.map((one) => ({ ...one, atMs: one.step === "pay" ? 15 : one.atMs })),
    }),
  ],
];

test("nothing is found in a history where all is well", () => {
  expect(check(good())).toEqual([]);
});

describe("found", () => {
  test.each(FOUND)("%s: %s", (kind, _what, history) => {
    expect(check(history()).map((violation) => violation.kind)).toContain(kind);
  });

  test("every kind has a history", () => {
    expect(new Set(FOUND.map(([kind]) => kind))).toEqual(new Set(VIOLATIONS));
  });
});

describe("not found", () => {
  test("evidence that comes after the end", () => {
    const late = then([{ kind: "attempt.fenced", ...at, step: "first", outcome: OUTCOME }]);
    expect(check(withRun({ finals: { r1: [...BATCHES, late], r2: [...BATCHES, late] } }))).toEqual([]);
  });

  test("a once step that fails because its agent's host was lost", () => {
    const outcome: Outcome = { ...OUTCOME, status: "interrupted", exitCode: null, logLastSeq: 0 };
    const lost: RunEvent = { kind: "attempt.finished", ...at, step: "pay", outcome, retryAtMs: null };
    expect(
      check(withBatches([...until(4), then([...grant("pay", "b").slice(0, 2), lost, failing, finished])])),
    ).toEqual([]);
  });

  test("lines that the outcome owns up to have dropped, and no more than those", () => {
    const dropped = (bytes: number) => {
      const outcome = { ...OUTCOME, logDroppedBytes: bytes };
      const batches = BATCHES.map(({ seq, events }) => ({
        seq,
        events: events.map((event) => (event.kind === "attempt.finished" ? { ...event, outcome } : event)),
      }));
      return check({ ...withBatches(batches), runs: [{ ...withBatches(batches).runs[0]!, logs: [] }] });
    };
    expect(dropped(28)).toEqual([]);
    expect(dropped(27)).toHaveLength(2);
  });
});
