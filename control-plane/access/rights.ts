/**
 * What a caller may do. Pure: a role is a fixed set of rights, a grant is a role over everything or over some pipelines.
 *
 * Only what belongs to a pipeline can be reached through a grant that names pipelines: the pipeline, its runs, their
 * logs. Sites, datasets, agents and tokens belong to none, so such a grant never covers them.
 */

import { z } from "zod";

/** As access policies and identity providers write it. */
export const GroupName = z
  .string()
  .regex(/^[\w.@:/ -]{1,128}$/, "1 to 128 letters, digits, spaces and _.@:/-");

export const RIGHTS = [
  "resources:view",
  "resources:apply",
  "resources:delete",
  "runs:view",
  "runs:start",
  "runs:cancel",
  "runs:resolve",
  "logs:read",
  "fleet:view",
  "agents:admit",
  "agents:revoke",
  "agents:drain",
  "tokens:manage",
  "authority:manage",
  "access:edit",
  "poison:manage",
  "audit:read",
] as const;
export type Right = (typeof RIGHTS)[number];

/** Rights over what belongs to a pipeline. The others are had over everything, or not at all. */
export const PIPELINE_RIGHTS: readonly Right[] = [
  "resources:view",
  "resources:apply",
  "resources:delete",
  "runs:view",
  "runs:start",
  "runs:cancel",
  "runs:resolve",
  "logs:read",
];
export const ENVIRONMENT_RIGHTS: readonly Right[] = ["agents:admit", "agents:revoke", "agents:drain"];

const VIEW = ["resources:view", "runs:view", "fleet:view"] as const;

/** `resolve` decides whether a step runs twice: it is a right of its own, and no runner's. */
const ROLE_RIGHTS = {
  /** What access policies give, and nothing else. */
  none: [],
  viewer: VIEW,
  runner: [...VIEW, "runs:start", "runs:cancel", "logs:read"],
  operator: [...VIEW, "runs:start", "runs:cancel", "runs:resolve", "logs:read", "agents:drain"],
  editor: [...VIEW, "resources:apply", "resources:delete"],
  "agent-admin": [...VIEW, "agents:admit", "agents:revoke", "agents:drain"],
  auditor: [...VIEW, "logs:read", "audit:read"],
  admin: RIGHTS,
} as const satisfies Record<string, readonly Right[]>;

export type Role = keyof typeof ROLE_RIGHTS;
export const ROLES = Object.keys(ROLE_RIGHTS) as [Role, ...Role[]];

export interface Grant {
  role: Role;
  /** Names of pipelines; null: over everything. */
  pipelines: readonly string[] | null;
}

export interface Principal {
  name: string;
  grants: readonly Grant[];
  /** What access policies can speak of. */
  groups?: readonly string[];
  /** Of a token: who made it. The two are one person where a second one is asked for. */
  madeBy?: string;
  /** The server's own token. */
  local?: true;
  /** For people to read, such as an e-mail address. Nothing is decided by it. */
  display?: string;
}

/** @param pipeline null asks for the right over everything */
export function may(principal: Principal, right: Right, pipeline: string | null): boolean {
  return principal.grants.some(
    (grant) =>
      gives(grant, right) &&
      (grant.pipelines === null || (pipeline !== null && grant.pipelines.includes(pipeline))),
  );
}

/** The pipelines over which the caller has the right; null: all there are or will be. */
export function reach(principal: Principal, right: Right): readonly string[] | null {
  if (may(principal, right, null)) return null;
  const grants = principal.grants.filter((grant) => gives(grant, right));
  return [...new Set(grants.flatMap(({ pipelines }) => pipelines ?? []))].sort();
}

/** For people: `runner on nightly; viewer`. */
export function rolesOf({ grants }: Principal): string {
  const held = grants.map(({ role, pipelines }) =>
    pipelines === null ? role : `${role} on ${pipelines.join(", ")}`,
  );
  return held.join("; ") || "nobody here";
}

function gives({ role }: Grant, right: Right): boolean {
  return (ROLE_RIGHTS[role] as readonly Right[]).includes(right);
}
