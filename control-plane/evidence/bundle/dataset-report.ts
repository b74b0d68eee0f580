/** What a verified bundle says about its dataset: the answer to "did anything that read it run elsewhere?". Decides; no I/O. */
import type { LeaseKey } from "../../../shared/wire/attempt.ts";
import { agentOf, type KnownAttempt, nameOf } from "./attempt-book.ts";
import type { Finding } from "./findings.ts";
import type { VerifiedBundle } from "./verify-bundle.ts";

export interface ReportedAttempt {
  attempt: LeaseKey;
  pipeline: string;
  version: string;
  environment: string;
  policyVersion: string;
  /** Who started the run; null: that leaf was not shown. */
  startedBy: string | null;
  /** Null: that leaf was not shown. */
  placedAtMs: number | null;
  access: ("reads" | "writes")[];
  agent: string | null;
  /** As its end says; null: it has not ended. */
  result: string | null;
  endedAtMs: number | null;
  /** Of the receipt; null: there is none that verifies. */
  receipt: {
    leaf: number;
    boxed: boolean;
    connected: boolean;
    sitePolicy: string | null;
    left: { kind: string; name: string; verdict: string; sentBytes: number; keptBytes: number }[];
  } | null;
}

export interface DatasetReport {
  dataset: string;
  fromMs: number | null;
  toMs: number | null;
  madeAtMs: number;
  verified: boolean;
  ledger: VerifiedBundle["ledger"];
  leaves: VerifiedBundle["leaves"];
  statement: {
    /** Where attempts that touch the dataset were placed, with how many of each have a receipt from there. */
    environments: { name: string; attempts: number; receipts: number }[];
    text: string;
    restsOn: string[];
  };
  coverage: { ended: number; withReceipt: number; percent: number | null };
  attempts: ReportedAttempt[];
  leftBytes: { sent: number; kept: number };
  /** Vetoes, resolved by hand, cut off, fenced. */
  exceptions: { where: string; what: string }[];
  changes: { atMs: number; leaf: number; by: string; what: string; digest: string | null }[];
  policies: { version: string; attempts: number; inBundle: boolean }[];
  findings: readonly Finding[];
}

export function datasetReport(found: VerifiedBundle): DatasetReport {
  const { header, ledger, leaves, findings, runs, changes } = found;
  const dataset = header?.dataset ?? "";
  const touching = found.attempts.filter((known) => accessOf(known, dataset).length > 0);
  const attempts = touching.map((known) => reported(known, dataset, runs.get(known.key.runId)?.by ?? null));
  // An offer that nobody took has nothing to give a receipt for.
  const ended = touching.filter(({ ends }) => ends.some(({ agent }) => agent !== null));
  const withReceipt = ended.filter(({ receipts }) => receipts.length > 0).length;
  const left = attempts.flatMap(({ receipt }) => receipt?.left ?? []);
  const environments = new Set(attempts.map(({ environment }) => environment));
  const about = new Set([`dataset/${dataset}`, ...[...environments].map((name) => `environment/${name}`)]);
  const versions = new Map<string, number>();
  for (const { policyVersion } of attempts)
    versions.set(policyVersion, (versions.get(policyVersion) ?? 0) + 1);
  return {
    dataset,
    fromMs: header?.fromMs ?? null,
    toMs: header?.toMs ?? null,
    madeAtMs: header?.madeAtMs ?? 0,
    verified: findings.counts.failed === 0,
    ledger,
    leaves,
    statement: statementOf(found, dataset, attempts),
    coverage: {
      ended: ended.length,
      withReceipt,
      percent: ended.length === 0 ? null : Math.floor((1_000 * withReceipt) / ended.length) / 10,
    },
    attempts,
    leftBytes: {
      sent: left.reduce((sum, { sentBytes }) => sum + sentBytes, 0),
      kept: left.reduce((sum, { keptBytes }) => sum + keptBytes, 0),
    },
    exceptions: touching.flatMap(exceptionsOf),
    changes: [...changes]
      .filter(([what]) => about.has(what))
      .flatMap(([what, list]) => list.map((change) => ({ ...change, what })))
      .sort((a, b) => a.leaf - b.leaf),
    policies: [...versions].map(([version, count]) => ({
      version,
      attempts: count,
      inBundle: found.policies.has(version),
    })),
    findings: findings.kept,
  };
}

/** By its placement, and by its receipts: neither can hide what the other says. */
function accessOf({ placed, receipts }: KnownAttempt, dataset: string): ("reads" | "writes")[] {
  return (["reads", "writes"] as const).filter(
    (side) =>
      placed?.[side].includes(dataset) ||
      receipts.some(({ receipt }) => receipt[side].some((one) => one.dataset === dataset)),
  );
}

function reported(known: KnownAttempt, dataset: string, startedBy: string | null): ReportedAttempt {
  const { key, placed, ends, receipts, takenBy } = known;
  const end = ends.find(({ counted }) => counted) ?? ends.at(-1);
  const receipt = receipts[0];
  // Without its placement, it is here for its receipt.
  const said = receipt?.receipt;
  const pipeline = placed?.pipeline ?? said?.pipeline.name ?? "";
  const version = placed?.version ?? said?.pipeline.version ?? "";
  const environment = placed?.environment ?? said?.agent.environment ?? "";
  const policyVersion = placed?.policyVersion ?? said?.policy.centre.version ?? "";
  return {
    attempt: key,
    pipeline,
    version,
    environment,
    policyVersion,
    startedBy,
    placedAtMs: placed?.atMs ?? null,
    access: accessOf(known, dataset),
    agent: receipt ? agentOf(receipt.receipt) : (end?.agent ?? takenBy[0] ?? null),
    result: end?.how ?? null,
    endedAtMs: end?.atMs ?? null,
    receipt: receipt
      ? {
          leaf: receipt.leaf,
          boxed: receipt.receipt.sandbox?.kind === "bubblewrap",
          connected: receipt.receipt.time.connected,
          sitePolicy: receipt.receipt.policy.site?.version ?? null,
          left: receipts.flatMap((one) =>
            one.receipt.egress.map(({ kind, name, verdict, sentBytes, keptBytes }) => ({
              kind,
              name,
              verdict,
              sentBytes,
              keptBytes,
            })),
          ),
        }
      : null,
  };
}

function exceptionsOf({ key, ends, receipts, resolved }: KnownAttempt): DatasetReport["exceptions"] {
  const where = nameOf(key);
  const said: string[] = [];
  if (resolved) said.push(`resolved by ${resolved.by} as ${resolved.decision}: ${resolved.reason}`);
  for (const { how, counted, agent } of ends)
    if (!counted && agent !== null) said.push(`${how} at ${agent}, and does not count`);
  for (const { receipt, validThen } of receipts) {
    if (receipt.policy.site?.decision === "veto")
      said.push(`refused by the policy of the site of ${agentOf(receipt)}`);
    if (!receipt.time.connected) said.push(`ended while ${agentOf(receipt)} was cut off`);
    if (!validThen) said.push("signed after the certificate had expired");
  }
  return said.map((what) => ({ where, what }));
}

function statementOf(
  found: VerifiedBundle,
  dataset: string,
  attempts: readonly ReportedAttempt[],
): DatasetReport["statement"] {
  const names = [...new Set(attempts.map(({ environment }) => environment))].sort();
  const environments = names.map((name) => {
    const there = attempts.filter(({ environment }) => environment === name);
    return { name, attempts: there.length, receipts: there.filter(({ receipt }) => receipt).length };
  });
  const { before, among, after } = found.leaves;
  const { failed } = found.findings.counts;
  const isTrusted = !found.findings.kept.some(
    ({ where }) => where === "key of the ledger" || where === "roots",
  );
  const where = names.length === 0 ? "at all" : `outside ${names.join(", ")}`;
  const unknown = found.attempts.filter(({ placed, receipts }) => !placed && receipts.length === 0).length;
  const opaque = found.findings.kept.filter(({ check, level }) => check === "order" && level !== "failed");
  const unread = opaque.filter(({ where: leaf }) => leaf.startsWith("leaf ")).length;
  const without = attempts.filter(({ receipt, result }) => !receipt && result !== null).length;
  return {
    environments,
    text:
      failed > 0
        ? `The bundle does not verify: nothing can be said about where steps that read or write ${dataset} ran.`
        : `In the leaves shown, no step that reads or writes ${dataset} ran ${where}.`,
    restsOn: [
      "the control plane placing every step through the ledger: a step that names no dataset, or a program started at a site by hand, is not in it",
      "agents telling the truth about their own steps: a receipt is the word of the agent that signed it",
      "sites giving a dataset to agents of their environment alone: what a mounted directory holds is not seen from here",
      isTrusted
        ? "the root and the key of the ledger that were given to the verification"
        : "the bundle's own root or key: give --root and --log-key to verify it",
      before + among + after > 0
        ? `the word of whoever made the bundle, that ${before + among + after} leaves that were left out do not matter`
        : "every leaf of the ledger up to its checkpoint, none left out",
      ...(unknown > 0
        ? [
            `nothing for ${unknown} attempts of which neither placement nor receipt is shown: they may have read it`,
          ]
        : []),
      ...(unread > 0
        ? [`nothing for ${unread} leaves that say no more than a digest, or that are not understood`]
        : []),
      ...(without > 0 ? [`the control plane's word alone for ${without} attempts without a receipt`] : []),
    ],
  };
}
