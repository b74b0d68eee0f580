/** A run in full, for people: its steps, who ran what where, what it gave, what left each site. Pure. */
import type { AttemptView, RunDetail, StepView } from "../api/schemas.ts";
import { egressBySite, networkUses, type TargetUse } from "./egress.ts";
import { fieldLines, tableLines } from "./output.ts";
import { runMark, stepMark } from "./run-view.ts";
import { bytes, cut, duration, instant, oneLine, type Paint, shortDigest } from "./text.ts";

const OUTPUT_SHOWN_CHARS = 400;

export function reportLines(
  run: RunDetail,
  { nowMs, width, paint }: { nowMs: number; width: number; paint: Paint },
): string[] {
  const sized = { width, paint };
  const lines = fieldLines(headFields(run, nowMs, paint), paint);
  lines.push("", ...tableLines(run.steps, stepColumns(nowMs), sized));
  const eventful = run.steps.flatMap((step) =>
    step.attempts.length > 1 || step.attempts.some(({ status }) => status !== "succeeded")
      ? step.attempts.map((attempt) => ({ step: step.id, attempt }))
      : [],
  );
  if (eventful.length > 0)
    lines.push("", paint("bold", "Attempts"), ...tableLines(eventful, ATTEMPT_COLUMNS, sized));
  lines.push(...section("What steps wait for", waitingLines(run.steps, lines), paint));
  lines.push(...section("Errors", errorLines(run.steps), paint));
  lines.push(...section("Outputs", outputLines(run.steps, width), paint));
  const artifacts = run.steps.flatMap((step) =>
    step.artifacts.map((artifact) => ({ step: step.id, artifact })),
  );
  if (artifacts.length > 0) {
    lines.push(
      "",
      paint("bold", "Artifacts, each kept at its site"),
      ...tableLines(artifacts, ARTIFACT_COLUMNS, sized),
    );
  }
  const uses = networkUses(run.steps);
  if (uses.length > 0)
    lines.push("", paint("bold", "Where steps were let out to"), ...tableLines(uses, TARGET_COLUMNS, sized));
  lines.push(...section("What steps ran in", boxLines(run.steps), paint));
  const egress = egressBySite(run.steps);
  if (egress.length > 0) {
    lines.push("", paint("bold", "What left each site"), ...tableLines(egress, EGRESS_COLUMNS, sized));
  }
  return lines;
}

function headFields(run: RunDetail, nowMs: number, paint: Paint): [string, string][] {
  const { icon, hue } = runMark(run.status);
  const params = Object.entries(run.params).map(([name, value]) => oneLine(`${name}=${value}`));
  const fields: [string, string][] = [
    ["run", run.id],
    ["pipeline", `${run.pipeline} ${shortDigest(run.version)}`],
    ["state", paint(hue, `${icon} ${run.status}`)],
    ["started", `${instant(run.createdAtMs)} by ${oneLine(run.createdBy)}`],
    ["took", duration((run.finishedAtMs ?? nowMs) - run.createdAtMs)],
  ];
  if (params.length > 0) fields.push(["params", params.join(", ")]);
  if (run.reason !== "") fields.push(["reason", oneLine(run.reason)]);
  return fields;
}

function stepColumns(nowMs: number) {
  return [
    { title: "STEP", value: (step: StepView) => step.id },
    {
      title: "STATE",
      value: (step: StepView) => `${stepMark(step.status).icon} ${step.status}`,
      hue: (step: StepView) => stepMark(step.status).hue,
    },
    { title: "SITE", value: (step: StepView) => step.environment ?? "-" },
    { title: "AGENT", value: (step: StepView) => nameOf(lastOf(step)?.agent ?? step.agent) },
    { title: "TRIES", value: (step: StepView) => String(lastOf(step)?.attempt ?? 0), right: true },
    { title: "TOOK", value: (step: StepView) => tookOf(step, nowMs), right: true },
    { title: "READS", value: (step: StepView) => step.reads.join(", ") || "-" },
    { title: "", value: (step: StepView) => step.waiting?.message ?? "" },
  ];
}

function nameOf(agent: string | null): string {
  return agent === null ? "-" : (agent.split("/").at(-1) ?? agent);
}

function tookOf(step: StepView, nowMs: number): string {
  return step.startedAtMs === null ? "-" : duration((step.finishedAtMs ?? nowMs) - step.startedAtMs);
}

interface StepAttempt {
  step: string;
  attempt: AttemptView;
}
const ATTEMPT_COLUMNS = [
  { title: "STEP", value: ({ step }: StepAttempt) => step },
  { title: "ATTEMPT", value: ({ attempt }: StepAttempt) => String(attempt.attempt), right: true },
  { title: "EPOCH", value: ({ attempt }: StepAttempt) => String(attempt.epoch), right: true },
  { title: "AGENT", value: ({ attempt }: StepAttempt) => attempt.agent ?? `${attempt.environment}/-` },
  { title: "ENDED", value: ({ attempt }: StepAttempt) => endText(attempt) },
  { title: "", value: ({ attempt }: StepAttempt) => noteOf(attempt) },
];

/** Evidence is nobody's try. */
function lastOf(step: StepView): AttemptView | undefined {
  return step.attempts.filter(({ status }) => status !== "fenced").at(-1);
}

function noteOf({ status, error }: AttemptView): string {
  const why = error?.message ?? "";
  if (status !== "fenced") return why;
  return ["its grant was superseded: kept as evidence, counts for nothing", why].filter(Boolean).join("; ");
}

function endText({ status, exitCode, signal }: AttemptView): string {
  if (signal !== null) return `${status}, ${signal}`;
  return exitCode === null || exitCode === 0 ? status : `${status}, exit ${exitCode}`;
}

/** Of those whose reason is cut in the table above. */
function waitingLines(steps: readonly StepView[], shown: readonly string[]): string[] {
  return steps.flatMap(({ id, waiting }) => {
    if (waiting === null || shown.some((line) => line.includes(oneLine(waiting.message)))) return [];
    return [`  ${id}: ${oneLine(waiting.message)}`];
  });
}

function errorLines(steps: readonly StepView[]): string[] {
  return steps.flatMap(({ id, error }) =>
    error ? [`  ${id}: ${oneLine(error.message)} (${error.code})`] : [],
  );
}

function outputLines(steps: readonly StepView[], width: number): string[] {
  return steps.flatMap((step) =>
    Object.entries(step.outputs).map(([name, { text, digest, bytes: size }]) => {
      const value =
        text === undefined
          ? `stays at its site: ${shortDigest(digest)}, ${bytes(size)}`
          : oneLine(text.slice(0, OUTPUT_SHOWN_CHARS));
      return cut(`  ${step.id}/${name}  ${value}`, width);
    }),
  );
}

interface StepArtifact {
  step: string;
  artifact: StepView["artifacts"][0];
}
const ARTIFACT_COLUMNS = [
  { title: "ARTIFACT", value: ({ step, artifact }: StepArtifact) => `${step}/${artifact.name}` },
  { title: "SITE", value: ({ artifact }: StepArtifact) => artifact.environment },
  { title: "BYTES", value: ({ artifact }: StepArtifact) => String(artifact.bytes), right: true },
  { title: "DIGEST", value: ({ artifact }: StepArtifact) => artifact.digest },
];

type SiteEgress = ReturnType<typeof egressBySite>[0];
const EGRESS_COLUMNS = [
  { title: "SITE", value: ({ site }: SiteEgress) => site },
  { title: "OUTPUTS", value: ({ output }: SiteEgress) => bytes(output), right: true },
  { title: "LOGS", value: ({ log }: SiteEgress) => bytes(log), right: true },
  { title: "ERROR TEXT", value: ({ error }: SiteEgress) => bytes(error), right: true },
  { title: "ARTIFACTS", value: ({ artifact }: SiteEgress) => bytes(artifact), right: true },
  { title: "NETWORK", value: ({ network }: SiteEgress) => bytes(network), right: true },
  { title: "SENT", value: ({ sent }: SiteEgress) => bytes(sent), right: true },
  { title: "KEPT", value: ({ kept }: SiteEgress) => bytes(kept), right: true },
];

const TARGET_COLUMNS = [
  { title: "STEP", value: ({ step }: TargetUse) => step },
  { title: "SITE", value: ({ site }: TargetUse) => site },
  { title: "TARGET", value: ({ target }: TargetUse) => (target === "others" ? "not on its list" : target) },
  { title: "CONNECTIONS", value: ({ connections }: TargetUse) => String(connections), right: true },
  { title: "REFUSED OR FAILED", value: ({ failures }: TargetUse) => String(failures), right: true },
  { title: "SENT", value: ({ sent }: TargetUse) => bytes(sent), right: true },
  { title: "RECEIVED", value: ({ received }: TargetUse) => bytes(received), right: true },
];

/** One line for each kind of box. */
function boxLines(steps: readonly StepView[]): string[] {
  const found = new Map<string, Set<string>>();
  for (const { id, attempts } of steps) {
    for (const { sandbox } of attempts) {
      if (!sandbox) continue;
      const { kind, version, network, limits } = sandbox;
      const held = Object.keys(limits).sort().join(", ");
      const what =
        kind === "none"
          ? "plain processes: no box, no limits, the network of the host"
          : oneLine(`${kind} ${version}, network ${network}, limits ${held || "none"}`);
      found.set(what, (found.get(what) ?? new Set()).add(id));
    }
  }
  return [...found].map(([what, ids]) => `  ${[...ids].join(", ")}: ${what}`);
}

function section(title: string, lines: readonly string[], paint: Paint): string[] {
  return lines.length === 0 ? [] : ["", paint("bold", title), ...lines];
}
