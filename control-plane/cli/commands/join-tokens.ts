/** `insitu join-token …`. */
import { InsituError } from "../../../shared/errors.ts";
import type { JoinTokenView } from "../../api/schemas.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseCount, parseDuration } from "../invocation.ts";
import { fieldLines } from "../output.ts";
import { type Hue, instant, oneLine } from "../text.ts";

const HUES: Record<JoinTokenView["state"], Hue> = {
  valid: "green",
  used: "dim",
  expired: "dim",
  revoked: "red",
};

export async function create(
  invocation: Invocation,
  _args: string[],
  {
    environment,
    ttl,
    uses,
    approval,
  }: { environment: string; ttl: string; uses: string; approval?: boolean },
): Promise<number> {
  const request = {
    environment,
    ttlMs: parseDuration(ttl, "--ttl"),
    uses: parseCount(uses, "--uses"),
    approval: approval === true,
  };
  const client = await invocation.client();
  const token = await client.createJoinToken(request, invocation.signal);
  const { output } = invocation;
  if (!output.people) {
    await output.data(token);
    return EXIT.ok;
  }
  await output.line(token.token);
  await output.note(`Valid until ${instant(token.expiresAtMs)}; its id is ${token.id}. On a host at ${environment}:
  insitu-agent run --state-dir ./state --join-token -     (paste the token, then Ctrl-D)`);
  return EXIT.ok;
}

export async function list(
  invocation: Invocation,
  _args: string[],
  { environment, all }: { environment?: string; all?: boolean },
): Promise<number> {
  const { output } = invocation;
  const client = await invocation.client();
  const tokens = (await client.listJoinTokens(invocation.signal))
    .filter((token) => environment === undefined || token.environment === environment)
    .filter((token) => all === true || token.state === "valid")
    .sort((a, b) => b.createdAtMs - a.createdAtMs);
  if (!output.people) {
    await output.data(tokens);
    return EXIT.ok;
  }
  if (tokens.length === 0) {
    await output.note(
      all === true
        ? "There is no join token of the last 31 days."
        : "No join token lets anybody in now. `insitu join-token list --all` shows those that did.",
    );
    return EXIT.ok;
  }
  await output.table(tokens, [
    { title: "ID", value: (token) => token.id },
    { title: "ENVIRONMENT", value: (token) => token.environment },
    { title: "STATE", value: (token) => token.state, hue: (token) => HUES[token.state] },
    { title: "LEFT", value: (token) => `${token.usesLeft}/${token.uses}`, right: true },
    { title: "APPROVAL", value: (token) => (token.approval ? "yes" : "-") },
    { title: "ENDS", value: (token) => instant(token.expiresAtMs) },
    { title: "MADE BY", value: (token) => oneLine(token.createdBy) },
  ]);
  return EXIT.ok;
}

export async function show(invocation: Invocation, [id = ""]: string[]): Promise<number> {
  const client = await invocation.client();
  const token = await client.getJoinToken(nonEmpty(id), invocation.signal);
  const { output } = invocation;
  if (!output.people) await output.data(token);
  else for (const line of fieldLines(fieldsOf(token), output.paint)) await output.line(line);
  return EXIT.ok;
}

export async function revoke(invocation: Invocation, [id = ""]: string[]): Promise<number> {
  const client = await invocation.client();
  const token = await client.revokeJoinToken(nonEmpty(id), invocation.signal);
  const { output } = invocation;
  if (!output.people) {
    await output.data(token);
    return EXIT.ok;
  }
  await output.line(
    token.revoked
      ? `join token ${token.id} is revoked`
      : `join token ${token.id} had expired already, ${instant(token.expiresAtMs)}`,
  );
  if (token.usedBy.length > 0) {
    const agents = [...new Set(token.usedBy.map(({ agent }) => oneLine(agent)))].join(", ");
    await output.note(`With it came ${agents}: what joined stays, until \`insitu agents revoke\`.`);
  }
  return EXIT.ok;
}

function nonEmpty(id: string): string {
  if (/^[0-9a-f]{1,64}$/.test(id)) return id;
  throw new InsituError(
    "request.invalid",
    `${JSON.stringify(id.slice(0, 20))} is no id of a join token: \`insitu join-token list\` shows them. The token itself is never needed here: keep it out of command lines`,
  );
}

function fieldsOf(token: JoinTokenView): [string, string][] {
  const uses = token.usedBy.map(
    ({ agent, fingerprint, atMs }) => `${oneLine(agent)} at ${instant(atMs)}, with the key ${fingerprint}`,
  );
  return [
    ["join token", token.id],
    ["state", token.state],
    ["environment", token.environment],
    ["uses left", `${token.usesLeft} of ${token.uses}`],
    ["approval", token.approval ? "a person approves each agent" : "-"],
    ["made", `${instant(token.createdAtMs)} by ${oneLine(token.createdBy)}`],
    ["ends", instant(token.expiresAtMs)],
    ...(token.revoked
      ? [["revoked", `${instant(token.revoked.atMs)} by ${oneLine(token.revoked.by)}`] as [string, string]]
      : []),
    ["used by", uses.join("\n") || "-"],
  ];
}
