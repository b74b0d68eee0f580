/** What the demonstration shows once everything is up: the plan, the run, and what came of it. */
import { existsSync, rmSync, symlinkSync } from "node:fs";
import { basename, join, relative } from "node:path";
import type { Comparison, Demo, SiteData } from "../../../examples/demo.ts";
import { InsituError } from "../../../shared/errors.ts";
import type { PipelineSpec } from "../../../shared/model/spec.ts";
import type { PlanView, RunDetail } from "../../api/schemas.ts";
import type { ApiClient } from "../client.ts";
import { readDocumentSet } from "../documents.ts";
import { egressBySite, type SiteEgress } from "../egress.ts";
import type { Invocation } from "../invocation.ts";
import { tableLines } from "../output.ts";
import { planLines } from "../plan-lines.ts";
import { bytes, duration, oneLine, type Paint, wrap } from "../text.ts";
import { watchRun } from "../watch.ts";
import { evidenceLines, evidenceOf, type StepEvidence } from "./evidence.ts";
import type { Site } from "./sites.ts";

export interface StoryOptions {
  invocation: Invocation;
  client: ApiClient;
  demo: Demo;
  data: readonly SiteData[];
  sites: readonly Site[];
  signal: AbortSignal;
}

export interface StoryResult {
  run: RunDetail;
  comparison: Comparison;
  egress: SiteEgress[];
  /** Where artifacts of the run lie, with the ending that they had. */
  reports: { name: string; environment: string; path: string }[];
  evidence: StepEvidence[];
}

const WIDTH_MAX = 110;
/** A difference up to this is that of rounding; a larger one that is allowed is of another method. */
const SAME = 1e-6;
const COUNTED = "Bytes, as each site's own egress gate counted them. Artifacts stay where they were made.";

/** Shows it all on the way. @throws InsituError when the run fails or its answer differs from the pooled one */
export async function tell(options: StoryOptions): Promise<StoryResult> {
  const { invocation, client, demo, signal } = options;
  const { output, clock } = invocation;
  const paint = output.paintErr;
  const width = Math.min(WIDTH_MAX, output.terminal.err.columns());
  const heading = (text: string) => output.note(`\n${paint("bold", text)}\n`);

  const [plan] = await client.plan({ pipeline: demo.pipeline }, signal);
  if (plan === undefined) throw new InsituError("not-found", `pipeline ${demo.pipeline} is not there`);
  await heading("Where each step may run, and why not elsewhere");
  await output.note(indented(planLines(plan, { width: width - 2, paint }).slice(2)));
  if (demo.refused !== null) await tellRefusal(options, { file: demo.refused, width, paint });

  await heading("The run");
  const started = await client.startRun({ pipeline: demo.pipeline, params: {} }, signal);
  const screen = output.terminal.err;
  const color = output.terminal.colorAllowed && screen.isTty;
  const view = await watchRun(client, started.id, { screen, color, clock, signal });
  const run = await client.getRun(started.id, signal);
  if (view.status !== "succeeded") throw new InsituError("internal", failureOf(run));
  const comparison = await demo.compare(outputsOf(run));
  const egress = egressBySite(run.steps);
  const reports = await linkReports(options, run);
  const { spec } = await client.getResource("pipeline", demo.pipeline, signal);
  const about = { run, pipeline: spec as PipelineSpec };
  const evidence = await evidenceOf(client, about, { clock, signal });
  const result = { run, comparison, egress, reports, evidence };
  if (output.people) await show(options, result);
  else
    await output.data({
      runId: run.id,
      comparison,
      egress,
      reports,
      steps: stepsOf(run),
      held: options.data,
      evidence,
    });
  if (!comparison.equal) {
    throw new InsituError(
      "internal",
      `the federated answer differs from the pooled one by ${comparison.difference.toExponential(1)}; ${comparison.tolerance} is allowed`,
    );
  }
  return result;
}

/** The pipeline that would move the rows, and what becomes of it. */
async function tellRefusal(
  { client, invocation, signal }: StoryOptions,
  { file, width, paint }: { file: string; width: number; paint: Paint },
): Promise<void> {
  const set = await readDocumentSet([file], {
    cwd: invocation.world.settings.cwd,
    readStdin: async () => "",
  });
  for (const plan of await client.plan(set, signal)) {
    if (plan.placeable)
      throw new InsituError("internal", `${plan.pipeline} should have been refused, and was not`);
    const head = `${paint("red", "✗ refused")}  ${paint("bold", oneLine(plan.pipeline))}, which asks the same by moving the rows:`;
    const reasons = refusalOf(plan).flatMap((reason) => wrap(reason, width - 4));
    await invocation.output.note(`\n  ${head}\n${indented(reasons, "    ")}`);
  }
}

/** What speaks against the step with no place where its author wanted it to run: one sentence for each rule. */
function refusalOf(plan: PlanView): string[] {
  const step = plan.steps.find(({ environments }) => environments.every(({ allowed }) => !allowed));
  const places = step?.environments ?? [];
  // Elsewhere the pin of the step speaks against it, too, which is of no dataset.
  const wanted = places.find(({ reasons }) => reasons.every(({ dataset }) => dataset !== null)) ?? places[0];
  if (step === undefined || wanted === undefined) return ["no environment may run it"];
  const rules = new Map(wanted.reasons.map(({ policy, message }) => [policy, oneLine(message)]));
  return [`step ${step.step} at ${wanted.environment}:`, ...[...rules.values()].map((text) => `- ${text}`)];
}

function failureOf(run: RunDetail): string {
  const failed = run.steps.find(({ status }) => status === "failed");
  const where = failed ? `; step ${failed.id}: ${failed.error?.message ?? "no reason was given"}` : "";
  return `run ${run.id} ${run.status}: ${oneLine(run.reason || "no reason was given")}${where}`;
}

/** Values that left their sites, parsed, by step and output. */
function outputsOf(run: RunDetail): Record<string, Record<string, unknown>> {
  return Object.fromEntries(
    run.steps.map((step) => [
      step.id,
      Object.fromEntries(
        Object.entries(step.outputs).flatMap(([name, { type, text }]) =>
          text === undefined ? [] : [[name, type === "json" ? (JSON.parse(text) as unknown) : text]],
        ),
      ),
    ]),
  );
}

/** Artifacts lie under their digest. A link beside them has the name that a browser knows what to do with. */
async function linkReports({ client, demo, sites, signal }: StoryOptions, run: RunDetail) {
  const { spec } = await client.getResource("pipeline", demo.pipeline, signal);
  return run.steps.flatMap((step) =>
    step.artifacts.flatMap(({ name, digest, environment }) => {
      const site = sites.find((one) => one.environment === environment);
      const stored = site && join(site.stateDirectory, "artifacts", digest.replace(":", "/"));
      if (!site || !stored || !existsSync(stored)) return [];
      const declared = (spec as PipelineSpec).steps.find(({ id }) => id === step.id)?.artifacts[name];
      const path = join(site.directory, basename(declared?.path ?? name));
      rmSync(path, { force: true });
      symlinkSync(relative(site.directory, stored), path);
      return [{ name, environment, path }];
    }),
  );
}

interface StepPlace {
  step: string;
  environment: string;
  agent: string;
  tookMs: number;
}

function stepsOf(run: RunDetail): StepPlace[] {
  return run.steps.flatMap((step) => {
    const last = step.attempts.at(-1);
    if (!last || last.startedAtMs === null || last.finishedAtMs === null) return [];
    const tookMs = last.finishedAtMs - last.startedAtMs;
    return [{ step: step.id, environment: last.environment, agent: last.agent ?? "", tookMs }];
  });
}

async function show(
  options: StoryOptions,
  { run, comparison, egress, reports, evidence }: StoryResult,
): Promise<void> {
  const { invocation, data, sites } = options;
  const { output } = invocation;
  const { paint } = output;
  const width = Math.min(WIDTH_MAX, output.terminal.out.columns()) - 2;
  const section = async (title: string, lines: readonly string[]) => {
    await output.line(`\n${paint("bold", title)}\n\n${indented(lines)}`);
  };
  await section("The answer", [
    ...comparisonLines(comparison, { width, paint }),
    "",
    verdict(comparison, paint),
  ]);

  const held = new Map<string, { rows: number; bytes: number }>();
  for (const { environment, rows, bytes: count } of data) {
    const sum = held.get(environment) ?? { rows: 0, bytes: 0 };
    held.set(environment, { rows: sum.rows + rows, bytes: sum.bytes + count });
  }
  const places = stepsOf(run);
  const rows = sites.map(({ environment }) => ({
    environment,
    ran: places.filter((place) => place.environment === environment),
    held: held.get(environment) ?? { rows: 0, bytes: 0 },
    left: egress.find(({ site }) => site === environment),
  }));
  await section("Which agent ran what", [
    ...tableLines(
      places,
      [
        { title: "STEP", value: ({ step }) => step },
        { title: "AGENT", value: ({ agent }) => agent },
        { title: "TOOK", value: ({ tookMs }) => duration(tookMs), right: true },
      ],
      { width, paint },
    ),
  ]);
  await section("What each site holds, and what left it", [
    ...tableLines(
      rows,
      [
        { title: "SITE", value: ({ environment }) => environment },
        {
          title: "ROWS HELD",
          value: (row) => (row.held.rows === 0 ? "none" : count(row.held.rows)),
          right: true,
        },
        { title: "BYTES HELD", value: (row) => count(row.held.bytes), right: true },
        { title: "OUTPUTS LEFT", value: (row) => count(row.left?.output ?? 0), right: true },
        { title: "LOGS LEFT", value: (row) => count(row.left?.log ?? 0), right: true },
        { title: "KEPT", value: (row) => count(row.left?.kept ?? 0), right: true },
      ],
      { width, paint },
    ),
    "",
    ...wrap(COUNTED, width).map((line) => paint("dim", line)),
  ]);
  await section("The evidence", evidenceLines(evidence, { width, paint, run: "last" }));
  if (reports.length > 0) {
    const cwd = invocation.world.settings.cwd;
    await section(
      "What was made",
      reports.map(({ name, environment, path }) => `${name}, at ${environment}: ${shown(path, cwd)}`),
    );
  }
}

/** Relative to where the person stands, when it lies below. */
function shown(path: string, cwd: string): string {
  const short = relative(cwd, path);
  return short === "" || short.startsWith("..") ? path : short;
}

function comparisonLines(comparison: Comparison, options: { width: number; paint: Paint }): string[] {
  return tableLines(
    comparison.rows,
    [
      { title: "", value: ({ name, unit }) => (unit ? `${name}, ${unit}` : name) },
      { title: "FEDERATED", value: ({ federated }) => exact(federated), right: true },
      { title: "POOLED", value: ({ pooled }) => exact(pooled), right: true },
    ],
    options,
  );
}

function verdict({ equal, difference, tolerance }: Comparison, paint: Paint): string {
  const by = difference === 0 ? "not at all" : `by ${difference.toExponential(1)} at most`;
  return equal
    ? `${paint("green", tolerance <= SAME ? "✓ equal:" : "✓ close:")} they differ ${by} (${tolerance} allowed), and no row has moved`
    : `${paint("red", "✗ not equal:")} they differ ${by}; ${tolerance} is allowed`;
}

/** All digits that there are: the claim is about the ninth. */
function exact(value: number): string {
  return Number.isInteger(value) ? count(value) : value.toPrecision(13);
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}

function indented(lines: readonly string[], by = "  "): string {
  return lines.map((line) => (line === "" ? "" : `${by}${line}`)).join("\n");
}

/** For the line that says how much lies where. */
export function heldLine(data: readonly SiteData[]): string {
  const rows = data.reduce((sum, site) => sum + site.rows, 0);
  const size = data.reduce((sum, site) => sum + site.bytes, 0);
  return `${count(rows)} rows, ${bytes(size)}, split over ${data.map(({ environment }) => environment).join(", ")}`;
}
