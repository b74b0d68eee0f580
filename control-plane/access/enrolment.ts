/** How an agent gets its identity: a join token and a certificate request for a certificate. */
import { type ErrorCode, InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { type AgentRegistry, refuseTakenName } from "../fleet/agent-registry.ts";
import type { JoinRequestService } from "./join-requests.ts";
import type { JoinTokenService } from "./join-tokens.ts";
import type { Pki } from "./pki.ts";
import { type AgentName, agentId } from "./spiffe.ts";

export interface Enrolled {
  agent: AgentName;
  certificatePem: string;
  notAfterMs: number;
}

/** For how long certificates of an environment's agents are good; undefined: as the authority has it. */
export type ValidFor = (environment: string) => number | undefined;

export interface EnrolmentDeps {
  tokens: JoinTokenService;
  registry: AgentRegistry;
  pki: Pki;
  validForMs?: ValidFor | undefined;
  joinRequests: Pick<JoinRequestService, "demand">;
}

/** With which the registry says that it has written nothing. */
const REFUSALS: ReadonlySet<ErrorCode> = new Set(["agent.name-taken", "auth.denied"]);

/**
 * Enrols one agent. Durable when it resolves.
 *
 * A use of the token is spent first and the agent registered second. Whoever crashes in between comes again with
 * the same key: its use is remembered by name and key, so it costs no second one. Only a registration that is
 * known to have failed gives the use back.
 *
 * @throws InsituError `token.invalid`, `request.invalid` (name, certificate request), `agent.name-taken`,
 *   `auth.denied` (a key that was revoked or denied), `approval.waiting` (come again), `store.unavailable` (try again, with the same key).
 */
export async function enrol(
  deps: EnrolmentDeps,
  request: { secret: string; agentName: string; csrDer: Uint8Array; address: string },
): Promise<Enrolled> {
  const { tokens, registry, pki } = deps;
  // The token comes first: without one, nothing that costs time is done and nothing is told.
  const { environment, approval, expiresAtMs } = await tokens.inspect(request.secret);
  const name = parseName(request.agentName);
  const agent: AgentName = { environment, name };
  const key = await pki.readRequest(request.csrDer);
  const current = await registry.stored(agentId(agent));
  refuseTakenName(agent, key.spkiSha256, current);

  const claim = { agentName: name, spkiSha256: key.spkiSha256 };
  await tokens.redeem(request.secret, claim, current?.removedAtMs ?? null);
  // Enrolled already, and the answer was lost: what was approved once is not asked for again.
  const isEnrolled = current?.removedAtMs === null && current.spkiSha256 === key.spkiSha256;
  if (approval && !isEnrolled) {
    const { address } = request;
    await deps.joinRequests.demand({
      ...agent,
      spkiSha256: key.spkiSha256,
      address,
      expiresAtMs,
      recovers: false,
    });
  }
  const certificate = await pki.issueAgentCertificate(agent, key, deps.validForMs?.(environment));
  try {
    await registry.register(agent, certificate);
  } catch (err) {
    if (err instanceof InsituError && REFUSALS.has(err.code)) await tokens.release(request.secret, claim);
    throw err;
  }
  return { agent, certificatePem: certificate.certificatePem, notAfterMs: certificate.notAfterMs };
}

function parseName(text: string): string {
  const parsed = Name.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new InsituError(
    "request.invalid",
    `${JSON.stringify(text.slice(0, 80))} is no name for an agent: ${parsed.error.issues[0]?.message ?? "not a name"}`,
  );
}
