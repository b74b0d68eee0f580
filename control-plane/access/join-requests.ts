/** Agents whose token asks for a person's approval: who waits under which name, and what was decided. */
import type { Logger } from "pino";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import type { Clock } from "../../shared/system.ts";
import type { JoinRequests } from "../api/services.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import { type AgentName, agentId } from "./spiffe.ts";

/** Bucket `agents`, key `joining.<environment>.<name>`. */
export const JoinRequestRecord = z.object({
  v: z.literal(1),
  environment: Name,
  name: Name,
  spkiSha256: z.string(),
  /** Of the host, as the gateway saw it. */
  address: z.string(),
  /** Whether it is an agent that was enrolled, and comes back with its key after its certificate has expired. */
  recovers: z.boolean(),
  askedAtMs: z.int(),
  /** Of the token, after which the agent could not come back for its certificate. */
  expiresAtMs: z.int(),
  decision: z.object({ approved: z.boolean(), by: z.string(), atMs: z.int() }).nullable(),
});
export type JoinRequestRecord = z.infer<typeof JoinRequestRecord>;

export const JOINING_PREFIX = "joining.";

export interface JoinRequest {
  environment: string;
  name: string;
  spkiSha256: string;
  address: string;
  expiresAtMs: number;
  recovers: boolean;
  nowMs: number;
}

export type JoinVerdict = "waiting" | "approved" | "denied" | "taken";

/** What a request does to what is stored under its name. Pure. `next`: undefined when it stays as it is. */
export function ask(
  current: JoinRequestRecord | undefined,
  request: JoinRequest,
): { verdict: JoinVerdict; next?: JoinRequestRecord } {
  const { nowMs, ...about } = request;
  const stands = current !== undefined && nowMs < current.expiresAtMs;
  const isSameKey = stands && current.spkiSha256 === request.spkiSha256;
  if (isSameKey && current.recovers === request.recovers) {
    if (current.decision === null) return { verdict: "waiting" };
    return { verdict: current.decision.approved ? "approved" : "denied" };
  }
  // What a person looks at must not change under their eyes: another key waits until the first was denied.
  if (stands && !isSameKey && current.decision?.approved !== false) return { verdict: "taken" };
  return { verdict: "waiting", next: { v: 1, ...about, askedAtMs: nowMs, decision: null } };
}

/** `sha256:` and the hexadecimal SHA-256 of the public key's SPKI: agent and control plane show the same. */
export function fingerprint(spkiSha256: string): string {
  return `sha256:${spkiSha256}`;
}

export interface JoinRequestService extends JoinRequests {
  /** Resolves when a person has approved this key. @throws InsituError `approval.waiting`, `auth.denied`, `agent.name-taken`. */
  demand(request: Omit<JoinRequest, "nowMs">): Promise<void>;
  /** Uses the approval up. @throws InsituError `conflict` when somebody else was faster. */
  consume(agent: AgentName & { spkiSha256: string }): Promise<void>;
}

export function createJoinRequests(deps: {
  kv: KvStore<JoinRequestRecord>;
  clock: Clock;
  log: Logger;
}): JoinRequestService {
  const { kv, clock, log } = deps;
  return {
    async demand(request) {
      let verdict: JoinVerdict = "waiting";
      const nowMs = clock.wallMs();
      await changeKv(kv, keyOf(request), (current) => {
        const asked = ask(current, { ...request, nowMs });
        verdict = asked.verdict;
        return asked.next;
      });
      refuse(verdict, request);
    },

    async consume(agent) {
      const entry = await kv.get(keyOf(agent));
      if (entry?.value.spkiSha256 !== agent.spkiSha256 || entry.value.decision?.approved !== true)
        throw new InsituError("conflict", "the approval was used already: ask again", { retryable: true });
      await kv.delete(keyOf(agent), entry.revision);
    },

    async list() {
      const nowMs = clock.wallMs();
      return (await kv.list())
        .map(({ value }) => value)
        .filter(({ expiresAtMs, decision }) => expiresAtMs > nowMs && decision === null)
        .map((record) => ({
          environment: record.environment,
          name: record.name,
          fingerprint: fingerprint(record.spkiSha256),
          address: record.address,
          recovers: record.recovers,
          askedAtMs: record.askedAtMs,
          expiresAtMs: record.expiresAtMs,
        }))
        .sort((a, b) => (agentId(a) < agentId(b) ? -1 : 1));
    },

    async decide({ by, approved, ...about }) {
      const atMs = clock.wallMs();
      await changeKv(kv, keyOf(about), (current) => {
        if (current === undefined || atMs >= current.expiresAtMs)
          throw new InsituError("not-found", `no agent waits for approval as ${agentId(about)}`);
        if (fingerprint(current.spkiSha256) !== about.fingerprint) {
          throw new InsituError(
            "conflict",
            `the agent that waits as ${agentId(about)} has another key, ${fingerprint(current.spkiSha256)}: compare it with what the agent's own log says`,
          );
        }
        return { ...current, decision: { approved, by, atMs } };
      });
      const facts = { agentId: agentId(about), fingerprint: about.fingerprint, by };
      log.info(facts, approved ? "agent approved" : "agent denied");
    },
  };
}

function refuse(verdict: JoinVerdict, agent: AgentName & { spkiSha256: string }): void {
  const id = agentId(agent);
  const details = { agentId: id };
  switch (verdict) {
    case "approved":
      return;
    case "waiting":
      throw new InsituError(
        "approval.waiting",
        `${id} waits for approval with the key ${fingerprint(agent.spkiSha256)}: insitu agents approve ${id}`,
        { retryable: true, details },
      );
    case "denied":
      throw new InsituError("auth.denied", `a person has denied ${id} to join with this key`, { details });
    case "taken":
      throw new InsituError("agent.name-taken", `an agent with another key waits for approval as ${id}`, {
        details,
      });
  }
}

function keyOf({ environment, name }: AgentName): string {
  return `${environment}.${name}`;
}
