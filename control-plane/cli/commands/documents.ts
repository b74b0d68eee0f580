/** `insitu apply` and `insitu plan`. */
import { InsituError } from "../../../shared/errors.ts";
import type { AppliedChange } from "../../api/schemas.ts";
import { readDocumentSet, withSources } from "../documents.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { planLines } from "../plan-lines.ts";
import type { Hue } from "../text.ts";
import { shortDigest } from "../text.ts";

const WORDS: Record<AppliedChange["action"], [string, Hue]> = {
  created: ["created", "green"],
  unchanged: ["unchanged", "dim"],
  updated: ["updated", "yellow"],
  "new-version": ["new version", "yellow"],
  deleted: ["deleted", "red"],
};

export async function apply(
  invocation: Invocation,
  _args: string[],
  { file = [], dryRun = false }: { file?: string[]; dryRun?: boolean },
): Promise<number> {
  const set = await readSet(invocation, file);
  const client = await invocation.client();
  const changes = await withSources(set, () => client.apply(set, { dryRun, signal: invocation.signal }));
  const { output } = invocation;
  if (!output.people) await output.data({ dryRun, changes });
  else for (const change of changes) await output.line(changeLine(invocation, change, dryRun));
  return EXIT.ok;
}

export function changeLine({ output }: Invocation, change: AppliedChange, dryRun: boolean): string {
  const [word, hue] = WORDS[change.action];
  const version = change.version === null ? "" : ` (${shortDigest(change.version)})`;
  return `${change.kind}/${change.name} ${output.paint(hue, word)}${version}${dryRun ? " (dry run)" : ""}`;
}

export async function plan(
  invocation: Invocation,
  [pipeline]: string[],
  { file = [], version }: { file?: string[]; version?: string },
): Promise<number> {
  if ((pipeline === undefined) === (file.length === 0)) {
    throw new InsituError(
      "request.invalid",
      "name either a pipeline or a document: insitu plan NAME, or insitu plan -f FILE",
    );
  }
  const client = await invocation.client();
  const { output, signal } = invocation;
  let plans: Awaited<ReturnType<typeof client.plan>>;
  if (file.length > 0) {
    const set = await readSet(invocation, file);
    plans = await withSources(set, () => client.plan(set, signal));
  } else {
    const request = { pipeline: pipeline!, ...(version ? { version } : {}) };
    plans = await client.plan(request, signal);
  }
  if (!output.people) await output.data({ plans });
  else if (plans.length === 0) await output.note("There is no pipeline in these documents.");
  else {
    const width = output.terminal.out.isTty ? output.terminal.out.columns() : Number.POSITIVE_INFINITY;
    for (const [index, view] of plans.entries()) {
      if (index > 0) await output.line();
      for (const line of planLines(view, { width, paint: output.paint })) await output.line(line);
    }
  }
  return plans.every(({ placeable }) => placeable) ? EXIT.ok : EXIT.denied;
}

function readSet({ world }: Invocation, paths: readonly string[]) {
  return readDocumentSet(paths, { cwd: world.settings.cwd, readStdin: () => world.terminal.readStdin() });
}
