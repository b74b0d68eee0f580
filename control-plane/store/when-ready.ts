import type { NatsConnection } from "nats";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { passes, storeError } from "./jetstream.ts";

/** How long a start waits for JetStream, and for the leader of a stream that is new or was raised. */
const READY_MAX_MS = 30_000;
const POLL_MS = 250;

/**
 * Repeats what is safe to repeat while JetStream starts or elects a leader.
 *
 * @throws store.unavailable when it does not answer in time
 */
export async function whenReady<T>(
  { connection, clock }: { connection: NatsConnection; clock: Clock },
  call: () => Promise<T>,
): Promise<T> {
  const giveUpAtMs = clock.monotonicMs() + READY_MAX_MS;
  for (;;) {
    try {
      return await call();
    } catch (err) {
      if (!passes(err)) throw storeError(err, "streams");
      if (clock.monotonicMs() > giveUpAtMs) {
        throw new InsituError(
          "store.unavailable",
          `JetStream at ${connection.getServer()} did not answer for ${READY_MAX_MS / 1_000} s: is it enabled, and do more than half of the cluster's servers run?`,
          { retryable: true, cause: err },
        );
      }
      await clock.sleep(POLL_MS);
    }
  }
}
