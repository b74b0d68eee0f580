/** Decides what an apply would change, and who would miss what a delete takes away. */
import { canonicalJson, digestOf } from "../../shared/model/canonical.ts";
import type { LocatedResource } from "../../shared/model/load-documents.ts";
import type { Kind, Resource } from "../../shared/model/spec.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import type { AppliedChange } from "../api/schemas.ts";
import type { StoredResource } from "../api/services.ts";

/** What is stored, by `kind/name`. */
export type StoredResources = ReadonlyMap<string, StoredResource>;

/** One change for each resource, in the order of the documents. Applying the same set again changes nothing. */
export function planApply(stored: StoredResources, incoming: readonly LocatedResource[]): AppliedChange[] {
  return incoming.map((resource) => {
    const { kind } = resource;
    const { name } = resource.spec;
    const before = stored.get(`${kind}/${name}`);
    const version = kind === "pipeline" || kind === "access-policy" ? digestOf(resource.spec) : null;
    const same =
      kind === "pipeline"
        ? before?.version === version
        : before !== undefined && canonicalJson(before.spec) === canonicalJson(resource.spec);
    if (before === undefined) return { kind, name, action: "created", version };
    if (!same) return { kind, name, action: kind === "pipeline" ? "new-version" : "updated", version };
    const signed = canonicalJson(before?.signatures ?? []) === canonicalJson(signaturesOf(resource));
    return { kind, name, action: signed ? "unchanged" : "updated", version };
  });
}

/** As the document says them: an apply without them takes them away. */
export function signaturesOf({ document }: LocatedResource): Envelope[] {
  return document.kind === "pipeline" ? (document.signatures ?? []) : [];
}

/**
 * The resources that name this one, as `kind name` in order. A delete is refused while there are any.
 *
 * Old versions of a pipeline do not count: only its newest can be started by name.
 */
export function usersOf(stored: StoredResources, kind: Kind, name: string): string[] {
  const users: string[] = [];
  for (const user of stored.values()) {
    // What is stored has passed the schema of its kind.
    if (uses({ kind: user.kind, spec: user.spec } as Resource, kind, name))
      users.push(`${user.kind} ${user.name}`);
  }
  return users.sort();
}

function uses(user: Resource, kind: Kind, name: string): boolean {
  if (user.kind === "dataset") return kind === "environment" && user.spec.environments.includes(name);
  if (user.kind !== "pipeline") return false;
  return user.spec.steps.some((step) => {
    if (kind === "dataset") return step.reads.includes(name) || step.writes.includes(name);
    if (kind === "environment") return step.environments.includes(name);
    return kind === "pool" && step.pools.includes(name);
  });
}
