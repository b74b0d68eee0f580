/** `insitu agents …`. */
import { InsituError } from "../../../shared/errors.ts";
import type { AgentView, JoinRequestView } from "../../api/schemas.ts";
import { cordonState, drainLine, refuseOddId } from "../agent-lines.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { fieldLines } from "../output.ts";
import { bytes, duration, type Hue, instant, oneLine } from "../text.ts";

export async function list(
  invocation: Invocation,
  _args: string[],
  { environment }: { environment?: string },
): Promise<number> {
  const { output, clock } = invocation;
  const client = await invocation.client();
  const all = await client.listAgents(invocation.signal);
  const agents = environment === undefined ? all : all.filter((agent) => agent.environment === environment);
  if (!output.people) {
    await output.data(agents);
    return EXIT.ok;
  }
  const waiting = (await joinRequests(client, invocation.signal)).filter(
    (request) => environment === undefined || request.environment === environment,
  );
  for (const { environment: of, name, fingerprint, recovers } of waiting)
    await output.line(
      `${of}/${name} is waiting for approval${recovers ? " to come back after its certificate expired" : ""}, with the key ${fingerprint}`,
    );
  if (waiting.length > 0) await output.line("");
  if (agents.length === 0) {
    if (waiting.length > 0) return EXIT.ok;
    await output.note(
      "No agent has joined yet. `insitu join-token create --environment NAME` lets one join.",
    );
    return EXIT.ok;
  }
  const nowMs = clock.wallMs();
  await output.table(agents, [
    { title: "AGENT", value: (agent) => agent.id },
    { title: "STATE", value: stateOf, hue: stateHue },
    { title: "FREE", value: (agent) => `${agent.freeSlots}/${agent.slots}`, right: true },
    { title: "DATASETS", value: (agent) => agent.datasets.join(", ") || "-" },
    { title: "LAST SEEN", value: (agent) => ago(agent.lastSeenMs, nowMs) },
    { title: "VERSION", value: (agent) => agent.software },
  ]);
  return EXIT.ok;
}

/** None from a server that does not know of them yet. */
async function joinRequests(
  client: Awaited<ReturnType<Invocation["client"]>>,
  signal: AbortSignal,
): Promise<JoinRequestView[]> {
  try {
    return await client.listJoinRequests(signal);
  } catch (err) {
    if (err instanceof InsituError && err.code === "not-found") return [];
    throw err;
  }
}

export async function show(invocation: Invocation, [id = ""]: string[]): Promise<number> {
  refuseOddId(id);
  const client = await invocation.client();
  const agent = await client.getAgent(id, invocation.signal);
  const { output, clock } = invocation;
  if (!output.people) await output.data(agent);
  else for (const line of fieldLines(fieldsOf(agent, clock.wallMs()), output.paint)) await output.line(line);
  return EXIT.ok;
}

export async function revoke(
  invocation: Invocation,
  [id = ""]: string[],
  { reason }: { reason: string },
): Promise<number> {
  refuseOddId(id);
  const client = await invocation.client();
  const agent = await client.revokeAgent(id, reason, invocation.signal);
  const { output } = invocation;
  if (!output.people) {
    await output.data(agent);
    return EXIT.ok;
  }
  await output.line(`agent ${agent.id} is revoked`);
  await output.note(
    "What it holds is given up when its leases run out. The join tokens that it came with are void; see docs/runbooks/revoke-an-agent.md.",
  );
  return EXIT.ok;
}

export async function approve(
  invocation: Invocation,
  args: string[],
  flags: { fingerprint?: string },
): Promise<number> {
  return await decide(invocation, args, { ...flags, isApproved: true });
}

export async function deny(
  invocation: Invocation,
  args: string[],
  flags: { fingerprint?: string },
): Promise<number> {
  return await decide(invocation, args, { ...flags, isApproved: false });
}

async function decide(
  invocation: Invocation,
  [id = ""]: string[],
  { fingerprint, isApproved }: { fingerprint?: string; isApproved: boolean },
): Promise<number> {
  refuseOddId(id);
  const client = await invocation.client();
  const waiting = await client.listJoinRequests(invocation.signal);
  const request = waiting.find(({ environment, name }) => `${environment}/${name}` === id);
  if (request === undefined) {
    const others = waiting.map(({ environment, name }) => `${environment}/${name}`).join(", ") || "nobody";
    throw new InsituError("not-found", `no agent waits for approval as ${id}; there waits ${others}`);
  }
  const asked = { ...request, fingerprint: fingerprint ?? request.fingerprint };
  await client.decideJoinRequest(asked, isApproved, invocation.signal);
  const { output } = invocation;
  if (!output.people) await output.data({ agent: id, fingerprint: asked.fingerprint, approved: isApproved });
  else if (isApproved)
    await output.line(
      `agent ${id} with the key ${asked.fingerprint} is approved; it joins within half a minute`,
    );
  else await output.line(`agent ${id} with the key ${asked.fingerprint} is denied`);
  return EXIT.ok;
}

function fieldsOf(agent: AgentView, nowMs: number): [string, string][] {
  const leases = agent.leases.map(
    (lease) => `${lease.stepId} of run ${lease.runId}, attempt ${lease.attempt}, epoch ${lease.epoch}`,
  );
  // A server of an earlier release says nothing of them.
  const { unsigned = 0, forged = 0 } = agent.refusedReports ?? {};
  return [
    ["agent", agent.id],
    ["state", stateOf(agent)],
    ["host", oneLine(agent.hostname)],
    ["version", oneLine(agent.software)],
    ["last seen", ago(agent.lastSeenMs, nowMs)],
    ["connected since", agent.connectedSinceMs === null ? "-" : instant(agent.connectedSinceMs)],
    ["slots", `${agent.freeSlots} of ${agent.slots} free`],
    ["executors", agent.executors.join(", ")],
    ["datasets", agent.datasets.join(", ") || "-"],
    [
      "labels",
      Object.entries(agent.labels)
        .map(([key, value]) => oneLine(`${key}=${value}`))
        .join(", ") || "-",
    ],
    ["site policy", policyOf(agent)],
    ...sandboxFields(agent.sandbox),
    ["leases", leases.join("\n") || "-"],
    ["clock skew", agent.clockSkewMs === null ? "-" : `${agent.clockSkewMs} ms`],
    ["not sent yet", bytes(agent.spoolBytes)],
    ["logs given up", bytes(agent.droppedLogBytes)],
    ["reports", agent.reports ?? "unsigned"],
    ["reports refused", `${unsigned} not signed, ${forged} not as signed`],
    ["offers refused", String(agent.refusedOffers ?? 0)],
    [
      "ledger",
      agent.ledgerTrouble ? `CHANGED: ${oneLine(agent.ledgerTrouble)}` : "as the agent remembers it",
    ],
    ["joined", instant(agent.enrolledAtMs)],
    ["certificate ends", instant(agent.certificateNotAfterMs)],
    ...(agent.cordon ? [["cordoned", cordonOf(agent)] as [string, string]] : []),
    ...(agent.revoked ? [["revoked", revocationOf(agent.revoked)] as [string, string]] : []),
  ];
}

function policyOf({ sitePolicy }: AgentView): string {
  // A server of an earlier release says nothing of it.
  if (!sitePolicy) return "-";
  const { digest, trouble } = sitePolicy;
  return [digest || "none in force", oneLine(trouble)].filter((line) => line !== "").join("\n");
}

function revocationOf({ atMs, by, reason }: NonNullable<AgentView["revoked"]>): string {
  return `${instant(atMs)} by ${oneLine(by)}: ${oneLine(reason)}`;
}

function cordonOf(agent: AgentView): string {
  const { atMs, by, reason, state } = agent.cordon!;
  const why = reason === "" ? "" : `: ${oneLine(reason)}`;
  const heard = state === "not-heard" ? "the agent has not heard of it yet" : "";
  return [`${instant(atMs)} by ${oneLine(by)}${why}`, drainLine(agent) || heard]
    .filter((line) => line !== "")
    .join("\n");
}

function sandboxFields(sandbox: AgentView["sandbox"]): [string, string][] {
  if (!sandbox) return [["sandbox", "unknown: the agent does not say"]];
  const list = (words: Record<string, string>): string =>
    Object.entries(words)
      .map(([limit, word]) => oneLine(`${limit}: ${word}`))
      .sort()
      .join("\n");
  if (!sandbox.boxes) return [["sandbox", oneLine(sandbox.summary)]];
  const notHeld = list(sandbox.notHeld);
  return [
    ["sandbox", oneLine(sandbox.summary)],
    ["limits", list(sandbox.held)],
    ["way out", sandbox.letsOut ? "to the targets of a step that the site allows" : "none"],
    ["containers", sandbox.runsContainers ? "steps run images that were imported at the site" : "none"],
    ...(notHeld === "" ? [] : [["not limited", notHeld] as [string, string]]),
  ];
}

function stateOf(agent: AgentView): string {
  // A server of an earlier release says nothing of it.
  if (agent.revoked) return `revoked by ${oneLine(agent.revoked.by)}: ${oneLine(agent.revoked.reason)}`;
  const cordon = cordonState(agent.cordon);
  if (!agent.connected) return cordon === "" ? "away" : `away, ${cordon}`;
  if (cordon !== "") return cordon;
  return agent.notTakingWork === ""
    ? "connected"
    : `connected, takes no work: ${oneLine(agent.notTakingWork)}`;
}

function stateHue(agent: AgentView): Hue {
  if (!agent.connected) return "red";
  if (agent.cordon) return "yellow";
  return agent.notTakingWork === "" ? "green" : "yellow";
}

function ago(atMs: number | null, nowMs: number): string {
  return atMs === null ? "never" : `${duration(nowMs - atMs)} ago`;
}
