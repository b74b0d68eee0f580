/** `insitu runs logs`. */
import { InsituError } from "../../../shared/errors.ts";
import { unknownName } from "../../../shared/model/nearest.ts";
import type { LogLine, RunDetail } from "../../api/schemas.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseCount } from "../invocation.ts";
import { LogLines } from "../log-lines.ts";
import { isEnded } from "../run-view.ts";
import { bytes } from "../text.ts";

interface LogOptions {
  follow?: boolean;
  attempt?: string;
  stream?: LogLine["stream"];
  timestamps?: boolean;
  raw?: boolean;
}

export async function logs(
  invocation: Invocation,
  [run = "", step]: string[],
  options: LogOptions,
): Promise<number> {
  const client = await invocation.client();
  const { output, signal } = invocation;
  const { out } = output.terminal;
  const id = await client.resolveRunId(run, signal);
  const before = await client.getRun(id, signal);
  if (step !== undefined && !before.steps.some((one) => one.id === step)) {
    const known = before.steps.map((one) => one.id);
    throw new InsituError("not-found", unknownName({ kind: "step", name: step, within: `run ${id}`, known }));
  }
  const attempt = options.attempt === undefined ? undefined : parseCount(options.attempt, "--attempt");
  const single = step !== undefined || before.steps.length === 1;
  // The very bytes, when nobody's terminal is driven by them and no mark stands before the lines.
  const asTheyCame = options.raw || (single && !out.isTty && !options.timestamps);
  const lines = new LogLines({
    prefix: !single,
    timestamps: options.timestamps === true,
    harmless: out.isTty,
    paint: output.paint,
  });
  const dropped = { bytes: 0, lines: 0 };
  const refused: string[] = [];
  const query = { step, attempt, follow: options.follow === true };
  for await (const entry of client.logs(id, query, signal)) {
    dropped.bytes += entry.droppedBytes;
    dropped.lines += entry.droppedLines ?? 0;
    if (entry.refused !== undefined) refused.push(entry.refused);
    if (options.stream !== undefined && entry.stream !== options.stream) continue;
    // What the agent says is not what the step wrote.
    if (asTheyCame && options.stream === undefined && entry.stream === "agent") continue;
    if (!output.people) await out.write(`${JSON.stringify(entry)}\n`);
    else if (asTheyCame) await out.write(Buffer.from(entry.data, "base64"));
    else {
      const text = lines.push(entry);
      if (text !== "") await out.write(text);
    }
  }
  const rest = lines.flush();
  if (rest !== "") await out.write(rest);
  for (const note of await notes(invocation, id, before, { step, dropped })) await output.note(note);
  if (refused.length > 0) throw forged(refused);
  return EXIT.ok;
}

/** Also when the log itself goes somewhere else: who reads it is to know that it is not whole. */
function forged(refused: string[]): InsituError {
  const [first, ...others] = refused;
  const more = others.length > 0 ? `; and ${others.length} more` : "";
  return new InsituError(
    "log.forged",
    `a part of these logs is not what the agent signed, and is not shown: ${first}${more}. Somebody with access to NATS may have changed it; copies: insitu poison list`,
    { details: { refused } },
  );
}

/** What a reader would otherwise miss without knowing. */
async function notes(
  invocation: Invocation,
  id: string,
  before: RunDetail,
  { step, dropped }: { step: string | undefined; dropped: { bytes: number; lines: number } },
): Promise<string[]> {
  const said: string[] = [];
  if (dropped.bytes > 0) {
    const lines = dropped.lines > 0 ? `${dropped.lines} lines dropped: ` : "";
    said.push(`${lines}${bytes(dropped.bytes)} of these logs were given up at the site, the oldest first.`);
  }
  const client = await invocation.client();
  const run = isEnded(before.status) ? before : await client.getRun(id, invocation.signal);
  for (const one of run.steps) {
    if (step !== undefined && one.id !== step) continue;
    for (const { environment, egress } of one.attempts) {
      const kept = egress
        .filter(({ kind }) => kind === "log")
        .reduce((sum, { keptBytes }) => sum + keptBytes, 0);
      if (kept > 0)
        said.push(`${bytes(kept)} of ${one.id}'s logs stay at ${environment}: policy keeps them there.`);
    }
  }
  return said;
}
