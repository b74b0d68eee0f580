/**
 * Decides what of an attempt may leave the site, and counts it. No I/O.
 *
 * The default rule: a step that reads data classed above `internal` keeps its logs and error text at the site,
 * and its outputs leave as digests.
 */
import { CLASSIFICATIONS, type Classification } from "../../shared/model/spec.ts";
import type { EgressRecord, Offer, OutputValue, Verdict } from "../../shared/wire/attempt.ts";

export interface EgressVerdicts {
  outputs: Verdict;
  logs: Verdict;
  errors: Verdict;
}

/** The highest classification among what the step reads; null when it reads nothing. */
export function highestClassification(offer: Pick<Offer, "datasets" | "step">): Classification | null {
  const reads = new Set(offer.step.reads);
  let highest = -1;
  for (const dataset of offer.datasets) {
    if (reads.has(dataset.name)) highest = Math.max(highest, CLASSIFICATIONS.indexOf(dataset.classification));
  }
  // A dataset that the offer says nothing about is treated as the most secret one.
  if (offer.step.reads.some((name) => !offer.datasets.some((dataset) => dataset.name === name)))
    return "secret";
  return highest < 0 ? null : CLASSIFICATIONS[highest]!;
}

export function verdictsFor(classification: Classification | null): EgressVerdicts {
  const open = classification === null || classification === "public" || classification === "internal";
  return open
    ? { outputs: "allow", logs: "allow", errors: "allow" }
    : { outputs: "digest", logs: "withhold", errors: "withhold" };
}

export interface RawOutput {
  type: "json" | "text";
  digest: string;
  text: string;
}

/** What a step had to do with one target. `null`: with what is not on its list. */
export interface NetworkUse {
  target: string | null;
  connections: number;
  failures: number;
  sentBytes: number;
  receivedBytes: number;
}

export interface Released {
  outputs: Record<string, OutputValue>;
  error: { code: string; message: string } | null;
  egress: EgressRecord[];
}

/** Applies the verdicts to what an attempt produced. */
export function release(
  verdicts: EgressVerdicts,
  produced: {
    outputs: Record<string, RawOutput>;
    error: { code: string; message: string } | null;
    artifacts: { name: string; bytes: number }[];
    logBytes: number;
    /** Where secrets were masked before. */
    masked?: { log: boolean; outputs: readonly string[] } | undefined;
    network?: readonly NetworkUse[] | undefined;
  },
): Released {
  const egress: EgressRecord[] = [];
  const outputs: Record<string, OutputValue> = {};
  const { masked = { log: false, outputs: [] } } = produced;
  for (const [name, { type, digest, text }] of Object.entries(produced.outputs)) {
    const bytes = Buffer.byteLength(text);
    const allowed = verdicts.outputs === "allow";
    outputs[name] = { type, digest, bytes, ...(allowed ? { text } : {}) };
    egress.push(count("output", name, shown(verdicts.outputs, masked.outputs.includes(name)), bytes));
  }
  if (produced.logBytes > 0)
    egress.push(count("log", "log", shown(verdicts.logs, masked.log), produced.logBytes));
  for (const { name, bytes } of produced.artifacts) egress.push(count("artifact", name, "digest", bytes));
  for (const use of produced.network ?? []) egress.push(networkRecord(use));
  const error = produced.error === null ? null : releaseError(verdicts, produced.error, egress);
  return { outputs, error, egress };
}

/** The targets of the list are the pipeline's words. Others are the step's own, and could tell what it has read. */
function networkRecord({ target, ...figures }: NetworkUse): EgressRecord {
  const verdict = target === null ? "withhold" : "allow";
  return { kind: "network", name: target ?? "others", verdict, keptBytes: 0, ...figures };
}

function releaseError(
  verdicts: EgressVerdicts,
  error: { code: string; message: string },
  egress: EgressRecord[],
): { code: string; message: string } {
  egress.push(count("error", error.code, verdicts.errors, Buffer.byteLength(error.message)));
  if (verdicts.errors === "allow") return error;
  return {
    code: error.code,
    message: "the text stays at the site: the step reads data classed above internal",
  };
}

/** What leaves with masks in it is told apart from what leaves as it was. */
function shown(verdict: Verdict, masked: boolean): Verdict {
  return verdict === "allow" && masked ? "redact" : verdict;
}

function count(kind: EgressRecord["kind"], name: string, verdict: Verdict, bytes: number): EgressRecord {
  const sent = verdict === "allow" || verdict === "redact";
  return { kind, name, verdict, sentBytes: sent ? bytes : 0, keptBytes: sent ? 0 : bytes };
}
