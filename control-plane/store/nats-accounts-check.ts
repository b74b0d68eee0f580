/** Whether a NATS that others run has the accounts whose keys we hold. */
import { type NatsConnection, NatsError } from "nats";
import { InsituError } from "../../shared/errors.ts";
import { connectNats, type NatsTarget } from "./jetstream.ts";

const REFUSED = new Set(["AUTHORIZATION_VIOLATION", "AUTHENTICATION_EXPIRED", "ACCOUNT_EXPIRED"]);

/**
 * @param target with the credentials of the control plane
 * @throws request.invalid when it has not: it knows other keys, users with passwords, or lets in everybody
 * @throws store.unavailable (retryable) when none of its servers can be reached
 */
export async function checkAccounts(target: Omit<NatsTarget, "name">, secrets: string): Promise<void> {
  let connection: NatsConnection;
  // A server asks for a signature only when it knows keys; one that does not lets in agents without one too. What it says
  // of itself once somebody is connected does not have it, from 2.15 on.
  let asked = false;
  const challenged = (nonce: string | undefined): void => {
    asked ||= nonce !== undefined;
  };
  try {
    connection = await connectNats({ ...target, challenged, name: "insitu-check", reconnect: false });
  } catch (err) {
    const { cause } = err as InsituError;
    if (cause instanceof NatsError && REFUSED.has(cause.code)) throw withoutAccounts(secrets, cause);
    throw err;
  }
  await connection.close();
  if (!asked) throw withoutAccounts(secrets);
}

function withoutAccounts(secrets: string, cause?: unknown): InsituError {
  return new InsituError(
    "request.invalid",
    `NATS does not have the accounts of ${secrets}/nats-operator.json: configure it with what "insitu nats init --secrets ${secrets}" writes, or name a user in --nats-url to do without accounts`,
    { cause },
  );
}
