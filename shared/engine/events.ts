/**
 * What is appended to the stream `RUNS`: facts, with every consequence spelled out, so that a reader needs no
 * engine to follow a run. A message on the stream is a batch: `{ v: 1, events: RunEvent[] }`.
 *
 * Additions only. Histories of released versions are replayed in CI.
 */
import type { DisconnectSpec, ParamValue } from "../model/spec.ts";
import type { Outcome } from "../wire/attempt.ts";
import type { ReportSignature } from "../wire/report-signature.ts";
import type { Decision } from "./disconnection.ts";

export type StepStatus =
  | "pending" // a need has not ended yet
  | "ready" // could run; waits for placement or a pool, see `held`
  | "offered"
  | "running"
  | "disconnected" // its agent no longer renews the lease, and the attempt is still that agent's
  | "backoff" // waits for its next attempt
  | "succeeded"
  | "failed"
  | "skipped"
  | "cancelled";

export type RunStatus = "running" | "cancelling" | "succeeded" | "failed" | "cancelled";

/** Why a ready step is not offered. */
export type HoldReason =
  | "unplaceable"
  | "pool"
  /** It is `once`, and may have been started after the backup that the run was restored from. */
  | "restored";

export type RunEvent =
  | {
      kind: "run.created";
      atMs: number;
      runId: string;
      pipeline: string;
      version: string;
      params: Record<string, ParamValue>;
      by: string;
      /** Of the shard's owner that created it. */
      shardEpoch?: number;
      /** Of the last restore from a backup before it was created. Missing: there was none. */
      epochFloor?: number;
      /** A run of this id may have lived before that restore, in the time that was lost. */
      mayHaveLived?: true;
    }
  /**
   * Another owner of the run's shard decides from here on. Appended before anything else that it writes, so that
   * an append of the former owner, which expects the run as it was before, is refused.
   */
  | {
      kind: "run.taken-over";
      atMs: number;
      shardEpoch: number;
      replica: string;
      /** After a restore from a backup: what was granted in between had epochs up to this one, and is unknown. */
      epochFloor?: number;
    }
  | { kind: "run.cancel-requested"; atMs: number; by: string; reason: string }
  | { kind: "run.finished"; atMs: number; status: "succeeded" | "failed" | "cancelled"; reason: string }
  | {
      kind: "step.held";
      atMs: number;
      step: string;
      reason: HoldReason;
      message: string;
      failsAtMs: number | null;
    }
  | {
      kind: "attempt.offered";
      atMs: number;
      step: string;
      attempt: number;
      epoch: number;
      environment: string;
      policyVersion: string;
      expiresAtMs: number;
      /** What the environment says of attempts whose agent is cut off. Missing: nothing, or an older release. */
      disconnect?: DisconnectSpec;
    }
  | {
      kind: "attempt.started";
      atMs: number;
      step: string;
      attempt: number;
      epoch: number;
      agent: string;
      /** By the agent over its report of the start, as of `attempt.finished`. Missing also where the outcome came first. */
      signed?: ReportSignature;
      /** On the agent's clock, as that report says. Present with `signed`: what it covers is written with it. */
      reportedAtMs?: number;
    }
  | {
      kind: "attempt.finished";
      atMs: number;
      step: string;
      attempt: number;
      epoch: number;
      agent: string;
      outcome: Outcome;
      /** By the agent over the report: `reportBytes` gives what it covers, unless it has its own. Missing: its release did not sign. */
      signed?: ReportSignature;
      /** Set when another attempt follows. */
      retryAtMs: number | null;
    }
  /** The lease ran out, and the attempt stays its agent's until `untilMs` (null: without end); what `then` says follows. */
  | {
      kind: "attempt.disconnected";
      atMs: number;
      step: string;
      attempt: number;
      epoch: number;
      agent: string;
      untilMs: number | null;
      then: DisconnectSpec["then"];
    }
  /** Its agent is heard of again under the same epoch. */
  | { kind: "attempt.reconnected"; atMs: number; step: string; attempt: number; epoch: number; agent: string }
  /** An operator decided what became of a disconnected attempt, or of a step held as `restored` (without an agent). */
  | {
      kind: "attempt.resolved";
      atMs: number;
      step: string;
      attempt: number;
      epoch: number;
      agent: string | null;
      by: string;
      reason: string;
      decision: Decision;
    }
  /**
   * The grant is over without an outcome: the lease ran out, nobody took the offer, or nobody knows who did
   * (`restored`). Another epoch follows.
   */
  | {
      kind: "attempt.lost";
      atMs: number;
      step: string;
      attempt: number;
      epoch: number;
      agent: string | null;
      reason: "lease-expired" | "offer-expired" | "interrupted" | "disconnected" | "restored";
      /** Present: the attempt has failed, and another one follows at that time, or none (null). */
      retryAtMs?: number | null;
      /** What the agent said of an interrupted grant. */
      outcome?: Outcome;
      signed?: ReportSignature;
    }
  /** An outcome under a superseded grant: kept as evidence, changes nothing. */
  | {
      kind: "attempt.fenced";
      atMs: number;
      step: string;
      attempt: number;
      epoch: number;
      agent: string;
      outcome: Outcome;
      signed?: ReportSignature;
    }
  | { kind: "step.failed"; atMs: number; step: string; code: string; message: string }
  | { kind: "step.succeeded"; atMs: number; step: string }
  | { kind: "step.skipped"; atMs: number; step: string; message: string }
  | { kind: "step.cancelled"; atMs: number; step: string };

export interface RunEventBatch {
  v: 1;
  events: RunEvent[];
}
