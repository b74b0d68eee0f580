/** What runs a step. A supervisor that outlives the agent can stand behind the same interface. */

import type { Offer, OutcomeStatus } from "../../shared/wire/attempt.ts";
import type { LogStreamName } from "../../shared/wire/log-entries.ts";
import type { RawOutput } from "../egress/egress-gate.ts";

export interface AttemptIo {
  /** Takes what the step wrote, as it came. False: wait for `onDrain` before reading more. */
  log(stream: LogStreamName, data: Buffer): boolean;
  onDrain(resume: () => void): void;
}

export interface KeptArtifact {
  name: string;
  digest: string;
  bytes: number;
}

/** What an attempt came to, before the egress gate. */
export interface ExecutionResult {
  status: OutcomeStatus;
  exitCode: number | null;
  signal: string | null;
  error: { code: string; message: string } | null;
  outputs: Record<string, RawOutput>;
  artifacts: KeptArtifact[];
}

export type StopReason = "cancelled" | "interrupted" | "timed-out";

export interface Execution {
  /** Never rejects. */
  readonly done: Promise<ExecutionResult>;
  /** Ends the whole tree of processes. The first reason counts. */
  stop(reason: StopReason, message: string): void;
}

export interface Executor {
  readonly kind: Offer["step"]["executor"]["kind"];
  start(offer: Offer, io: AttemptIo): Execution;
  /** Ends what an earlier process of this agent left running for the attempt. Resolves when nothing is left. */
  cleanUp(offer: Offer): Promise<void>;
  /** Resolves when no process is left of the attempts that have ended. */
  settled(): Promise<void>;
}

export function failure(
  status: OutcomeStatus,
  code: string,
  message: string,
  exit: { exitCode?: number | null; signal?: string | null } = {},
): ExecutionResult {
  const { exitCode = null, signal = null } = exit;
  return { status, exitCode, signal, error: { code, message }, outputs: {}, artifacts: [] };
}
