/** Pipelines, datasets, environments and pools: apply, plan, read, delete. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import { KINDS, type Kind, type PipelineSpec } from "../../shared/model/spec.ts";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { pageByKey } from "./cursor.ts";
import {
  decideOn,
  demand,
  demandAll,
  type Need,
  needs,
  needsOnPipeline,
  needsToApply,
  onPipeline,
} from "./guard.ts";
import { PipelineVersionView, ResourceDetail, StoredResourceView } from "./resource-schemas.ts";
import { Cursor, flag, IdempotencyHeaders, json, jsonBody, limit, problems } from "./routes.ts";
import { AppliedChange, DocumentSetBody, PlanRequest, PlanView, pageOf } from "./schemas.ts";
import type { AskedChange, ResourceService } from "./services.ts";
import { refuseUnseenPipeline, seenResources, unknownResource } from "./unseen.ts";

const PLURALS: Record<Kind, string> = {
  pipeline: "pipelines",
  dataset: "datasets",
  environment: "environments",
  pool: "pools",
  "access-policy": "access-policies",
};

const TITLES: Record<Kind, { one: string; many: string }> = {
  pipeline: { one: "Pipeline", many: "Pipelines" },
  dataset: { one: "Dataset", many: "Datasets" },
  environment: { one: "Environment", many: "Environments" },
  pool: { one: "Pool", many: "Pools" },
  "access-policy": { one: "AccessPolicy", many: "AccessPolicies" },
};

const apply = createRoute({
  ...needsToApply,
  method: "post",
  path: "/v1/apply",
  operationId: "apply",
  tags: ["resources"],
  summary: "Create or change resources, all or none of them",
  request: {
    query: z.object({ dry_run: flag.openapi({ description: "Say what would change, and change nothing" }) }),
    headers: IdempotencyHeaders,
    body: jsonBody(DocumentSetBody),
  },
  responses: {
    200: json(z.object({ changes: z.array(AppliedChange) }), "One entry for each document"),
    ...problems,
  },
});

const plan = createRoute({
  ...needsOnPipeline("resources:view"),
  method: "post",
  path: "/v1/plan",
  operationId: "plan",
  tags: ["resources"],
  summary: "Where each step may run, and why not elsewhere",
  request: { body: jsonBody(PlanRequest) },
  responses: { 200: json(z.object({ plans: z.array(PlanView) }), "One plan for each pipeline"), ...problems },
});

const pipelineVersion = createRoute({
  ...needsOnPipeline("resources:view"),
  method: "get",
  path: "/v1/pipelines/{name}/versions/{digest}",
  operationId: "getPipelineVersion",
  tags: ["resources"],
  summary: "A pipeline as it was at one version",
  request: { params: z.object({ name: z.string(), digest: z.string() }) },
  responses: { 200: json(PipelineVersionView, "The version"), ...problems },
});

export function resourceRoutes(app: OpenAPIHono<ApiEnv>, { resources }: RouteDeps): void {
  app.openapi(apply, async (c) => {
    // Its errors, and what it says is unchanged, tell of whatever is there.
    const view: Need = { right: "resources:view", target: null };
    await demandOfApply(c, [view], true);
    const dryRun = c.req.valid("query").dry_run === "true";
    const changes = await resources.apply(c.req.valid("json"), {
      by: () => c.get("caller"),
      dryRun,
      allow: (asked) => demandOfApply(c, [view, ...asked.flatMap((one) => needsOf(one, resources))], dryRun),
    });
    return c.json({ changes }, 200);
  });

  app.openapi(plan, async (c) => {
    const body = c.req.valid("json");
    if ("documents" in body) {
      // Its explanations speak of whatever datasets and sites the documents name.
      await demand(c, "resources:view", null);
      return c.json({ plans: await resources.plan(body) }, 200);
    }
    refuseUnseenPipeline(c, resources, body.pipeline);
    return c.json({ plans: [await resources.planStored(body.pipeline, body.version)] }, 200);
  });

  app.openapi(pipelineVersion, async (c) => {
    const { name, digest } = c.req.valid("param");
    refuseUnseenPipeline(c, resources, name);
    const spec = await resources.version(digest);
    // Versions are found by digest alone, and this one may be another pipeline's.
    if (spec?.name !== name) throw new InsituError("not-found", `pipeline ${name} has no version ${digest}`);
    return c.json({ version: digest, spec }, 200);
  });

  for (const kind of KINDS) kindRoutes(app, resources, kind);
}

function kindRoutes(app: OpenAPIHono<ApiEnv>, resources: RouteDeps["resources"], kind: Kind): void {
  const plural = PLURALS[kind];
  const titled = TITLES[kind];
  const view = kind === "pipeline" ? needsOnPipeline("resources:view") : needs("resources:view");
  const one = { params: z.object({ name: z.string().openapi({ description: `Name of the ${kind}` }) }) };

  const list = createRoute({
    ...view,
    method: "get",
    path: `/v1/${plural}`,
    operationId: `list${titled.many}`,
    tags: ["resources"],
    summary: `All ${plural}, by name`,
    request: { query: z.object({ limit: limit(100), cursor: Cursor }) },
    responses: { 200: json(pageOf(StoredResourceView), "A page"), ...problems },
  });
  app.openapi(list, (c) => {
    const page = pageByKey(seenResources(c, resources, kind), (item) => item.name, {
      list: plural,
      ...c.req.valid("query"),
    });
    return c.json(page, 200);
  });

  const get = createRoute({
    ...view,
    method: "get",
    path: `/v1/${plural}/{name}`,
    operationId: `get${titled.one}`,
    tags: ["resources"],
    summary: `One ${kind}`,
    request: one,
    responses: { 200: json(ResourceDetail, `The ${kind}`), ...problems },
  });
  app.openapi(get, (c) => {
    const { name } = c.req.valid("param");
    const found = seenResources(c, resources, kind).find((resource) => resource.name === name);
    if (found === undefined) throw unknownResource(c, resources, { kind, name });
    return c.json(kind === "pipeline" ? { ...found, versions: resources.versions(name) } : found, 200);
  });

  const remove = createRoute({
    ...(kind === "pipeline"
      ? needsOnPipeline("resources:delete")
      : needs(kind === "access-policy" ? "access:edit" : "resources:delete")),
    method: "delete",
    path: `/v1/${plural}/{name}`,
    operationId: `delete${titled.one}`,
    tags: ["resources"],
    summary: `Delete one ${kind}`,
    request: one,
    responses: { 200: json(AppliedChange, "What changed"), ...problems },
  });
  app.openapi(remove, async (c) => {
    const { name } = c.req.valid("param");
    if (kind === "pipeline") {
      refuseUnseenPipeline(c, resources, name);
      await demand(c, "resources:delete", onPipeline(name));
    }
    return c.json(await resources.remove(kind, name, c.get("caller")), 200);
  });
}

/** A document that changes who a pipeline belongs to, or where it runs, needs the right before and after. */
function needsOf({ kind, name, before, after }: AskedChange, resources: ResourceService): Need[] {
  if (kind === "access-policy") return [{ right: "access:edit", target: null }];
  if (kind !== "pipeline") return [{ right: "resources:apply", target: null }];
  const target = onPipeline(name);
  return [before, after].flatMap((spec) =>
    spec === undefined
      ? []
      : [{ right: "resources:apply" as const, target, facts: resources.factsOf(spec as PipelineSpec) }],
  );
}

/** A dry run changes nothing, so no second person is asked for one. */
async function demandOfApply(c: Context<ApiEnv>, asked: readonly Need[], dryRun: boolean): Promise<void> {
  await demandAll(c, dryRun ? asked.filter((need) => decideOn(c, need).verdict !== "with-approval") : asked);
}
