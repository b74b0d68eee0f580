/** What a caller may not view is answered like what is not there: with the same words, and no hint of its name. */
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import type { Kind } from "../../shared/model/spec.ts";
import type { Right } from "../access/rights.ts";
import type { ApiEnv } from "./context.ts";
import { covers, onPipeline } from "./guard.ts";
import type { ResourceService, StoredResource } from "./services.ts";

/** Those of a kind that the caller may view. */
export function seenResources(c: Context<ApiEnv>, resources: ResourceService, kind: Kind): StoredResource[] {
  return resources
    .list(kind)
    .filter(({ name }) => covers(c, "resources:view", kind === "pipeline" ? onPipeline(name) : null));
}

export function unknownResource(
  c: Context<ApiEnv>,
  resources: ResourceService,
  asked: { kind: Kind; name: string },
): InsituError {
  const known = seenResources(c, resources, asked.kind).map((resource) => resource.name);
  return new InsituError("not-found", unknownName({ ...asked, known }));
}

/** @throws InsituError `not-found` when the caller may view no pipeline of this name */
export function refuseUnseenPipeline(c: Context<ApiEnv>, resources: ResourceService, name: string): void {
  if (reachesAll(c, "resources:view")) return;
  const seen = covers(c, "resources:view", onPipeline(name)) && resources.get("pipeline", name) !== undefined;
  if (!seen) throw unknownResource(c, resources, { kind: "pipeline", name });
}

/** Whether the caller has the right over every pipeline that there is or will be: no need to look which one it is. */
export function reachesAll(c: Context<ApiEnv>, right: Right): boolean {
  return c.get("judge").reach(c.get("principal"), right) === null;
}
