/** `insitu approvals list|show|approve|deny`: requests that need a second person. */
import type { ApprovalDetail, ApprovalView } from "../../api/schemas.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { fieldLines } from "../output.ts";
import { type Hue, instant, oneLine, printable } from "../text.ts";

export async function list(
  invocation: Invocation,
  _args: string[],
  { all }: { all?: boolean },
): Promise<number> {
  const { output } = invocation;
  const found = await (await invocation.client()).listApprovals(invocation.signal);
  const approvals = all ? found : found.filter(({ state }) => state === "waiting" || state === "approved");
  if (!output.people) {
    await output.data(approvals);
    return EXIT.ok;
  }
  if (approvals.length === 0) {
    await output.note(
      `Nothing that you asked for or could approve waits${all ? " or has waited" : "; --all shows what did"}.`,
    );
    return EXIT.ok;
  }
  await output.table<ApprovalView>(approvals, [
    { title: "APPROVAL", value: ({ id }) => id },
    { title: "STATE", value: ({ state }) => state, hue: ({ state }) => HUES[state] },
    { title: "ASKED BY", value: ({ requester }) => oneLine(requester) },
    { title: "NEEDS", value: needsText },
    { title: "REQUEST", value: ({ method, path }) => oneLine(`${method} ${path}`) },
    { title: "UNTIL", value: ({ expiresAtMs }) => instant(expiresAtMs) },
    { title: "DECIDED BY", value: ({ decision }) => oneLine(decision?.by ?? "") },
  ]);
  return EXIT.ok;
}

export async function show(invocation: Invocation, [id = ""]: string[]): Promise<number> {
  const { output, signal } = invocation;
  const approval = await (await invocation.client()).getApproval(id, signal);
  if (!output.people) await output.data(approval);
  else await write(invocation, approval);
  return EXIT.ok;
}

export async function approve(
  invocation: Invocation,
  [id = ""]: string[],
  { reason = "" }: { reason?: string },
): Promise<number> {
  return decide(invocation, id, { approve: true, reason });
}

export async function deny(
  invocation: Invocation,
  [id = ""]: string[],
  { reason = "" }: { reason?: string },
): Promise<number> {
  return decide(invocation, id, { approve: false, reason });
}

async function decide(
  invocation: Invocation,
  id: string,
  decision: { approve: boolean; reason: string },
): Promise<number> {
  const { output, signal } = invocation;
  const approval = await (await invocation.client()).decideApproval(id, decision, signal);
  if (!output.people) {
    await output.data(approval);
    return EXIT.ok;
  }
  const { requester, method, path, expiresAtMs } = approval;
  const request = oneLine(`${method} ${path}`);
  if (decision.approve) {
    await output.line(`${request} of ${oneLine(requester)} is approved`);
    await output.note(
      `${oneLine(requester)} sends the same request again before ${instant(expiresAtMs)}; it is good for one.`,
    );
  } else await output.line(`${request} of ${oneLine(requester)} is denied`);
  return EXIT.ok;
}

async function write({ output }: Invocation, approval: ApprovalDetail): Promise<void> {
  const { decision } = approval;
  const fields: [string, string][] = [
    ["approval", approval.id],
    ["state", approval.state],
    ["asked by", oneLine(approval.requester)],
    ["asked at", instant(approval.askedAtMs)],
    ["until", instant(approval.expiresAtMs)],
    ["needs", needsText(approval)],
    ["because", oneLine(approval.because)],
    ["request", oneLine(`${approval.method} ${approval.path}`)],
    ["digest", approval.digest],
  ];
  if (decision !== null) {
    const verb = decision.approved ? "approved" : "denied";
    const why = decision.reason === "" ? "" : `: ${oneLine(decision.reason)}`;
    fields.push([verb, `${instant(decision.atMs)} by ${oneLine(decision.by)}${why}`]);
  }
  if (approval.usedAtMs !== null) fields.push(["used", instant(approval.usedAtMs)]);
  for (const line of fieldLines(fields, output.paint)) await output.line(line);
  await output.line();
  for (const line of bodyLines(approval.body)) await output.line(line);
}

/** Documents as their author wrote them; anything else as JSON. */
function bodyLines(body: string): string[] {
  if (body === "") return [];
  const parsed: unknown = JSON.parse(body);
  const documents = (parsed as { documents?: { file: string; text: string }[] }).documents;
  if (!Array.isArray(documents)) return printable(JSON.stringify(parsed, null, 2)).split("\n");
  const { attachments = {} } = parsed as { attachments?: Record<string, string> };
  const files = [...documents.map(({ file, text }) => [file, text] as const), ...Object.entries(attachments)];
  return files.flatMap(([file, text]) => [`# ${oneLine(file)}`, ...printable(text).split("\n")]);
}

function needsText({ needs }: ApprovalView): string {
  return needs.map(({ right, over }) => oneLine(`${right} on ${over}`)).join(", ");
}

const HUES: Record<ApprovalView["state"], Hue> = {
  waiting: "yellow",
  approved: "green",
  denied: "red",
  expired: "yellow",
  used: "green",
};
