/** Tells NATS servers in operator mode of accounts, as a user of the system account. */
import type { NatsConnection } from "nats";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { storeError } from "./jetstream.ts";

const UPDATE = "$SYS.REQ.CLAIMS.UPDATE";
const TIMEOUT_MS = 5_000;

const Answer = z.object({
  data: z.object({ code: z.int(), message: z.string().optional() }).optional(),
  error: z.object({ code: z.int(), description: z.string() }).optional(),
});

/**
 * Resolves when a server has stored it; it tells the others of its cluster.
 *
 * @throws store.unavailable (retryable) when none answers; internal when it is refused
 */
export async function pushAccount(connection: NatsConnection, accountJwt: string): Promise<void> {
  let answer: z.infer<typeof Answer>;
  try {
    const message = await connection.request(UPDATE, accountJwt, { timeout: TIMEOUT_MS });
    answer = Answer.parse(message.json());
  } catch (err) {
    throw storeError(err, "telling NATS of an account");
  }
  if (answer.data?.code === 200) return;
  const said = answer.error?.description ?? answer.data?.message ?? JSON.stringify(answer);
  throw new InsituError("internal", `NATS refuses an account: ${said}`);
}
