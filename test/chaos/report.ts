/** The report that people read: one file of HTML with its plot in it, and nothing from elsewhere. */
import type { Verdict } from "./chaos.ts";
import { counts } from "./history.ts";
import { pressureLine } from "./pressure.ts";
import { escaped, recoveryPlot, seconds, throughputPlot } from "./report-plots.ts";

const SHOWN_MAX = 200;

const STYLE = `
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #667; --line: #ccd; --bar: #2b6cb0; --bad: #b3261e; --ok: #1a7f37; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9aa; --line: #444c56; --bar: #6cb6ff; --bad: #ff8a80; --ok: #57c46b; --paper: #15181c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1060px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right } .bad { color: var(--bad) } .ok { color: var(--ok) } .dim { color: var(--dim) } svg { width: 100%; height: auto; } text { fill: var(--dim); font: 11px system-ui, sans-serif; }
`;

export function reportOf(verdict: Verdict, summary: string): string {
  const { violations, faults, skipped, ends, recoveries, history } = verdict;
  const replay = `npm run chaos -- --seed ${verdict.seed} --minutes ${verdict.durationMs / 60_000} --network ${verdict.network}`;
  const result =
    violations.length === 0
      ? '<p class="ok">Nothing acknowledged was lost, nothing was committed twice, every run ended.</p>'
      : `<p class="bad">${violations.length} violations.</p>${table(
          ["what", "run", "how"],
          violations.slice(0, SHOWN_MAX).map(({ kind, runId, message }) => [kind, runId, message]),
        )}`;
  const endings = new Map<string, number>();
  for (const run of history.runs) {
    const status = endOf(run.finals) ?? "not ended";
    endings.set(status, (endings.get(status) ?? 0) + 1);
  }
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escaped(summary)}</title>
<style>${STYLE}</style>
<h1>${escaped(summary)}</h1>
${result}
<p>Network: ${verdict.network}. Replay: <code>${escaped(replay)}</code>. All faults were healed after ${seconds(verdict.durationMs)} s; every run had ended
${seconds(verdict.settledMs - verdict.durationMs)} s later. ${pressureLine(verdict.pressure)} ${history.witness.length} lines in the sites' journals of side effects.
Runs: ${[...endings].map(([status, count]) => `${count} ${escaped(status)}`).join(", ")}.</p>
${skipped.map(({ kind, reason }) => `<p class="dim">Not done here: ${escaped(kind)}: ${escaped(reason)}.</p>`).join("")}
<h2>What was looked for</h2>
${table(
  ["what", "#found"],
  counts(violations).map(([kind, count]) => [kind, String(count)]),
)}
<h2>Runs that ended, and what was broken meanwhile</h2>
${throughputPlot(verdict)}
<h2>Recovery</h2>
<p class="dim">From the heal of a fault to the next run that ended, under whatever other faults there were. For killed replicas
also: from the kill to the next decision for a run of its shards.</p>
${recoveryPlot(recoveries)}
${table(
  ["fault", "#times", "#median, s", "#worst, s", "#decision, median, s", "#decision, worst, s"],
  recoveries.map((one) => [
    one.kind,
    String(one.faults),
    ...[one.medianMs, one.worstMs, one.decisionMedianMs, one.decisionWorstMs].map((ms) =>
      ms === null ? "" : seconds(ms),
    ),
  ]),
)}
<h2>Processes that ended by themselves, and were started again</h2>
${
  ends.length === 0
    ? "<p>None.</p>"
    : table(
        ["who", "how"],
        ends.map(({ name, how }) => [name, how]),
      )
}
<h2>Faults</h2>
${table(
  ["#at, s", "what", "whom", "#for, s", "#by, ms", "#of, %"],
  faults.map(({ beganMs, healedMs, kind, target, amountMs, lossPercent }) => [
    seconds(beganMs),
    kind,
    target,
    seconds(healedMs - beganMs),
    amountMs === 0 ? "" : String(amountMs),
    lossPercent === 0 ? "" : String(lossPercent),
  ]),
)}
</html>
`;
}

/** A head that begins with # is of numbers. */
function table(heads: readonly string[], rows: readonly (readonly string[])[]): string {
  const side = heads.map((head) => (head.startsWith("#") ? ' class="n"' : ""));
  const cells = (tag: string, texts: readonly string[]): string =>
    texts.map((text, i) => `<${tag}${side[i]}>${escaped(text.replace(/^#/, ""))}</${tag}>`).join("");
  return `<table><tr>${cells("th", heads)}</tr>${rows.map((row) => `<tr>${cells("td", row)}</tr>`).join("\n")}</table>`;
}

function endOf(finals: Verdict["history"]["runs"][number]["finals"]): string | undefined {
  const events = Object.values(finals)
    .find((batches) => batches !== null)
    ?.flatMap((batch) => batch.events);
  const end = events?.find((event) => event.kind === "run.finished");
  return end?.kind === "run.finished" ? end.status : undefined;
}
