/** What runs a step. */

import type { BoxRecord, Offer, OutcomeStatus } from "../../shared/wire/attempt.ts";
import type { LogStreamName } from "../../shared/wire/log-entries.ts";
import type { NetworkUse, RawOutput } from "../egress/egress-gate.ts";

export interface AttemptIo {
  /** Takes what the step wrote, as it came, one entry at a time. False: wait for `onDrain` before more. */
  log(stream: LogStreamName, data: Buffer, at: { atMs: number; endOffset: number }): boolean;
  onDrain(resume: () => void): void;
  /** What lies before it is durable with the agent, and not needed in the spool any more. */
  readonly storedOffset: number;
  /** Bytes of output, and ends of lines in them, that were given up before they came here. */
  dropped(bytes: number, lines: number): void;
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
  /** Where secrets were masked. Missing: nowhere. */
  masked?: { log: boolean; outputs: readonly string[] };
  /** Of a step that was let out. */
  network?: readonly NetworkUse[];
  /** Missing: no process was started. */
  sandbox?: BoxRecord;
}

export type StopReason = "cancelled" | "interrupted" | "timed-out";

export interface Execution {
  /** Never rejects. */
  readonly done: Promise<ExecutionResult>;
  /** Ends the whole tree of processes. The first reason counts. */
  stop(reason: StopReason, message: string): void;
  /** The outcome is durable: nothing of the attempt is needed any more. */
  forget(): Promise<void>;
}

export interface Executor {
  readonly kind: Offer["step"]["executor"]["kind"];
  start(offer: Offer, io: AttemptIo): Execution;
  /**
   * Takes up what an earlier process of this agent started; output goes on at the offset. Undefined when the step
   * has not begun, and cannot begin any more without another `start`.
   */
  resume(offer: Offer, io: AttemptIo, offset: number): Execution | undefined;
  /** Ends what an earlier process of this agent left running for the attempt. Resolves when nothing is left. */
  cleanUp(offer: Offer): Promise<void>;
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
