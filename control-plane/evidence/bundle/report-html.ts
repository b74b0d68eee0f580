/** The report on a dataset as one HTML page that prints well: no script, no picture, nothing from elsewhere. */
import type { DatasetReport, ReportedAttempt } from "./dataset-report.ts";

const STYLE = `
body { font: 10.5pt/1.45 system-ui, sans-serif; color: #111; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 1.8rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; } thead { display: table-header-group; }
th, td { border: 1px solid #bbb; padding: .25rem .4rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
tr { break-inside: avoid; } .statement { border: 2px solid #111; padding: .6rem 1rem; break-inside: avoid; }
.bad { color: #a00000; font-weight: 600; } .dim { color: #555; } code { font-size: .85em; overflow-wrap: anywhere; }
@page { size: A4; margin: 16mm; } @media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } }
`;

export function reportHtml(report: DatasetReport): string {
  const { dataset, statement, coverage, ledger, leftBytes } = report;
  const percent = coverage.percent === null ? "no attempt has ended" : `${coverage.percent} %`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Evidence: ${escaped(dataset)}</title><style>${STYLE}</style></head><body>
<h1>Dataset ${escaped(dataset)}</h1>
<p class="dim">${escaped(periodOf(report))} Bundle made ${at(report.madeAtMs)}.</p>
<p>${report.verified ? "The bundle verifies." : '<span class="bad">The bundle does NOT verify: see the findings.</span>'}
Ledger <code>${escaped(ledger?.origin ?? "unknown")}</code>, ${ledger?.size ?? 0} leaves, root <code>${escaped(ledger?.root ?? "")}</code>.</p>
<div class="statement"><p><strong>${escaped(statement.text)}</strong></p>
<p>This rests on:</p><ul>${statement.restsOn.map((one) => `<li>${escaped(one)}</li>`).join("")}</ul></div>
<h2>Where</h2>
${table(
  ["Environment", "Attempts", "With receipt"],
  statement.environments.map(({ name, attempts, receipts }) => [name, String(attempts), String(receipts)]),
)}
<p>Attempts that have ended: ${coverage.ended}; with a receipt that verifies: ${coverage.withReceipt} (${percent}).
Bytes that left: ${leftBytes.sent}; kept by the sites: ${leftBytes.kept}.</p>
<h2>Attempts</h2>
${table(["Placed", "Step", "Pipeline", "Access", "Environment, agent", "Started by", "Result", "Receipt", "What left"], report.attempts.map(rowOf))}
<h2>Exceptions</h2>
${table(
  ["Attempt", "What"],
  report.exceptions.map(({ where, what }) => [where, what]),
)}
<h2>Changes of the dataset and its environments</h2>
${table(
  ["When", "What", "By", "Digest", "Leaf"],
  report.changes.map((one) => [at(one.atMs), one.what, one.by, one.digest ?? "deleted", String(one.leaf)]),
)}
<h2>Policies under which steps were placed</h2>
${table(
  ["Policy", "Attempts", "Rules in the bundle"],
  report.policies.map((one) => [one.version, String(one.attempts), one.inBundle ? "yes" : "no"]),
)}
<h2>Findings of the verification</h2>
${table(
  ["", "Check", "Where", "What"],
  report.findings.map(({ level, check, where, detail }) => [level, check, where, detail]),
)}
</body></html>
`;
}

function rowOf(one: ReportedAttempt): string[] {
  const { runId, stepId, attempt, epoch } = one.attempt;
  const { receipt } = one;
  const left = receipt?.left.map(
    ({ kind, name, verdict, sentBytes }) => `${kind} ${name}: ${verdict}, ${sentBytes} bytes`,
  );
  return [
    one.placedAtMs === null ? "not shown" : at(one.placedAtMs),
    `${runId}/${stepId}, attempt ${attempt}, epoch ${epoch}`,
    `${one.pipeline} ${one.version.slice(0, 19)}`,
    one.access.join(", "),
    `${one.environment}, ${one.agent ?? "nobody"}`,
    one.startedBy ?? "not shown",
    one.result ?? "has not ended",
    receipt ? `leaf ${receipt.leaf}${receipt.boxed ? ", in a box" : ""}` : "none",
    left === undefined ? "not known" : left.join("; ") || "nothing",
  ];
}

function table(heads: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return `<p class="dim">None.</p>`;
  const cells = (tag: string, row: readonly string[]): string =>
    `<tr>${row.map((cell) => `<${tag}>${escaped(cell)}</${tag}>`).join("")}</tr>`;
  return `<table><thead>${cells("th", heads)}</thead><tbody>${rows.map((row) => cells("td", row)).join("\n")}</tbody></table>`;
}

function periodOf({ fromMs, toMs }: DatasetReport): string {
  if (fromMs === null && toMs === null) return "From the beginning of the ledger to its checkpoint.";
  return `From ${fromMs === null ? "the beginning" : at(fromMs)} to ${toMs === null ? "the checkpoint" : at(toMs)}.`;
}

function at(ms: number): string {
  return new Date(ms)
    .toISOString()
    .replace("T", " ")
    .replace(/\.\d+Z$/, " UTC");
}

/** Names and reasons are other people's words. */
function escaped(text: string): string {
  return text.replaceAll(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}
