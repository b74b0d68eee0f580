/** `insitu run` and `insitu runs watch`. */
import { InsituError } from "../../../shared/errors.ts";
import type { ParamSpec, ParamValue, PipelineSpec } from "../../../shared/model/spec.ts";
import type { ApiClient } from "../client.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseDuration } from "../invocation.ts";
import { duration, shortDigest } from "../text.ts";
import { watchRun } from "../watch.ts";

interface RunOptions {
  param?: string[];
  version?: string;
  watch?: boolean;
  wait?: boolean;
  timeout?: string;
}

export async function run(
  invocation: Invocation,
  [pipeline = ""]: string[],
  options: RunOptions,
): Promise<number> {
  const client = await invocation.client();
  const { output, signal } = invocation;
  const params = options.param?.length ? await readParams(client, pipeline, options, signal) : {};
  const version = options.version ? { version: options.version } : {};
  const started = await client.startRun({ pipeline, params, ...version }, signal);
  if (!options.watch && !options.wait) {
    if (!output.people) await output.data(started);
    else {
      await output.line(started.id);
      await output.note(
        `Started ${pipeline} ${shortDigest(started.version)}. Follow it: insitu runs watch ${started.id}`,
      );
    }
    return EXIT.ok;
  }
  return await follow(invocation, client, started.id, {
    timeout: options.timeout,
    quiet: options.watch !== true,
  });
}

export async function watch(
  invocation: Invocation,
  [run = ""]: string[],
  { timeout }: { timeout?: string },
): Promise<number> {
  const client = await invocation.client();
  const id = await client.resolveRunId(run, invocation.signal);
  return await follow(invocation, client, id, { timeout, quiet: false });
}

async function follow(
  invocation: Invocation,
  client: ApiClient,
  id: string,
  { timeout, quiet }: { timeout: string | undefined; quiet: boolean },
): Promise<number> {
  const { output, clock, world } = invocation;
  const late = new AbortController();
  if (timeout !== undefined) {
    const ms = parseDuration(timeout, "--timeout");
    clock.after(ms, () =>
      late.abort(new InsituError("timeout", `the run has not ended within ${timeout}; it goes on`)),
    );
  }
  const signal = AbortSignal.any([invocation.signal, late.signal]);
  try {
    await watchRun(client, id, {
      screen: world.terminal.err,
      color: colored(invocation),
      clock,
      signal,
      quiet,
    });
  } catch (thrown) {
    if (!signal.aborted) throw thrown;
    await output.note(
      `The run goes on. To see it again: insitu runs watch ${id}\nTo stop it:          insitu runs cancel ${id}`,
    );
    if (late.signal.aborted) throw late.signal.reason;
    return InsituError.from(invocation.signal.reason).exitCode;
  }
  const detail = await client.getRun(id, invocation.signal);
  if (!output.people) await output.data(detail);
  else {
    const took = duration((detail.finishedAtMs ?? detail.createdAtMs) - detail.createdAtMs);
    const word = output.paint(detail.status === "succeeded" ? "green" : "red", detail.status);
    await output.line(`run/${id} ${word} in ${took}`);
    if (detail.status !== "succeeded") await output.note(`More about it: insitu runs show ${id}`);
  }
  return detail.status === "succeeded" ? EXIT.ok : EXIT.runNotSuccessful;
}

function colored({ output, world }: Invocation): boolean {
  return output.terminal.colorAllowed && world.terminal.err.isTty;
}

async function readParams(
  client: ApiClient,
  pipeline: string,
  { param = [], version }: RunOptions,
  signal: AbortSignal,
): Promise<Record<string, ParamValue>> {
  const spec = version
    ? (await client.getVersion(pipeline, version, signal)).spec
    : ((await client.getResource("pipeline", pipeline, signal)).spec as PipelineSpec);
  return parseParams(param, spec.params);
}

/** Values get the type that the pipeline declares; what it does not know, the server refuses. */
export function parseParams(
  given: readonly string[],
  declared: Readonly<Record<string, ParamSpec>>,
): Record<string, ParamValue> {
  return Object.fromEntries(
    given.map((text) => {
      const at = text.indexOf("=");
      if (at <= 0) throw new InsituError("request.invalid", `-p takes name=value, not "${text}"`);
      const name = text.slice(0, at);
      return [name, parseValue(name, text.slice(at + 1), declared[name]?.type ?? "string")];
    }),
  );
}

function parseValue(name: string, text: string, type: ParamSpec["type"]): ParamValue {
  if (type === "string") return text;
  if (type === "boolean" && (text === "true" || text === "false")) return text === "true";
  if (type === "number" && text.trim() !== "" && Number.isFinite(Number(text))) return Number(text);
  const wanted = type === "boolean" ? "true or false" : "a number";
  throw new InsituError("request.invalid", `parameter ${name} takes ${wanted}, not "${text}"`);
}
