/** A plan as a matrix: where each step may run, and below it why not elsewhere. */
import type { PlanView, StepPlan } from "../api/schemas.ts";
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
  const byReason = new Map<string, { environments: string[]; message: string }>();
  for (const { environment, allowed, reasons } of step.environments) {
    if (allowed) continue;
    const messages = reasons.length > 0 ? reasons.map(({ message }) => message) : ["no policy allows it"];
    for (const message of messages) {
      const shared = message.replace(wholeName(environment), "these");
      const same = byReason.get(shared);
      if (same) same.environments.push(environment);
      else byReason.set(shared, { environments: [environment], message });
    }
  }
  if (byReason.size === 0) return [];
  const lines = [`  ${mayRun(step) ? step.step : paint("red", step.step)}`];
  for (const [shared, { environments, message }] of byReason) {
    const text = oneLine(`${environments.join(", ")}: ${environments.length > 1 ? shared : message}`);
    wrap(text, Math.max(40, width - 6)).forEach((line, index) => {
      lines.push(`${index === 0 ? `    ${paint("dim", "✗")} ` : "      "}${line}`);
    });
  }
  return lines;
}

/** The name where it stands for itself, not as a part of a longer one. */
function wholeName(name: string): RegExp {
  return new RegExp(`(?<![a-z0-9-])${name}(?![a-z0-9-])`, "g");
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
