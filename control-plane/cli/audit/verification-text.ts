/** What the verification of a bundle found, for people and for programs. */
import type { Finding, Level } from "../../evidence/bundle/findings.ts";
import type { VerifiedBundle } from "../../evidence/bundle/verify-bundle.ts";
import { oneLine, pad, plural } from "../text.ts";

/** Of each level. All of them are in the JSON. */
const SHOWN_MAX = 50;

export function verificationData(found: VerifiedBundle) {
  const { header, ledger, leaves, findings } = found;
  return {
    verified: isVerified(found),
    dataset: header?.dataset ?? null,
    fromMs: header?.fromMs ?? null,
    toMs: header?.toMs ?? null,
    ledger,
    leaves,
    attempts: found.attempts.length,
    counts: findings.counts,
    checks: findings.table,
    findings: findings.kept,
  };
}

/** `strict`: nothing may be open either. */
export function isVerified({ findings }: VerifiedBundle, strict = false): boolean {
  return findings.counts.failed === 0 && (!strict || findings.counts.open === 0);
}

export function verificationLines(found: VerifiedBundle): string[] {
  const { header, ledger, leaves, findings } = found;
  const { failed, open, unchecked } = findings.counts;
  const hidden = leaves.before + leaves.among + leaves.after;
  const width = Math.max(...findings.table.map(({ check }) => check.length));
  return [
    `Dataset ${oneLine(header?.dataset ?? "?")}, ledger ${oneLine(ledger?.origin ?? "?")} of ${ledger?.size ?? "?"} leaves.`,
    `${plural(leaves.shown, "leaf", "leaves")} shown, ${hidden} left out; ${plural(found.attempts.length, "attempt")} of steps that read or write data.`,
    "",
    "Checked",
    ...findings.table.map(({ check, what, passed, failed: wrong }) => {
      const mark = wrong > 0 ? "FAILED" : passed > 0 ? "ok" : "-";
      return `  ${pad(mark, 6)}  ${pad(check, width)}  ${String(passed + wrong).padStart(7)}  ${what}`;
    }),
    ...section("Failed", "failed", findings.kept, failed),
    ...section("Open: a person has to look at these", "open", findings.kept, open),
    ...section("Could not be checked", "unchecked", findings.kept, unchecked),
    "",
    failed === 0
      ? `Verified: no failure; ${open} open, ${unchecked} not checked.`
      : `NOT verified: ${plural(failed, "failure")}. Keep the bundle: it is evidence.`,
  ];
}

function section(title: string, level: Level, findings: readonly Finding[], count: number): string[] {
  const shown = findings.filter((finding) => finding.level === level).slice(0, SHOWN_MAX);
  if (shown.length === 0) return [];
  const more = count > shown.length ? [`  and ${count - shown.length} more (-o json shows them)`] : [];
  const lines = shown.map(({ check, where, detail }) => `  ${check}  ${oneLine(where)}: ${oneLine(detail)}`);
  return ["", title, ...lines, ...more];
}
