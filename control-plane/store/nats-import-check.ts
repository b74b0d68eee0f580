/** Whether accounts that somebody else made let agents reach their own queue, and no other one. */
import { ErrorCode, type NatsConnection, NatsError } from "nats";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { nextOf } from "../access/nats-claims.ts";
import type { ImportedAccounts } from "../access/nats-imported.ts";
import { connectNats, type NatsTarget, storeError } from "./jetstream.ts";

/** An answer takes a round trip. Where there is no import, NATS says nothing. */
const ANSWER_MS = 2_000;
/** A queue may have no leader for a while. */
const ATTEMPTS_MAX = 5;

export interface ImportCheck extends Pick<NatsTarget, "servers" | "caPem"> {
  accounts: ImportedAccounts;
  /** That are to be looked at. */
  environments: readonly string[];
  /** That have their queue. */
  all: readonly string[];
  clock: Clock;
}

/**
 * Each asks for its own queue, and for that of another one.
 *
 * @throws request.invalid when an account does not reach its own queue within some ten seconds, or reaches another one
 */
export async function checkImports(check: ImportCheck): Promise<void> {
  const { accounts, environments, all, clock, ...target } = check;
  for (const environment of environments) {
    const other = all[(all.indexOf(environment) + 1) % all.length]!;
    const ask = async (queueOf: string): Promise<boolean> => {
      const nowS = Math.floor(clock.wallMs() / 1_000);
      const credentials = accounts.probe(environment, queueOf, nowS);
      const { inbox: inboxPrefix } = credentials;
      const about = { ...target, credentials, inboxPrefix, name: "insitu-check", reconnect: false };
      const connection = await connectNats(about);
      try {
        return await isAnswered(connection, nextOf(accounts.accountOf(queueOf)));
      } finally {
        await connection.close();
      }
    };
    let reached = false;
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !reached; attempt++) reached = await ask(environment);
    if (!reached) throw wrong(environment, "does not reach its own queue: it lacks the imports");
    if (other !== environment && (await ask(other)))
      throw wrong(environment, `reaches the queue of ${other}, which its agents must not`);
  }
}

/** JetStream refuses what is not JSON with an answer, and hands nothing out. */
async function isAnswered(connection: NatsConnection, subject: string): Promise<boolean> {
  try {
    await connection.request(subject, "{", { timeout: ANSWER_MS });
    return true;
  } catch (err) {
    if (err instanceof NatsError && SILENT.has(err.code)) return false;
    throw storeError(err, "asking for a queue");
  }
}

const SILENT: ReadonlySet<string> = new Set([ErrorCode.NoResponders, ErrorCode.Timeout]);

function wrong(environment: string, what: string): InsituError {
  return new InsituError(
    "request.invalid",
    `the account of the environment ${environment} ${what}. Have its JWT say what "insitu nats requirements" prints for it`,
  );
}
