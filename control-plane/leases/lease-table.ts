/**
 * Who holds what, until when. No I/O and no clock of its own; times are monotonic milliseconds of this process.
 *
 * Only the grant is in the run's history. The renewals are not: after a restart every lease starts with a full
 * term, because agents could not renew while nobody listened.
 */
import type { LeaseKey } from "../../shared/wire/attempt.ts";

export interface Lease extends LeaseKey {
  agent: string;
  expiresAtMs: number;
  /** Set once the run wants the attempt stopped; said again with every heartbeat. */
  cancelReason: string | null;
}

/** What the run's state says of a lease that the table does not know. */
export type UnknownLease = "expected" | "superseded";

export interface Renewal {
  renewed: LeaseKey[];
  superseded: LeaseKey[];
  cancels: { lease: LeaseKey; reason: string }[];
}

export class LeaseTable {
  readonly #leases = new Map<string, Lease>();
  readonly #ttlMs: number;

  constructor(ttlMs: number) {
    this.#ttlMs = ttlMs;
  }

  get size(): number {
    return this.#leases.size;
  }

  begin(key: LeaseKey, agent: string, nowMs: number): void {
    this.#leases.set(slot(key), { ...key, agent, expiresAtMs: nowMs + this.#ttlMs, cancelReason: null });
  }

  /** Ends the lease when it is still the one under `epoch`. */
  end(runId: string, stepId: string, epoch: number): void {
    const at = `${runId}/${stepId}`;
    if (this.#leases.get(at)?.epoch === epoch) this.#leases.delete(at);
  }

  endRun(runId: string, stepIds: Iterable<string>): void {
    for (const stepId of stepIds) this.#leases.delete(`${runId}/${stepId}`);
  }

  cancel(runId: string, stepId: string, reason: string): void {
    const lease = this.#leases.get(`${runId}/${stepId}`);
    if (lease) lease.cancelReason = reason;
  }

  /**
   * Renews exactly the leases that the heartbeat names: renewing "whatever this agent has" would keep a run
   * leased for ever to an agent that never got the offer.
   */
  heartbeat(
    agent: string,
    held: readonly LeaseKey[],
    nowMs: number,
    unknown: (key: LeaseKey) => UnknownLease,
  ): Renewal {
    const answer: Renewal = { renewed: [], superseded: [], cancels: [] };
    for (const key of held) {
      const lease = this.#leases.get(slot(key));
      if (lease?.epoch === key.epoch && lease.agent === agent) {
        lease.expiresAtMs = nowMs + this.#ttlMs;
        answer.renewed.push(key);
        if (lease.cancelReason !== null) answer.cancels.push({ lease: key, reason: lease.cancelReason });
      } else if (lease !== undefined ? lease.epoch >= key.epoch : unknown(key) === "superseded") {
        // Under a later epoch than is known here, another replica has granted it: it has the word, and not we.
        answer.superseded.push(key);
      }
    }
    return answer;
  }

  /** Leases whose time has run out. They stay in the table until `end`. */
  expired(nowMs: number): Lease[] {
    return [...this.#leases.values()].filter((lease) => lease.expiresAtMs <= nowMs);
  }
}

function slot(key: LeaseKey): string {
  return `${key.runId}/${key.stepId}`;
}
