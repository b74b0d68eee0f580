/**
 * What the leaves say of each attempt, held against each other: placed, taken, receipt, ended.
 *
 * Fed leaf by leaf in the order of the ledger. What a leaf before the first one shown could have said is not a failure
 * when it is missing: it could not be checked, and that is said.
 */
import type { LedgerDecision } from "../../../shared/provenance/ledger-entry.ts";
import type { Receipt } from "../../../shared/provenance/receipt.ts";
import type { CertificateFacts, VerifiedReceipt } from "../../../shared/provenance/verify-receipt.ts";
import type { LeaseKey } from "../../../shared/wire/attempt.ts";
import type { Findings } from "./findings.ts";
import type { Source } from "./leaf-facts.ts";

type DecisionOf<K extends LedgerDecision["kind"]> = Extract<LedgerDecision, { kind: K }>;

/** Of a hundred thousand of them, only what is asked later stays in memory. */
type KeptReceipt = Pick<
  Receipt,
  "agent" | "step" | "pipeline" | "reads" | "writes" | "egress" | "policy" | "time" | "sandbox"
>;

export interface KnownReceipt {
  leaf: number;
  receipt: KeptReceipt;
  keyId: string;
  certificate: CertificateFacts;
  validThen: boolean;
}

export interface AttemptEnd {
  leaf: number;
  atMs: number;
  agent: string | null;
  /** Of an outcome, or why it was lost. */
  how: string;
  counted: boolean;
  hasReceipt: boolean;
}

/** One grant of one attempt. */
export interface KnownAttempt {
  key: LeaseKey;
  placed: (Omit<DecisionOf<"attempt.placed">, "kind" | "attempt"> & { leaf: number; atMs: number }) | null;
  takenBy: string[];
  receipts: KnownReceipt[];
  /** Leaves with a receipt that does not verify. */
  refused: number[];
  ends: AttemptEnd[];
  resolved: { by: string; reason: string; decision: string; atMs: number } | null;
}

export interface KnownRun {
  pipeline: string;
  version: string;
  by: string;
  atMs: number;
  cancelled: boolean;
}

/** How far clocks may be apart that were compared within a heartbeat. */
const CLOCK_MARGIN_MS = 60_000;

type Pending = { leaf: number; source: Source; verified: VerifiedReceipt };

export class AttemptBook {
  readonly attempts = new Map<string, KnownAttempt>();
  readonly runs = new Map<string, KnownRun>();
  readonly #findings: Findings;
  readonly #isWhole: () => boolean;
  /** A receipt whose end is the next leaf of its message. */
  #pending: Pending | undefined;
  readonly #epochs = new Map<string, number>();
  readonly #counted = new Set<string>();

  /** `isWhole`: whether every leaf from the first of the ledger on was shown so far. */
  constructor(findings: Findings, isWhole: () => boolean) {
    this.#findings = findings;
    this.#isWhole = isWhole;
  }

  receipt(leaf: number, source: Source, verified: VerifiedReceipt): void {
    this.settle();
    this.#findings.look(
      "signature",
      `leaf ${leaf}`,
      verified.kind === "refused" ? verified.reason : undefined,
    );
    this.#pending = { leaf, source, verified };
  }

  decision(leaf: number, about: { source: Source; atMs: number; decision: LedgerDecision }): void {
    const { atMs, decision } = about;
    if (decision.kind === "attempt.ended" || decision.kind === "attempt.lost") {
      this.#ended(leaf, about.source, atMs, decision);
      return;
    }
    this.settle();
    switch (decision.kind) {
      case "run.started": {
        const { pipeline, version, by } = decision;
        this.runs.set(decision.runId, { pipeline, version, by, atMs, cancelled: false });
        return;
      }
      case "run.cancelled": {
        const run = this.runs.get(decision.runId);
        if (run) run.cancelled = true;
        return;
      }
      case "attempt.placed":
        this.#placed(leaf, atMs, decision);
        return;
      case "attempt.taken": {
        const known = this.#of(decision.attempt);
        known.takenBy.push(decision.agent);
        this.#findings.look("attempt", nameOf(known.key), this.#wrongAgent(known, decision.agent));
        return;
      }
      case "attempt.resolved": {
        const { by, reason, decision: said } = decision;
        this.#of(decision.attempt).resolved = { by, reason, decision: said, atMs };
        return;
      }
      default:
    }
  }

  /** Nothing more follows directly: a receipt that waits for its end has none. */
  settle(shown = true): void {
    const pending = this.#pending;
    this.#pending = undefined;
    if (!pending) return;
    const level = shown ? "failed" : "unchecked";
    this.#findings.add(level, "receipt", `leaf ${pending.leaf}`, "no end of an attempt follows the receipt");
  }

  /** Attempts of which something is missing that only time, or a person, can bring. */
  finish(): void {
    this.settle();
    for (const known of this.attempts.values()) {
      const { key, ends, receipts, resolved } = known;
      const where = nameOf(key);
      if (ends.length === 0) {
        const cancelled = this.runs.get(key.runId)?.cancelled === true && known.takenBy.length === 0;
        if (!cancelled)
          this.#findings.add(
            "open",
            "receipt",
            where,
            `it has not ended${resolved ? "; resolved by hand" : ""}`,
          );
        continue;
      }
      for (const end of ends)
        if (
          !end.hasReceipt &&
          end.agent !== null &&
          !receipts.some(({ receipt }) => agentOf(receipt) === end.agent)
        )
          this.#findings.add("open", "receipt", where, `no receipt from ${end.agent} (${end.how})`);
    }
  }

  #of(key: LeaseKey): KnownAttempt {
    const name = nameOf(key);
    let known = this.attempts.get(name);
    if (!known) {
      known = { key, placed: null, takenBy: [], receipts: [], refused: [], ends: [], resolved: null };
      this.attempts.set(name, known);
    }
    return known;
  }

  #placed(leaf: number, atMs: number, { kind: _, attempt, ...placed }: DecisionOf<"attempt.placed">): void {
    const known = this.#of(attempt);
    const step = `${attempt.runId}/${attempt.stepId}`;
    const before = this.#epochs.get(step) ?? 0;
    const where = nameOf(attempt);
    this.#findings.look(
      "epoch",
      where,
      attempt.epoch > before ? undefined : `it was placed after epoch ${before} of the step`,
    );
    this.#epochs.set(step, Math.max(before, attempt.epoch));
    known.placed ??= { ...placed, leaf, atMs };
    const run = this.runs.get(attempt.runId);
    if (!run) this.#absent("attempt", where, "the start of its run is not there");
    else if (run.pipeline !== placed.pipeline || run.version !== placed.version)
      this.#findings.add(
        "failed",
        "attempt",
        where,
        "it was placed under another version than its run was started with",
      );
  }

  #ended(
    leaf: number,
    source: Source,
    atMs: number,
    decision: DecisionOf<"attempt.ended"> | DecisionOf<"attempt.lost">,
  ): void {
    const known = this.#of(decision.attempt);
    const where = nameOf(known.key);
    const counted = decision.kind === "attempt.ended" && decision.counted;
    const how = decision.kind === "attempt.ended" ? decision.status : decision.reason;
    const end: AttemptEnd = { leaf, atMs, agent: decision.agent, how, counted, hasReceipt: decision.receipt };
    known.ends.push(end);
    this.#counts(known, counted);
    if (!known.placed) this.#absent("attempt", where, "it has ended, and its placement is not there");
    const pending = this.#pending;
    const isIts =
      pending?.source.stream === source.stream &&
      pending.source.seq === source.seq &&
      pending.source.part === source.part - 1;
    if (!decision.receipt || !isIts) this.settle();
    if (!decision.receipt) return;
    if (!isIts || !pending) {
      this.#absent("receipt", where, "the receipt that it should have is not there");
      return;
    }
    this.#pending = undefined;
    if (pending.verified.kind === "refused") known.refused.push(pending.leaf);
    else this.#belongs(known, end, { leaf: pending.leaf, ...pending.verified });
  }

  #counts(known: KnownAttempt, counted: boolean): void {
    if (!counted) return;
    const { runId, stepId, attempt } = known.key;
    const one = `${runId}/${stepId}/${attempt}`;
    const twice = this.#counted.has(one) ? "two outcomes of the attempt count" : undefined;
    this.#findings.look("epoch", nameOf(known.key), twice);
    this.#counted.add(one);
  }

  #belongs(
    known: KnownAttempt,
    end: AttemptEnd,
    { leaf, ...verified }: Omit<KnownReceipt, "receipt"> & { kind: string; receipt: Receipt },
  ): void {
    const { receipt, keyId, certificate, validThen } = verified;
    const where = `leaf ${leaf}, ${nameOf(known.key)}`;
    const twice = known.receipts.some((one) => agentOf(one.receipt) === agentOf(receipt));
    this.#findings.look(
      "receipt",
      where,
      twice ? "the agent's receipt of the attempt is there twice" : undefined,
    );
    this.#findings.look("attempt", where, mismatch(known, end, receipt));
    this.#findings.look("veto", where, ranInSpite(receipt));
    this.#times(known, end, receipt, where);
    if (validThen) this.#findings.passed("validity");
    else if (receipt.time.connected)
      this.#findings.add(
        "failed",
        "validity",
        where,
        "a certificate was not valid then, and the agent was connected",
      );
    else
      this.#findings.add(
        "open",
        "validity",
        where,
        "a certificate was not valid any more; the agent was cut off",
      );
    const { agent, step, pipeline, reads, writes, egress, policy, time, sandbox } = receipt;
    const kept = { agent, step, pipeline, reads, writes, egress, policy, time, sandbox };
    known.receipts.push({ leaf, receipt: kept, keyId, certificate, validThen });
  }

  #times({ placed }: KnownAttempt, end: AttemptEnd, { time }: Receipt, where: string): void {
    const { startedAtMs, finishedAtMs, aheadOfCentreMs } = time;
    if (aheadOfCentreMs === null) {
      this.#findings.add("unchecked", "time", where, "the agent had never heard the control plane's time");
      return;
    }
    const [started, finished] = [startedAtMs - aheadOfCentreMs, finishedAtMs - aheadOfCentreMs];
    let wrong: string | undefined;
    if (finished > end.atMs + CLOCK_MARGIN_MS) wrong = "it says that it ended after its end was recorded";
    if (placed && started < placed.atMs - CLOCK_MARGIN_MS)
      wrong = "it says that it began before it was placed";
    if (startedAtMs > finishedAtMs + CLOCK_MARGIN_MS) wrong = "it says that it ended before it began";
    this.#findings.look("time", where, wrong);
  }

  #wrongAgent({ placed }: KnownAttempt, agent: string): string | undefined {
    if (!placed || agent.startsWith(`${placed.environment}/`)) return undefined;
    return `${agent} took it, and it was placed in ${placed.environment}`;
  }

  /** Something that an earlier leaf should have said. */
  #absent(check: "attempt" | "receipt", where: string, detail: string): void {
    this.#findings.add(this.#isWhole() ? "failed" : "unchecked", check, where, detail);
  }
}

export function nameOf({ runId, stepId, attempt, epoch }: LeaseKey): string {
  return `${runId}/${stepId} attempt ${attempt} epoch ${epoch}`;
}

export function agentOf({ agent }: Pick<Receipt, "agent">): string {
  return `${agent.environment}/${agent.name}`;
}

/** The first thing that a receipt says otherwise than the placement and the end of its attempt. */
function mismatch({ key, placed }: KnownAttempt, end: AttemptEnd, receipt: Receipt): string | undefined {
  const { attempt } = receipt;
  if (nameOf(attempt) !== nameOf(key)) return `the receipt is of ${nameOf(attempt)}`;
  if (end.agent !== null && agentOf(receipt) !== end.agent)
    return `the receipt is of ${agentOf(receipt)}, and ${end.agent} ended it`;
  if (end.counted && receipt.result.status !== end.how)
    return `the receipt says ${receipt.result.status}, and the ledger ${end.how}`;
  if (!placed) return undefined;
  if (receipt.agent.environment !== placed.environment)
    return `it ran in ${receipt.agent.environment}, and was placed in ${placed.environment}`;
  if (receipt.pipeline.name !== placed.pipeline || receipt.pipeline.version !== placed.version)
    return "it is of another version of the pipeline than was placed";
  if (receipt.policy.centre.version !== placed.policyVersion)
    return "it names another policy than the one under which it was placed";
  for (const side of ["reads", "writes"] as const) {
    const isFolded = receipt.folded.some(({ list }) => list === side);
    const said = receipt[side].map(({ dataset }) => dataset);
    if (!isFolded && said.join() !== placed[side].join())
      return `it ${side} ${said.join(", ") || "nothing"}, and was placed as one that ${side} ${placed[side].join(", ") || "nothing"}`;
  }
  return undefined;
}

/** An attempt that its site's policy had refused, and that ran all the same. */
function ranInSpite({ policy, result }: Receipt): string | undefined {
  if (policy.site?.decision !== "veto" || result.status === "refused") return undefined;
  return `the site's policy refused it, and it ${result.status}`;
}
