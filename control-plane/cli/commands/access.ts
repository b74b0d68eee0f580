/** `insitu auth …` and `insitu tokens …`. */
import { InsituError } from "../../../shared/errors.ts";
import { RIGHTS } from "../../access/rights.ts";
import type { ApiTokenView, WhoAmIView } from "../../api/schemas.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseDuration } from "../invocation.ts";
import { type Hue, instant, oneLine } from "../text.ts";

export async function whoAmI(invocation: Invocation): Promise<number> {
  const { output, signal } = invocation;
  const client = await invocation.client();
  const me = await client.whoAmI(signal);
  if (!output.people) await output.data(me);
  else for (const line of linesOf(me)) await output.line(line);
  return EXIT.ok;
}

const CAN_I = {
  yes: { says: "yes", exit: EXIT.ok },
  no: { says: "no", exit: EXIT.notAllowed },
  "with-approval": { says: "yes, once a second person has approved it", exit: EXIT.needsApproval },
} as const;

/** Exit 0 for yes, 6 for no and 9 for not alone, so that a script may ask before it begins. */
export async function canI(
  invocation: Invocation,
  [right = "", target]: string[],
  options: { pipeline?: string; environment?: string; asGroup?: string } = {},
): Promise<number> {
  const known = RIGHTS.find((one) => one === right);
  if (known === undefined) {
    throw new InsituError("request.invalid", `there is no right "${right}"; there are ${RIGHTS.join(", ")}`);
  }
  const site = /^env(?:ironment)?s?\/(.*)$/.exec(target ?? "")?.[1];
  const asked = {
    right: known,
    pipeline: options.pipeline ?? (site === undefined ? target?.replace(/^pipelines?\//, "") : undefined),
    environment: options.environment ?? site,
    as_group: options.asGroup,
  };
  const client = await invocation.client();
  const answer = await client.canI(asked, invocation.signal);
  const { output } = invocation;
  const { says, exit } = CAN_I[answer.verdict];
  if (output.people) {
    await output.line(says);
    await output.note(answer.because);
  } else await output.data(answer);
  return exit;
}

export async function createToken(
  invocation: Invocation,
  [name = ""]: string[],
  { role, pipeline, group, ttl }: { role: string; pipeline?: string[]; group?: string[]; ttl: string },
): Promise<number> {
  const request = {
    name,
    role,
    pipelines: pipeline ?? null,
    groups: group ?? [],
    ttlMs: parseDuration(ttl, "--ttl"),
  };
  const client = await invocation.client();
  const token = await client.createToken(request, invocation.signal);
  const { output } = invocation;
  if (!output.people) {
    await output.data(token);
    return EXIT.ok;
  }
  await output.line(token.token);
  await output.note(
    `${role} ${over(token.pipelines)}, valid until ${instant(token.expiresAtMs)}. It is not shown again.
Put it into INSITU_TOKEN; \`insitu tokens revoke ${name}\` ends it.`,
  );
  return EXIT.ok;
}

export async function listTokens(invocation: Invocation): Promise<number> {
  const client = await invocation.client();
  const tokens = await client.listTokens(invocation.signal);
  const { output, clock } = invocation;
  if (!output.people) {
    await output.data(tokens);
    return EXIT.ok;
  }
  if (tokens.length === 0) {
    await output.note(
      "There is none but the server's own. `insitu tokens create NAME --role ROLE` makes one.",
    );
    return EXIT.ok;
  }
  const nowMs = clock.wallMs();
  await output.table(tokens, [
    { title: "TOKEN", value: (token) => token.name },
    { title: "ROLE", value: (token) => token.role },
    { title: "OVER", value: (token) => over(token.pipelines) },
    { title: "GROUPS", value: (token) => token.groups.join(", ") },
    { title: "STATE", value: (token) => stateOf(token, nowMs), hue: (token) => stateHue(token, nowMs) },
    { title: "UNTIL", value: (token) => instant(token.expiresAtMs) },
    { title: "LAST USED", value: ({ lastUsedAtMs: at }) => (at === null ? "never" : instant(at)) },
    { title: "MADE BY", value: (token) => token.createdBy },
  ]);
  return EXIT.ok;
}

export async function revokeToken(invocation: Invocation, [name = ""]: string[]): Promise<number> {
  const client = await invocation.client();
  const token = await client.revokeToken(name, invocation.signal);
  const { output } = invocation;
  if (output.people) await output.line(`token ${token.name} is revoked`);
  else await output.data(token);
  return EXIT.ok;
}

function linesOf({ name, display, groups, grants }: WhoAmIView): string[] {
  const who = display === undefined ? name : `${name} (${oneLine(display)})`;
  const held = grants.map(({ role, pipelines }) => `${who}  ${role}  ${over(pipelines)}`);
  return [
    ...(held.length > 0
      ? held
      : [`${who}  no role here; groups are given some with --oidc-role of the server`]),
    ...(groups.length > 0 ? [`${who}  in  ${groups.map(oneLine).join(", ")}`] : []),
  ];
}

function over(pipelines: readonly string[] | null): string {
  return pipelines === null ? "everything" : `on ${pipelines.join(", ")}`;
}

function stateOf(token: ApiTokenView, nowMs: number): string {
  if (token.revokedAtMs !== null) return "revoked";
  return nowMs < token.expiresAtMs ? "good" : "expired";
}

function stateHue(token: ApiTokenView, nowMs: number): Hue {
  return stateOf(token, nowMs) === "good" ? "green" : "yellow";
}
