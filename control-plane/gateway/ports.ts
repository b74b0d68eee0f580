/** What the gateway needs of the rest of the control plane. */
import type { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import type { LogSignature } from "../../shared/wire/log-signature.ts";
import type { ReportSignature } from "../../shared/wire/report-signature.ts";

/** `environment/name`, from the certificate; never from a message. */
export type AgentId = string;

export type ReportVerdict = { accepted: true } | { accepted: false; code: string; message: string };

export interface ReportSink {
  /** `signed`: verified. Resolves after the report's consequences are durable. Safe to call again with the same report. */
  accept(agent: AgentId, report: ReportPayload, signed?: ReportSignature): Promise<ReportVerdict>;
}

export interface HeartbeatVerdict {
  renewed: LeaseKey[];
  /** Held by the agent but no longer its own: to be stopped. */
  superseded: LeaseKey[];
  cancels: { lease: LeaseKey; reason: string }[];
}

export interface LeaseKeeper {
  /** Renews exactly the leases that are named. */
  heartbeat(agent: AgentId, held: LeaseKey[]): HeartbeatVerdict;
}

/** A chunk as it came; `entries` is passed on without being decoded. */
export interface LogChunk {
  seq: number;
  runId: string;
  stepId: string;
  attempt: number;
  epoch: number;
  firstEntry: number;
  entryCount: number;
  encoding: "identity" | "gzip";
  entries: Uint8Array;
  /** By the agent, verified. Missing: it does not sign. */
  signed?: LogSignature | undefined;
}

export interface LogSink {
  /** Resolves after the chunk is durable. Repeats of (agent, instance-independent seq) are stored once. */
  append(agent: AgentId, chunk: LogChunk): Promise<void>;
}

/** The newest checkpoint of the ledger, with the consistency proof from a size; undefined while there is none. */
export type LedgerView = (
  fromSize: number,
) => { note: string; verifierKey: string; proof: Uint8Array[] } | undefined;

/** How others reach a connected agent. */
export interface AgentSessions {
  /** False when the agent is not connected to this replica. */
  cancel(agent: AgentId, lease: LeaseKey, reason: string): boolean;
  tell(agent: AgentId, verdict: HeartbeatVerdict): boolean;
}
