/** The streams that are open, so that they can be closed: when a certificate expires, an agent is removed, we stop. */
import { InsituError } from "../../shared/errors.ts";
import type { Peer } from "./peer-identity.ts";

/** "nats": no call, but a way that is opened and closed like one. */
export type CallKind = "session" | "report" | "logs" | "nats";

export interface OpenCall {
  readonly peer: Peer;
  readonly kind: CallKind;
  /** Tells apart those of one kind, where an agent may have several. */
  readonly slot?: number;
  /** Ends the call with this error and lets go of what it holds. Safe twice. */
  fail(err: InsituError): void;
  /** Looks after the call's own time limits. */
  tick?(nowMs: number): void;
}

export class OpenCalls {
  readonly #calls = new Map<string, OpenCall>();

  /** An agent has one call of each kind and slot: the older one gives way, so that a half-dead connection blocks nothing. */
  add(call: OpenCall): void {
    const key = keyOf(call);
    const older = this.#calls.get(key);
    this.#calls.set(key, call);
    older?.fail(
      new InsituError(
        "conflict",
        `a newer ${call.kind} stream of ${call.peer.id} took the place of this one`,
        {
          retryable: true,
        },
      ),
    );
  }

  /** To be called when the call is over, however it ended. */
  remove(call: OpenCall): void {
    if (this.#calls.get(keyOf(call)) === call) this.#calls.delete(keyOf(call));
  }

  has(call: OpenCall): boolean {
    return this.#calls.get(keyOf(call)) === call;
  }

  count(kind: CallKind): number {
    return [...this.#calls.values()].filter((call) => call.kind === kind).length;
  }

  /** Closes the calls of the agent that came with another key than these. */
  failAgent(id: string, kept: readonly string[], err: InsituError): void {
    for (const call of [...this.#calls.values()]) {
      if (call.peer.id === id && !kept.includes(call.peer.spkiSha256)) call.fail(err);
    }
  }

  /** Closes what has outlived its certificate or is refused, and lets every call look at its own limits. */
  sweep(now: { wallMs: number; monotonicMs: number; refusal(peer: Peer): InsituError | undefined }): void {
    for (const call of [...this.#calls.values()]) {
      const refusal = now.refusal(call.peer);
      if (refusal !== undefined) call.fail(refusal);
      else if (now.wallMs >= call.peer.notAfterMs) {
        call.fail(
          new InsituError(
            "auth.denied",
            `the certificate of ${call.peer.id} expired: it comes back when a person approves it`,
          ),
        );
      } else call.tick?.(now.monotonicMs);
    }
  }
}

function keyOf(call: OpenCall): string {
  return `${call.kind} ${call.slot ?? 0} ${call.peer.id}`;
}
