/** What may happen to a run, and what it asks of the world. */
import type { DisconnectSpec, ParamValue } from "../model/spec.ts";
import type { Outcome } from "../wire/attempt.ts";
import type { ReportSignature } from "../wire/report-signature.ts";
import type { Decision } from "./disconnection.ts";
import type { HoldReason } from "./events.ts";

export type TimerKind = "retry" | "offer" | "unplaceable" | "disconnect" | "deadline";

/** `atMs` is wall time of the control plane throughout. */
export type Input = { atMs: number } & (
  | {
      kind: "create";
      runId: string;
      version: string;
      params: Record<string, ParamValue>;
      by: string;
      /** Under which the run's shard is owned: an owner of before, who does not know yet, leaves the run alone. */
      shardEpoch?: number;
      /** Of the last restore from a backup. */
      epochFloor?: number;
      /** The id was drawn before it: the repeat of a request of which the backup does not know the run. */
      mayHaveLived?: true;
    }
  /** Placement found an environment. */
  | {
      kind: "offer";
      step: string;
      environment: string;
      policyVersion: string;
      expiresAtMs: number;
      /** The environment's default for attempts whose agent is cut off. Missing: it has none. */
      disconnect?: DisconnectSpec;
    }
  /** Something has changed that the step may have waited for: asks for a placement anew, if it still waits. */
  | { kind: "place"; step: string }
  /** Placement did not, or a pool is full. */
  | { kind: "hold"; step: string; reason: HoldReason; message: string }
  | {
      kind: "started";
      step: string;
      attempt: number;
      epoch: number;
      agent: string;
      /** By the agent, where it signs; and when it started, by its own clock. */
      said?: { signed: ReportSignature; reportedAtMs: number };
    }
  | {
      kind: "finished";
      step: string;
      attempt: number;
      epoch: number;
      agent: string;
      outcome: Outcome;
      /** By the agent, where it signs. */
      signed?: ReportSignature;
      /** In [0, 1): decides the jitter of a retry. */
      random: number;
    }
  | { kind: "lease-expired"; step: string; epoch: number; agent: string }
  /** A heartbeat named the attempt under its current epoch after its lease had run out. */
  | { kind: "reconnected"; step: string; epoch: number; agent: string }
  /** An operator's decision. One that may not be taken changes nothing: ask `refuseResolution` first. */
  | {
      kind: "resolve";
      step: string;
      epoch: number;
      by: string;
      reason: string;
      decision: Decision;
      evenIfItRan: boolean;
    }
  /** `random` as in `finished`; half when it is missing. */
  | { kind: "timer"; timer: TimerKind; step: string | null; dueAtMs: number; random?: number }
  | { kind: "cancel"; by: string; reason: string }
  /** The first input of a new owner of the run's shard: fences off the former one, and completes what it left. */
  | {
      kind: "take-over";
      shardEpoch: number;
      replica: string;
      /** Of the last restore from a backup; a run that has seen it is not concerned. */
      epochFloor?: number;
    }
);

export type Effect =
  /** Find an environment for the step, and answer with `offer` or `hold`. */
  | { kind: "place"; step: string }
  /** Publish the offer. Repeats carry the same message id. */
  | { kind: "offer"; step: string; attempt: number; epoch: number; environment: string }
  /** From now on the lease counts, until `lease.end`. */
  | { kind: "lease.begin"; step: string; attempt: number; epoch: number; agent: string }
  | { kind: "lease.end"; step: string; epoch: number; agent: string }
  /** Tell the agent to stop the attempt, and repeat it with every heartbeat while the lease lasts. */
  | { kind: "cancel"; step: string; attempt: number; epoch: number; agent: string; reason: string }
  /** Tell the agent once: the attempt is not, or no longer, its own. */
  | { kind: "supersede"; step: string; attempt: number; epoch: number; agent: string }
  /** Feed `timer` back at `atMs`. A timer that no longer applies is ignored. */
  | { kind: "timer"; timer: TimerKind; step: string | null; atMs: number }
  /** The step no longer holds its pools. */
  | { kind: "release"; step: string }
  | { kind: "finished" };
