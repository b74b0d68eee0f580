/** What of the run events and of the applies becomes a leaf of the ledger. Decides; no I/O. */
import type { RunEvent } from "../../shared/engine/events.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import type { StepSpec } from "../../shared/model/spec.ts";
import type { LedgerDecision, LedgerEntry } from "../../shared/provenance/ledger-entry.ts";
import { isDataBound } from "../../shared/provenance/receipt.ts";
import type { SignedReceipt } from "../../shared/provenance/signed-receipt.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import type { ResourceChange } from "../resources/resource-journal.ts";
import type { Apply, LedgerSource, RunFacts } from "./ports.ts";

type Said = { atMs: number; decision: LedgerDecision } | { receipt: SignedReceipt };

/** Whether anything of the run is in the ledger. */
export function isRecorded({ pipeline }: RunFacts): boolean {
  return pipeline.steps.some(isDataBound);
}

/** Of one message of the stream `RUNS`: its data-bound steps alone, and nothing of a run without any. */
export function entriesOfRun(
  facts: RunFacts,
  { seq, runId, events }: { seq: number; runId: string; events: readonly RunEvent[] },
): LedgerEntry[] {
  const steps = new Map(facts.pipeline.steps.filter(isDataBound).map((step) => [step.id, step]));
  if (steps.size === 0) return [];
  return numbered(
    "RUNS",
    seq,
    events.flatMap((event) => saidOf(event, { runId, facts, steps })),
  );
}

/** Of a message that cannot be made sense of, or whose run cannot: it is not passed over without a word. */
export function opaqueEntry(stream: LedgerSource, seq: number, digest: string): LedgerEntry {
  return { v: 1, kind: "opaque", source: { stream, seq, part: 0 }, reason: "unreadable", digest };
}

function numbered(stream: LedgerSource, seq: number, said: readonly Said[]): LedgerEntry[] {
  return said.map((what, part): LedgerEntry => {
    const source = { stream, seq, part };
    return "receipt" in what
      ? { v: 1, kind: "receipt", source, receipt: what.receipt }
      : { v: 1, kind: "decision", source, atMs: what.atMs, decision: what.decision };
  });
}

interface About {
  runId: string;
  facts: RunFacts;
  steps: ReadonlyMap<string, StepSpec>;
}

function saidOf(event: RunEvent, { runId, facts, steps }: About): Said[] {
  const { atMs } = event;
  const one = (decision: LedgerDecision): Said[] => [{ atMs, decision }];
  if (event.kind === "run.created") {
    const { pipeline, version, by } = event;
    return one({ kind: "run.started", runId, pipeline, version, by });
  }
  if (event.kind === "run.cancel-requested")
    return one({ kind: "run.cancelled", runId, by: event.by, reason: event.reason });
  const step = "step" in event ? steps.get(event.step) : undefined;
  if (!step || !("epoch" in event)) return [];
  const attempt: LeaseKey = { runId, stepId: event.step, attempt: event.attempt, epoch: event.epoch };
  switch (event.kind) {
    case "attempt.offered": {
      const { environment, policyVersion } = event;
      const { version, pipeline } = facts;
      const { reads, writes } = step;
      const placed = { pipeline: pipeline.name, version, environment, policyVersion, reads, writes };
      return one({ kind: "attempt.placed", attempt, ...placed });
    }
    case "attempt.started":
      return one({ kind: "attempt.taken", attempt, agent: event.agent });
    case "attempt.finished":
    case "attempt.fenced": {
      const { agent, outcome } = event;
      const { status, receipt } = outcome;
      const counted = event.kind === "attempt.finished";
      const has = receipt !== undefined;
      return after(receipt, one({ kind: "attempt.ended", attempt, agent, status, counted, receipt: has }));
    }
    case "attempt.lost": {
      const { agent, reason, outcome } = event;
      const has = outcome?.receipt !== undefined;
      return after(outcome?.receipt, one({ kind: "attempt.lost", attempt, agent, reason, receipt: has }));
    }
    case "attempt.resolved": {
      const { agent, decision, by, reason } = event;
      return one({ kind: "attempt.resolved", attempt, agent, decision, by, reason });
    }
    default:
      return [];
  }
}

function after(receipt: SignedReceipt | undefined, said: Said[]): Said[] {
  return receipt ? [{ receipt }, ...said] : said;
}

/** In one leaf: it has at most 65,535 bytes. */
const CHANGES_MAX = 200;

/** Of one message of the stream `RESOURCES`. */
export function entriesOfApply({ seq, atMs, by, changes }: Apply & { seq: number }): LedgerEntry[] {
  const said: Said[] = [];
  for (let at = 0; at < changes.length; at += CHANGES_MAX) {
    const some = changes.slice(at, at + CHANGES_MAX);
    const told = some.map((change) => ({
      kind: change.kind,
      name: change.name,
      digest: digestAfter(change),
    }));
    said.push({ atMs, decision: { kind: "resources.applied", by, changes: told } });
  }
  return numbered("RESOURCES", seq, said);
}

function digestAfter(change: ResourceChange): string | null {
  if (change.action === "deleted") return null;
  return change.kind === "pipeline" ? change.version : digestOf(change.spec);
}
