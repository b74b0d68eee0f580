/** Runs: start, read, cancel, follow. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import type { Right } from "../access/rights.ts";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { covers, demand, demandAll, needsOnPipeline, onPipeline } from "./guard.ts";
import { Cursor, flag, IdempotencyHeaders, json, jsonBody, limit, problems } from "./routes.ts";
import {
  CancelRunBody,
  LogLine,
  pageOf,
  ResolveStepBody,
  RunDetail,
  RunStatus,
  RunSummary,
  StartRunBody,
} from "./schemas.ts";
import { bodyOf, eventFrames, logFrames } from "./streams.ts";
import { reachesAll, refuseUnseenPipeline } from "./unseen.ts";

const RunParams = z.object({ id: z.string().max(64).openapi({ description: "Id of the run" }) });

const start = createRoute({
  ...needsOnPipeline("runs:start"),
  method: "post",
  path: "/v1/runs",
  operationId: "startRun",
  tags: ["runs"],
  summary: "Start a run",
  request: { headers: IdempotencyHeaders, body: jsonBody(StartRunBody) },
  responses: { 201: json(RunSummary, "The run, durable and visible"), ...problems },
});

const list = createRoute({
  ...needsOnPipeline("runs:view"),
  method: "get",
  path: "/v1/runs",
  operationId: "listRuns",
  tags: ["runs"],
  summary: "Runs, the newest first",
  request: {
    query: z.object({
      pipeline: Name.optional(),
      status: RunStatus.optional(),
      limit: limit(50),
      cursor: Cursor,
    }),
  },
  responses: { 200: json(pageOf(RunSummary), "A page"), ...problems },
});

const get = createRoute({
  ...needsOnPipeline("runs:view"),
  method: "get",
  path: "/v1/runs/{id}",
  operationId: "getRun",
  tags: ["runs"],
  summary: "One run with its steps and attempts",
  request: { params: RunParams },
  responses: { 200: json(RunDetail, "The run"), ...problems },
});

const cancel = createRoute({
  ...needsOnPipeline("runs:cancel"),
  method: "post",
  path: "/v1/runs/{id}/cancel",
  operationId: "cancelRun",
  tags: ["runs"],
  summary: "Cancel a run; its steps are told to stop",
  request: { params: RunParams, headers: IdempotencyHeaders, body: jsonBody(CancelRunBody) },
  responses: { 200: json(RunSummary, "The run"), ...problems },
});

const resolve = createRoute({
  ...needsOnPipeline("runs:resolve"),
  method: "post",
  path: "/v1/runs/{id}/steps/{step}/resolve",
  operationId: "resolveStep",
  tags: ["runs"],
  summary: "Decide what became of a step whose agent is cut off; the decision is kept in the run's history",
  request: {
    params: RunParams.extend({ step: Name }),
    headers: IdempotencyHeaders,
    body: jsonBody(ResolveStepBody),
  },
  responses: { 200: json(RunSummary, "The run"), ...problems },
});

const events = createRoute({
  ...needsOnPipeline("runs:view"),
  method: "get",
  path: "/v1/runs/{id}/events",
  operationId: "followRun",
  tags: ["runs"],
  summary: "A run's events as they happen",
  description:
    "Server-sent events. `id` is the sequence, `data` a batch of events; a comment line keeps the stream alive; " +
    "`event: end` follows the last batch of a run that has ended; `event: problem` says what broke.",
  request: {
    params: RunParams,
    headers: z.object({
      "last-event-id": z
        .string()
        .optional()
        .openapi({ description: "Sequence of the last event seen; 0 for none" }),
    }),
  },
  responses: {
    200: { content: { "text/event-stream": { schema: z.string() } }, description: "The events" },
    ...problems,
  },
});

/** Typed as text: the router's types take whatever ends in "json" for one JSON value. */
const NDJSON: string = "application/x-ndjson";

const logs = createRoute({
  ...needsOnPipeline("logs:read"),
  method: "get",
  path: "/v1/runs/{id}/logs",
  operationId: "readLogs",
  tags: ["runs"],
  summary: "What the steps of a run wrote",
  description: "Lines of JSON. A connection that is cut before its end means that the logs are not complete.",
  request: {
    params: RunParams,
    query: z.object({
      step: Name.optional(),
      attempt: z.coerce.number().int().min(1).optional(),
      follow: flag.openapi({ description: "Go on until the run ends" }),
    }),
  },
  responses: {
    200: { content: { [NDJSON]: { schema: LogLine } }, description: "The entries" },
    ...problems,
  },
});

const TERMINAL: ReadonlySet<string> = new Set(["succeeded", "failed", "cancelled"]);

/** `transfer-encoding` tells the adapter not to wait for a first piece before it sends the head. */
const STREAM_HEADERS = {
  "cache-control": "no-store",
  "x-accel-buffering": "no",
  "transfer-encoding": "chunked",
};

export function runRoutes(app: OpenAPIHono<ApiEnv>, deps: RouteDeps): void {
  const { runs, queries } = deps;

  /** A run that the caller may not view is answered like one that is not there. */
  const existing = (c: Context<ApiEnv>, id: string) => {
    const run = queries.get(id);
    if (run === undefined || !covers(c, "runs:view", onPipeline(run.pipeline)))
      throw new InsituError("not-found", `there is no run ${id}; GET /v1/runs lists them`);
    return run;
  };
  /** Who has the right over everything needs no look at the run, which this replica may not know of yet. */
  const demandOnRun = async (c: Context<ApiEnv>, right: Right, id: string) => {
    if (!reachesAll(c, right)) await demand(c, right, onPipeline(existing(c, id).pipeline));
  };

  /**
   * Gives the version to start. The right is needed over that one as well as the newest: it may run elsewhere, and
   * belong to another team. What was approved, or just decided, is this version and none that is applied meanwhile.
   */
  const demandStart = async (c: Context<ApiEnv>, pipeline: string, asked: string | undefined) => {
    const stored = deps.resources.get("pipeline", pipeline);
    const version = asked ?? stored?.version ?? undefined;
    const spec = version === undefined ? undefined : await deps.resources.version(version);
    const known = spec?.name === pipeline ? [{ ...deps.resources.factsOf(spec), version }] : [];
    const need = { right: "runs:start" as const, target: onPipeline(pipeline) };
    const older = version !== stored?.version || known.length === 0;
    await demandAll(c, [...(older ? [need] : []), ...known.map((facts) => ({ ...need, facts }))]);
    return version;
  };

  app.openapi(start, async (c) => {
    const { pipeline, version: asked, params } = c.req.valid("json");
    refuseUnseenPipeline(c, deps.resources, pipeline);
    const version = await demandStart(c, pipeline, asked);
    const seed = c.get("repeatSeed");
    const request = {
      pipeline,
      params,
      by: c.get("caller"),
      ...(version === undefined ? {} : { version }),
      ...(seed === undefined ? {} : { seed }),
    };
    const run = await runs.start(request);
    c.header("location", `/v1/runs/${run.id}`);
    return c.json(run, 201);
  });

  app.openapi(list, (c) => {
    const { pipeline, status, limit, cursor } = c.req.valid("query");
    const pipelines = c.get("judge").reach(c.get("principal"), "runs:view");
    const page = queries.list({
      limit,
      ...(pipelines === null ? {} : { pipelines }),
      ...(pipeline === undefined ? {} : { pipeline }),
      ...(status === undefined ? {} : { status }),
      ...(cursor === undefined ? {} : { cursor }),
    });
    return c.json(page, 200);
  });

  app.openapi(get, (c) => c.json(existing(c, c.req.valid("param").id), 200));

  app.openapi(cancel, async (c) => {
    await demandOnRun(c, "runs:cancel", c.req.valid("param").id);
    const request = { by: c.get("caller"), reason: c.req.valid("json").reason };
    return c.json(await runs.cancel(c.req.valid("param").id, request), 200);
  });

  app.openapi(resolve, async (c) => {
    const { id, step } = c.req.valid("param");
    await demandOnRun(c, "runs:resolve", id);
    const { as: decision, reason, evenIfItRan } = c.req.valid("json");
    const request = { runId: id, step, decision, reason, evenIfItRan, by: c.get("caller") };
    return c.json(await runs.resolve(request), 200);
  });

  app.openapi(events, (c) => {
    const { id } = existing(c, c.req.valid("param").id);
    const after = lastEventId(c.req.header("last-event-id"));
    const ended = () => TERMINAL.has(queries.get(id)?.status ?? "");
    const { clock, heartbeatMs } = deps;
    const body = bodyOf(
      (signal) => eventFrames(queries.follow(id, after, signal), { clock, heartbeatMs, signal, ended }),
      reach(c, deps),
    );
    return new Response(body, { headers: { ...STREAM_HEADERS, "content-type": "text/event-stream" } });
  });

  app.openapi(logs, async (c) => {
    const { step, attempt, follow } = c.req.valid("query");
    const run = existing(c, c.req.valid("param").id);
    await demand(c, "logs:read", onPipeline(run.pipeline));
    if (step !== undefined && !run.steps.some((one) => one.id === step)) {
      const known = run.steps.map((one) => one.id);
      throw new InsituError(
        "not-found",
        unknownName({ kind: "step", name: step, within: `run ${run.id}`, known }),
      );
    }
    const query = {
      runId: run.id,
      follow: follow === "true",
      ...(step === undefined ? {} : { step }),
      ...(attempt === undefined ? {} : { attempt }),
    };
    const body = bodyOf((signal) => logFrames(deps.logs.read({ ...query, signal }), signal), reach(c, deps));
    return new Response(body, { headers: { ...STREAM_HEADERS, "content-type": NDJSON } });
  });
}

function lastEventId(given: string | undefined): number {
  if (given === undefined || given === "") return 0;
  if (/^\d{1,15}$/.test(given)) return Number(given);
  throw new InsituError(
    "request.invalid",
    `Last-Event-ID is the sequence of an event, a number; not ${given}`,
  );
}

/** How a stream ends from outside, and how it is broken off: with the connection itself, after a line in the log. */
export function reach(c: Context<ApiEnv>, { stopping, log }: Pick<RouteDeps, "stopping" | "log">) {
  const cut = (err: unknown) => {
    const error = InsituError.from(err);
    const requestId = c.get("requestId");
    if (error.code !== "cancelled")
      log.error({ requestId, path: c.req.path, err: error }, "stream broke off");
    // Without a server Hono leaves `env` itself undefined, whatever its type says.
    const outgoing = c.env?.outgoing;
    outgoing?.destroy();
    return outgoing !== undefined;
  };
  return { signals: [c.req.raw.signal, stopping], cut };
}
