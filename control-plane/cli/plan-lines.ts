/** A plan as a matrix: where each step may run, and below it why not elsewhere. */
import type { PlanView, StepPlan } from "../api/schemas.ts";
import { sharedReasons } from "../placement/choose.ts";
import { oneLine, type Paint, pad, shortDigest, widthOf, wrap } from "./text.ts";

const GAP = "  ";

export function planLines(view: PlanView, { width, paint }: { width: number; paint: Paint }): string[] {
  const lines = [
    `${paint("bold", view.pipeline)}  ${paint("dim", `${shortDigest(view.version)}, policy ${shortDigest(view.policyVersion)}`)}`,
    "",
    ...matrixLines(view, { width, paint }),
  ];
  const refusals = view.steps.flatMap((step) => refusalLines(step, width, paint));
  if (refusals.length > 0) lines.push("", paint("bold", "Why not elsewhere"), ...refusals);
  const idle = withoutAgent(view);
  if (idle.length > 0) {
    lines.push(
      "",
      `${paint("yellow", "No agent is connected")} at ${idle.join(", ")}: steps wait there until one is.`,
    );
  }
  if (!view.placeable) {
    const nowhere = view.steps.filter((step) => !mayRun(step)).map(({ step }) => step);
    lines.push("", `${paint("red", "Refused:")} no environment may run ${nowhere.join(", ")}.`);
  }
  return lines;
}

function mayRun(step: StepPlan): boolean {
  return step.environments.some(({ allowed }) => allowed);
}

function matrixLines(view: PlanView, { width, paint }: { width: number; paint: Paint }): string[] {
  const names = view.steps[0]?.environments.map(({ environment }) => environment) ?? [];
  const first = Math.max(4, ...view.steps.map(({ step }) => widthOf(step)));
  const total = first + names.reduce((sum, name) => sum + GAP.length + widthOf(name), 0);
  if (names.length === 0) return ["  There is no environment yet."];
  if (total > width) return listLines(view, first, paint);
  const head = [pad("STEP", first), ...names].join(GAP);
  const rows = view.steps.map((step) => {
    const cells = step.environments.map(({ environment, allowed }) => {
      const space = widthOf(environment) - 1;
      const left = Math.floor(space / 2);
      return (
        " ".repeat(left) + paint(allowed ? "green" : "dim", allowed ? "✓" : "✗") + " ".repeat(space - left)
      );
    });
    const name = pad(step.step, first);
    return [mayRun(step) ? name : paint("red", name), ...cells].join(GAP).trimEnd();
  });
  return [paint("dim", head), ...rows];
}

/** For more environments than the terminal is wide. */
function listLines(view: PlanView, first: number, paint: Paint): string[] {
  return view.steps.map((step) => {
    const allowed = step.environments.filter((one) => one.allowed).map(({ environment }) => environment);
    const places = allowed.length > 0 ? paint("green", `✓ ${allowed.join(", ")}`) : paint("red", "✗ nowhere");
    return `${pad(step.step, first)}${GAP}${places}`;
  });
}

/** Environments that are refused for the same reason share a line. */
function refusalLines(step: StepPlan, width: number, paint: Paint): string[] {
  const refused = step.environments.map((one) =>
    one.reasons.length > 0 ? one : { ...one, reasons: [{ message: "no policy allows it" }] },
  );
  const shared = sharedReasons(refused);
  if (shared.length === 0) return [];
  const lines = [`  ${mayRun(step) ? step.step : paint("red", step.step)}`];
  for (const { environments, message } of shared) {
    const text = oneLine(`${environments.join(", ")}: ${message}`);
    wrap(text, Math.max(40, width - 6)).forEach((line, index) => {
      lines.push(`${index === 0 ? `    ${paint("dim", "✗")} ` : "      "}${line}`);
    });
  }
  return lines;
}

/** Places that are the only ones for some step, and have nobody to run it. */
function withoutAgent(view: PlanView): string[] {
  const idle = new Set<string>();
  for (const step of view.steps) {
    const allowed = step.environments.filter((one) => one.allowed);
    if (allowed.every(({ agents }) => agents === 0)) for (const one of allowed) idle.add(one.environment);
  }
  return [...idle];
}
