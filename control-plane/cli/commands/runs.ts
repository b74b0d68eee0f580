/** `insitu runs list`, `show` and `cancel`. */
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseCount } from "../invocation.ts";
import { reportLines } from "../run-report.ts";
import { runMark } from "../run-view.ts";
import { duration, instant, shortDigest } from "../text.ts";

export async function list(
  invocation: Invocation,
  _args: string[],
  options: { pipeline?: string; status?: string; limit: string },
): Promise<number> {
  const client = await invocation.client();
  const { output, clock, signal } = invocation;
  const limit = parseCount(options.limit, "--limit");
  const runs = await client.listRuns({ pipeline: options.pipeline, status: options.status, limit }, signal);
  if (!output.people) {
    await output.data(runs);
    return EXIT.ok;
  }
  if (runs.length === 0) {
    await output.note("No such run. `insitu run PIPELINE` starts one.");
    return EXIT.ok;
  }
  const nowMs = clock.wallMs();
  await output.table(runs, [
    { title: "RUN", value: ({ id }) => id },
    { title: "PIPELINE", value: ({ pipeline }) => pipeline },
    {
      title: "STATE",
      value: ({ status }) => `${runMark(status).icon} ${status}`,
      hue: ({ status }) => runMark(status).hue,
    },
    { title: "STEPS", value: ({ counts }) => stepsText(counts), right: true },
    { title: "STARTED", value: ({ createdAtMs }) => instant(createdAtMs) },
    { title: "TOOK", value: (run) => duration((run.finishedAtMs ?? nowMs) - run.createdAtMs), right: true },
    { title: "VERSION", value: ({ version }) => shortDigest(version) },
  ]);
  return EXIT.ok;
}

function stepsText(counts: Readonly<Record<string, number | undefined>>): string {
  const total = Object.values(counts).reduce<number>((sum, count) => sum + (count ?? 0), 0);
  return `${counts.succeeded ?? 0}/${total}`;
}

export async function show(invocation: Invocation, [run = ""]: string[]): Promise<number> {
  const client = await invocation.client();
  const { output, clock, signal } = invocation;
  const detail = await client.getRun(await client.resolveRunId(run, signal), signal);
  if (!output.people) await output.data(detail);
  else {
    const width = output.terminal.out.isTty ? output.terminal.out.columns() : 120;
    for (const line of reportLines(detail, { nowMs: clock.wallMs(), width, paint: output.paint }))
      await output.line(line);
  }
  return EXIT.ok;
}

export async function cancel(
  invocation: Invocation,
  [run = ""]: string[],
  { reason }: { reason: string },
): Promise<number> {
  const client = await invocation.client();
  const { output, signal } = invocation;
  const summary = await client.cancelRun(await client.resolveRunId(run, signal), reason, signal);
  if (output.people) await output.line(`run/${summary.id} ${summary.status}`);
  else await output.data(summary);
  return EXIT.ok;
}

export async function resolve(
  invocation: Invocation,
  [run = "", step = ""]: string[],
  options: { as: string; reason: string; evenIfItRan?: boolean },
): Promise<number> {
  const client = await invocation.client();
  const { output, signal } = invocation;
  const request = { as: options.as, reason: options.reason, evenIfItRan: options.evenIfItRan ?? false };
  const id = await client.resolveRunId(run, signal);
  const summary = await client.resolveStep(id, step, request, signal);
  if (output.people) await output.line(`run/${summary.id} step ${step} resolved as ${options.as}`);
  else await output.data(summary);
  return EXIT.ok;
}
