/** The plots of the report, as SVG. */
import type { Verdict } from "./chaos.ts";
import { type DoneFault, type Recovery, throughput } from "./recovery.ts";

const WIDTH = 1_000;
const PLOT_HEIGHT = 160;
const ROW_HEIGHT = 16;
const LEFT = 120;
const TICKS_MAX = 10;

/** Bars of runs that ended; below them a row per kind of fault. */
export function throughputPlot({
  seen,
  faults,
  settledMs,
}: Pick<Verdict, "seen" | "faults" | "settledMs">): string {
  const bucketMs = Math.max(1_000, Math.ceil(settledMs / 150 / 1_000) * 1_000);
  const bars = throughput(seen, bucketMs, settledMs);
  const most = Math.max(1, ...bars);
  const kinds = [...new Set(faults.map(({ kind }) => kind))];
  const height = PLOT_HEIGHT + 30 + kinds.length * ROW_HEIGHT;
  const x = (ms: number): number => LEFT + (ms / settledMs) * (WIDTH - LEFT);
  const rect = (fromMs: number, toMs: number, y: number, high: number, fill: string, title: string): string =>
    `<rect x="${x(fromMs).toFixed(1)}" y="${y.toFixed(1)}" width="${Math.max(1, x(toMs) - x(fromMs) - 0.5).toFixed(1)}" height="${high.toFixed(1)}" fill="${fill}"><title>${escaped(title)}</title></rect>`;
  const ended = bars.map((count, i) => {
    const high = (count / most) * (PLOT_HEIGHT - 20);
    const title = `${count} runs from ${seconds(i * bucketMs)} s on`;
    return rect(
      i * bucketMs,
      Math.min((i + 1) * bucketMs, settledMs),
      PLOT_HEIGHT - high,
      high,
      "var(--bar)",
      title,
    );
  });
  const rowOf = (fault: DoneFault): string => {
    const y = PLOT_HEIGHT + 26 + kinds.indexOf(fault.kind) * ROW_HEIGHT;
    const title = `${fault.kind} ${fault.target}`;
    return rect(fault.beganMs, fault.healedMs, y, ROW_HEIGHT - 4, "var(--bad)", title);
  };
  const ticks = Array.from({ length: TICKS_MAX }, (_, i) => (settledMs * i) / TICKS_MAX).map((ms) =>
    label(x(ms), PLOT_HEIGHT + 14, `${Math.round(ms / 1_000)} s`),
  );
  const names = kinds.map((kind, i) => label(0, PLOT_HEIGHT + 36 + i * ROW_HEIGHT, kind));
  return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="Throughput and faults over time">
<line x1="${LEFT}" x2="${WIDTH}" y1="${PLOT_HEIGHT}" y2="${PLOT_HEIGHT}" stroke="var(--line)"/>
${label(0, 12, `${most} runs in ${bucketMs / 1_000} s`)}${ended.join("")}${ticks.join("")}${names.join("")}${faults.map(rowOf).join("")}
</svg>`;
}

/** A dot for each fault, a row for each kind, a bar at the median. */
export function recoveryPlot(recoveries: readonly Recovery[]): string {
  const most = Math.max(1_000, ...recoveries.flatMap(({ timesMs }) => timesMs));
  const x = (ms: number): string => (LEFT + 10 + (ms / most) * (WIDTH - LEFT - 30)).toFixed(1);
  const rows = recoveries.map(({ kind, timesMs, medianMs }, i) => {
    const y = 14 + i * ROW_HEIGHT;
    const dots = timesMs.map(
      (ms) => `<circle cx="${x(ms)}" cy="${y - 4}" r="3" fill="var(--bar)" opacity="0.5"/>`,
    );
    const bar =
      medianMs === null
        ? ""
        : `<rect x="${x(medianMs)}" y="${y - 11}" width="2" height="14" fill="var(--bad)"><title>median of ${escaped(kind)}: ${seconds(medianMs)} s</title></rect>`;
    return `${label(0, y, kind)}${dots.join("")}${bar}`;
  });
  const below = 14 + recoveries.length * ROW_HEIGHT;
  const ticks = Array.from({ length: TICKS_MAX }, (_, i) => (most * i) / TICKS_MAX).map((ms) =>
    label(Number(x(ms)), below, `${seconds(ms)} s`),
  );
  return `<svg viewBox="0 0 ${WIDTH} ${below + 6}" role="img" aria-label="Recovery times by kind of fault">
${rows.join("\n")}${ticks.join("")}
</svg>`;
}

function label(at: number, y: number, text: string): string {
  return `<text x="${at.toFixed(1)}" y="${y}">${escaped(text)}</text>`;
}

export function seconds(ms: number): string {
  return (ms / 1_000).toFixed(1);
}

export function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
}
