/** A run as lines for a terminal of a given size. Pure: the same view and time give the same lines. */
import { isEnded, isStepEnded, type RunView, runMark, type StepRow, stepMark } from "./run-view.ts";
import { cut, duration, oneLine, pad, painter, plural, widthOf } from "./text.ts";

export interface Frame {
  width: number;
  height: number;
  nowMs: number;
  color: boolean;
  /** Environments with a connected agent; null while that is not known. */
  connected: ReadonlySet<string> | null;
  /** False while the server is away. */
  online: boolean;
}

const INDENT_MAX = 4;
const NAME_MAX = 40;
/** An agent with a free slot takes an offer well within this. */
const SLOW_OFFER_MS = 2_000;

export function renderTree(view: RunView, frame: Frame): string[] {
  const paint = painter(frame.color);
  const byId = new Map(view.steps.map((step) => [step.id, step]));
  const depths = depthsOf(view.steps);
  const ordered = [...view.steps].sort((a, b) => depths.get(a.id)! - depths.get(b.id)!);
  const foot = footLines(view, frame);
  const shown = fitting(ordered, Math.max(1, frame.height - 1 - foot.length));
  const indent = (step: StepRow): string => "  ".repeat(Math.min(depths.get(step.id)!, INDENT_MAX));
  const nameWidth = Math.min(
    NAME_MAX,
    Math.max(...shown.rows.map((step) => widthOf(indent(step)) + widthOf(step.id)), 4),
  );
  const places = shown.rows.map(placeOf);
  const placeWidth = Math.max(0, ...places.map(widthOf));
  const lines = shown.rows.map((step, at) => {
    const { icon, hue } = stepMark(step.status);
    const name = pad(cut(indent(step) + step.id, nameWidth), nameWidth);
    const parts = [
      ` ${paint(hue, icon)} ${name}`,
      paint(hue, pad(step.status, 9)),
      pad(places[at]!, placeWidth),
      paint("dim", pad(tookOf(step, frame.nowMs), 10)),
      noteOf(step, byId, frame),
    ];
    return parts.join("  ").trimEnd();
  });
  if (shown.hidden !== "") lines.push(paint("dim", ` … ${shown.hidden}`));
  return [headLine(view, frame), ...lines, ...foot].map((line) => cut(line, frame.width));
}

function headLine(view: RunView, frame: Frame): string {
  const paint = painter(frame.color);
  const { hue } = runMark(view.status);
  const ended = view.steps.filter(({ status }) => isStepEnded(status)).length;
  const took = duration((view.finishedAtMs ?? frame.nowMs) - view.createdAtMs);
  return `${paint("bold", view.pipeline)}  ${paint(hue, view.status)}  ${ended} of ${plural(view.steps.length, "step")}  ${took}  ${paint("dim", view.id)}`;
}

function footLines(view: RunView, frame: Frame): string[] {
  const paint = painter(frame.color);
  const lines: string[] = [];
  if (!frame.online)
    lines.push(paint("yellow", " The server is away; the run goes on without us. Trying again."));
  if (view.reason !== "" && view.status !== "succeeded") lines.push(` ${oneLine(view.reason)}`);
  return lines;
}

/** `dream/agent-1` when one has it, the environment while it is only offered there. */
function placeOf(step: StepRow): string {
  return oneLine(step.agent ?? step.environment ?? "");
}

function tookOf(step: StepRow, nowMs: number): string {
  if (step.startedAtMs === null) return "";
  if (step.status !== "running" && step.finishedAtMs === null) return "";
  return duration((step.finishedAtMs ?? nowMs) - step.startedAtMs);
}

function noteOf(step: StepRow, byId: ReadonlyMap<string, StepRow>, frame: Frame): string {
  const again = step.attempt > 1 ? `attempt ${step.attempt}` : "";
  const texts = [again, step.note || waitOf(step, byId, frame)];
  return oneLine(texts.filter((text) => text !== "").join(": "));
}

function waitOf(step: StepRow, byId: ReadonlyMap<string, StepRow>, frame: Frame): string {
  if (step.status === "pending") {
    const open = step.needs.filter((need) => byId.get(need)?.status !== "succeeded");
    return open.length === 0 ? "" : `after ${listed(open)}`;
  }
  if (step.status === "offered" && step.environment !== null) {
    if (frame.connected !== null && !frame.connected.has(step.environment)) {
      return `no agent of ${step.environment} is connected`;
    }
    return frame.nowMs - step.sinceMs >= SLOW_OFFER_MS ? "waits for an agent with a free slot" : "";
  }
  return "";
}

function listed(names: readonly string[]): string {
  return names.length <= 4
    ? names.join(", ")
    : `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`;
}

/** What a watcher wants to see first when not all fits. */
const URGENCY: Record<StepRow["status"], number> = {
  failed: 0,
  disconnected: 1,
  running: 1,
  backoff: 2,
  ready: 3,
  offered: 4,
  cancelled: 5,
  pending: 6,
  succeeded: 7,
  skipped: 8,
};

function fitting(steps: readonly StepRow[], rows: number): { rows: readonly StepRow[]; hidden: string } {
  if (steps.length <= rows) return { rows: steps, hidden: "" };
  const places = steps.map((step, at) => ({ step, at }));
  // Of those that succeeded the latest, of those that wait the next.
  const order = (a: (typeof places)[0], b: (typeof places)[0]): number =>
    URGENCY[a.step.status] - URGENCY[b.step.status] ||
    (a.step.status === "succeeded" ? b.at - a.at : a.at - b.at);
  const kept = new Set(
    places
      .sort(order)
      .slice(0, rows - 1)
      .map(({ at }) => at),
  );
  const counts = new Map<string, number>();
  for (const [at, { status }] of steps.entries()) {
    if (!kept.has(at)) counts.set(status, (counts.get(status) ?? 0) + 1);
  }
  const hidden = [...counts].map(([status, count]) => `${count} ${status}`).join(", ");
  return { rows: steps.filter((_, at) => kept.has(at)), hidden: `${hidden} not shown` };
}

/** How many steps stand before each on its longest way from the start. */
function depthsOf(steps: readonly StepRow[]): Map<string, number> {
  const depths = new Map<string, number>();
  const needs = new Map(steps.map((step) => [step.id, step.needs]));
  // Without recursion: a chain may be thousands of steps long.
  for (const { id } of steps) {
    const stack = [id];
    while (stack.length > 0) {
      const top = stack.at(-1)!;
      if (depths.has(top)) {
        stack.pop();
        continue;
      }
      const known = (needs.get(top) ?? []).filter((need) => needs.has(need));
      const missing = known.filter((need) => !depths.has(need));
      if (missing.length > 0) {
        stack.push(...missing);
        continue;
      }
      depths.set(top, known.length === 0 ? 0 : 1 + Math.max(...known.map((need) => depths.get(need)!)));
      stack.pop();
    }
  }
  return depths;
}

/** One line for each change, for logs and pipes. */
export function changeLines(
  before: RunView | null,
  after: RunView,
  frame: Pick<Frame, "connected">,
): string[] {
  const lines: string[] = [];
  const old = new Map(before?.steps.map((step) => [step.id, step]));
  const byId = new Map(after.steps.map((step) => [step.id, step]));
  const full: Frame = { ...frame, width: 0, height: 0, nowMs: 0, color: false, online: true };
  for (const step of after.steps) {
    const was = old.get(step.id);
    if (was && was.status === step.status && was.note === step.note && was.agent === step.agent) continue;
    if (!was && step.status === "pending") continue;
    const took = isStepEnded(step.status) ? tookOf(step, 0) : "";
    const parts = [step.id, step.status, placeOf(step), took, noteOf(step, byId, full)];
    lines.push(parts.filter((part) => part !== "").join("  "));
  }
  if (before?.status !== after.status && (before !== null || isEnded(after.status))) {
    lines.push(
      [`run ${after.id}`, after.status, oneLine(after.reason)].filter((part) => part !== "").join("  "),
    );
  }
  return lines;
}
