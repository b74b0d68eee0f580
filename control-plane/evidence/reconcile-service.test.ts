import { beforeAll, beforeEach, expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import { entryBytes, type LedgerEntry, parseEntry } from "../../shared/provenance/ledger-entry.ts";
import { systemClock } from "../../shared/system.ts";
import { Authority, offerOf, type Sealer } from "../../test/support/receipts.ts";
import { outcome, pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import type { ReconcileFinding, ReconcileSummary } from "../api/ledger-schemas.ts";
import { Leaves } from "./leaves.ts";
import { LEDGER_SOURCES, type LedgerSource, type LedgerSources, type SourceMessage } from "./ports.ts";
import { reconcile } from "./reconcile-service.ts";

const step = stepSpec("fit", { reads: ["patients"] });
const facts = { pipeline: pipelineSpec("study", [step]), version: `sha256:${"a".repeat(64)}` };
let authority: Authority;
let agent: Sealer;
beforeAll(async () => {
  authority = await Authority.open();
  agent = await authority.agent("dream", "a1");
});

let streams: Record<LedgerSource, SourceMessage[]>;
let ledger: Uint8Array[];
const sources: LedgerSources = {
  factsOf: async () => facts,
  lastSeq: async (source) => streams[source].length,
  async *read(source) {
    yield* streams[source];
  },
  follow: () => {
    throw new Error("nothing is followed here");
  },
};

const batch = (runId: string, seq: number, events: RunEvent[]): SourceMessage => ({
  source: "RUNS",
  seq,
  runId,
  digest: () => `sha256:${"d".repeat(64)}`,
  read: () => events,
});

/** Two messages: placed and taken; ended with its receipt, or without. */
function run(runId: string, hasReceipt = true): void {
  const about = { atMs: 1, step: "fit", attempt: 1, epoch: 1 };
  const lease = { runId, stepId: "fit", attempt: 1, epoch: 1 };
  const receipt = agent.seal(offerOf({ lease, step }), outcome());
  const ended = outcome(hasReceipt ? { receipt } : {});
  const seq = streams.RUNS.length;
  streams.RUNS.push(
    batch(runId, seq + 1, [
      { ...about, kind: "attempt.offered", environment: "dream", policyVersion: "p", expiresAtMs: 9 },
      { ...about, kind: "attempt.started", agent: "dream/a1" },
    ]),
    batch(runId, seq + 2, [
      { ...about, kind: "attempt.finished", agent: "dream/a1", outcome: ended, retryAtMs: null },
    ]),
  );
}

async function write(): Promise<void> {
  const leaves = new Leaves(sources);
  ledger = [];
  for (const source of LEDGER_SOURCES)
    for (const message of streams[source])
      for (const entry of await leaves.of(message)) ledger.push(entryBytes(entry));
}

beforeEach(async () => {
  streams = { RUNS: [], RESOURCES: [] };
  for (const runId of ["r1", "r2", "r3"]) run(runId);
  const apply = {
    atMs: 1,
    by: "ana",
    changes: [{ action: "deleted" as const, kind: "pipeline" as const, name: "old" }],
  };
  streams.RESOURCES.push({ source: "RESOURCES", seq: 1, digest: () => "", read: () => apply });
  await write();
});

async function reconciled(): Promise<{ findings: ReconcileFinding[]; summary: ReconcileSummary }> {
  const store = {
    async *leavesOf(source: LedgerSource, after: number) {
      for (const [index, bytes] of ledger.entries()) {
        const entry = parseEntry(bytes);
        // By the subject that the writer gives: of what is no leaf, that of the run events.
        if (index > after && (entry?.source.stream ?? "RUNS") === source) yield { index, bytes, entry };
      }
    },
  };
  const clock = { ...systemClock, sleep: async () => undefined };
  const found = reconcile({ sources, store, trust: authority.trust, clock }, new AbortController().signal);
  const findings: ReconcileFinding[] = [];
  for (;;) {
    const next = await found.next();
    if (next.done === true) return { findings, summary: next.value };
    findings.push(next.value);
  }
}
const entryAt = (index: number): LedgerEntry => parseEntry(ledger[index]!)!;
const leavesOfRun = 4;

test("a ledger that is what its sources say has no finding, and is counted", async () => {
  const { findings, summary } = await reconciled();
  expect(findings).toEqual([]);
  expect(summary).toEqual({ leaves: 3 * leavesOfRun + 1, messages: 7, receipts: 3, ended: 3, findings: 0 });
});

test("an attempt without a receipt is told", async () => {
  run("r4", false);
  await write();
  const { findings } = await reconciled();
  expect(findings).toEqual([
    { kind: "no-receipt", where: expect.stringMatching(/run r4/), detail: expect.any(String) },
  ]);
});

test.each<[string, () => void, [kind: string, where: RegExp][]]>([
  ["a leaf is gone", () => ledger.splice(5, 1), [["missing", /part 1 of message 3 of RUNS/]]],
  [
    "the end is gone",
    () => ledger.splice(10, 2),
    [
      ["missing", /part 0 of message 6/],
      ["missing", /part 1 of message 6/],
    ],
  ],
  ["a leaf is there twice", () => ledger.splice(3, 0, ledger[2]!), [["double", /leaf 3/]]],
  ["a leaf is repeated later", () => ledger.push(ledger[1]!), [["double", /leaf 13/]]],
  [
    "a leaf is of no message",
    () => ledger.push(entryBytes({ ...entryAt(0), source: { stream: "RUNS", seq: 99, part: 0 } })),
    [["unfounded", /leaf 13/]],
  ],
  [
    "a message never said that",
    () => ledger.splice(4, 0, entryBytes({ ...entryAt(0), source: { stream: "RUNS", seq: 2, part: 7 } })),
    [["unfounded", /leaf 4/]],
  ],
  ["something is no leaf", () => ledger.splice(2, 0, Buffer.from("{}")), [["unfounded", /leaf 2/]]],
  [
    "a leaf says something else",
    () => {
      const entry = entryAt(1);
      if (entry.kind === "decision" && entry.decision.kind === "attempt.taken")
        entry.decision.agent = "dream/a2";
      ledger[1] = entryBytes(entry);
    },
    [["changed", /leaf 1/]],
  ],
  [
    "two leaves changed places",
    () => ledger.splice(0, 2, ledger[1]!, ledger[0]!),
    [
      ["missing", /part 0 of message 1/],
      ["double", /leaf 1/],
    ],
  ],
  [
    "a receipt was made by nobody",
    () => {
      const other = entryAt(2);
      if (other.kind !== "receipt") throw new Error("no receipt there");
      other.receipt = { ...other.receipt, keyProof: "AAAA" };
      ledger[2] = entryBytes(other);
    },
    [
      ["changed", /leaf 2/],
      ["bad-receipt", /leaf 2/],
    ],
  ],
  ["an apply is gone", () => ledger.splice(12, 1), [["missing", /message 1 of RESOURCES/]]],
])("%s: it is found, and nothing else", async (_, change, expected) => {
  change();
  const { findings, summary } = await reconciled();
  expect(findings.map(({ kind, where }) => [kind, where])).toEqual(
    expected.map(([kind, where]) => [kind, expect.stringMatching(where)]),
  );
  expect(summary.findings).toBe(expected.length);
});

test("leaves of what came after the comparison began are no finding", async () => {
  const { RUNS } = streams;
  run("r4");
  await write();
  const later = streams.RUNS;
  const reading = sources.read;
  try {
    sources.read = async function* (source) {
      yield* source === "RUNS" ? RUNS.slice(0, 6) : streams[source];
    };
    streams = { ...streams, RUNS: later };
    expect((await reconciled()).findings).toEqual([]);
  } finally {
    sources.read = reading;
  }
});
