/** Which offers this agent may take, given what it holds and has seen. No I/O. */
import type { LeaseKey, Offer } from "../../shared/wire/attempt.ts";

export type OfferDecision =
  | { kind: "take" }
  /** Held already: acknowledge it and do nothing. */
  | { kind: "duplicate" }
  | { kind: "refuse"; reason: string };

/** So many attempts are remembered after they ended here; an offer that comes again later than that has expired. */
export const REMEMBERED_MAX = 20_000;

export class LeaseBook {
  readonly #environment: string;
  /** Highest epoch known, by `run/step`; the least recently learnt first. */
  readonly #epochs = new Map<string, number>();

  constructor(environment: string) {
    this.#environment = environment;
  }

  /** `nowMs`: wall time of the control plane, as well as the agent knows it. */
  decide(offer: Offer, nowMs: number): OfferDecision {
    if (offer.environment !== this.#environment) {
      return {
        kind: "refuse",
        reason: `it is for environment ${offer.environment}, this is ${this.#environment}`,
      };
    }
    if (nowMs > offer.expiresAtMs) return { kind: "refuse", reason: "it has expired" };
    const known = this.#epochs.get(stepKey(offer.lease)) ?? 0;
    if (offer.lease.epoch < known)
      return { kind: "refuse", reason: `epoch ${offer.lease.epoch} is older than ${known}` };
    if (offer.lease.epoch === known) return { kind: "duplicate" };
    return { kind: "take" };
  }

  /**
   * The attempt was not taken after all: its lease could not be written. The offer comes again, and a book that
   * called it a duplicate then would take it off the queue for ever.
   */
  forget(lease: LeaseKey): void {
    if (this.#epochs.get(stepKey(lease)) === lease.epoch) this.#epochs.set(stepKey(lease), lease.epoch - 1);
  }

  /** An attempt was taken here, now or before a restart. */
  note(lease: LeaseKey): void {
    const key = stepKey(lease);
    const epoch = Math.max(lease.epoch, this.#epochs.get(key) ?? 0);
    this.#epochs.delete(key);
    this.#epochs.set(key, epoch);
    if (this.#epochs.size <= REMEMBERED_MAX) return;
    const oldest = this.#epochs.keys().next().value;
    if (oldest !== undefined) this.#epochs.delete(oldest);
  }
}

function stepKey(lease: LeaseKey): string {
  return `${lease.runId}/${lease.stepId}`;
}
