/** Who knows which keys of NATS: what replicas say, and what nats-servers say of themselves. */
import { ErrorCode, type NatsConnection, NatsError, RequestStrategy } from "nats";
import { z } from "zod";
import { subjects } from "../../shared/wire/subjects.ts";
import type { NatsKeyState } from "../access/nats-key-follower.ts";
import { storeError } from "./jetstream.ts";

/** Nobody knows how many will answer. What came later counts as silence, and whoever asks takes that for a no. */
const ANSWERS_MS = 1_000;
/** Of the connection that each replica keeps. */
export const REPLICA_CONNECTION = "insitu-server";
const CONNECTIONS_MAX = 1_024;

const Answer = z.object({ digest: z.string(), told: z.boolean() });

const Server = z.object({ server: z.object({ id: z.string(), name: z.string() }) });
const Varz = Server.extend({
  data: z.object({ trusted_operators_jwt: z.array(z.string()).default([]) }),
});
const Connz = Server.extend({
  data: z.object({
    connections: z.array(z.object({ name: z.string().default("") })).default([]),
  }),
});
/** Of an operator's JWT; it has been verified by the server that trusts it. */
const OperatorJwt = z.object({
  nats: z.object({
    signing_keys: z.array(z.string()).default([]),
    strict_signing_key_usage: z.boolean().default(false),
  }),
});

/** Until the connection closes. */
export function answerForKeys(connection: NatsConnection, keys: { readonly state: NatsKeyState }): void {
  connection.subscribe(subjects.natsKeys, {
    callback: (err, message) => {
      if (err === null) message.respond(JSON.stringify(keys.state));
    },
  });
}

/** What each running replica says; one of before rotations says nothing. */
export async function askReplicas(connection: NatsConnection): Promise<NatsKeyState[]> {
  return await askAll(connection, subjects.natsKeys, "", Answer);
}

export interface ServerView {
  name: string;
  /** Public keys that its operator may sign accounts with. */
  operatorKeys: string[];
  strict: boolean;
}

/** @param system a connection of the inspector */
export async function askServers(system: NatsConnection): Promise<ServerView[]> {
  const answers = await askAll(system, "$SYS.REQ.SERVER.PING.VARZ", "", Varz);
  return answers.map(({ server, data }) => {
    const claims = data.trusted_operators_jwt.map(operatorClaims);
    return {
      name: server.name,
      operatorKeys: claims.flatMap(({ signing_keys }) => signing_keys),
      strict: claims.some(({ strict_signing_key_usage }) => strict_signing_key_usage),
    };
  });
}

/** How many replicas hold a connection, whether or not they answer. */
export async function countReplicas(system: NatsConnection, account: string): Promise<number> {
  const filter = JSON.stringify({ acc: account, limit: CONNECTIONS_MAX });
  const answers = await askAll(system, "$SYS.REQ.SERVER.PING.CONNZ", filter, Connz);
  return answers.flatMap(({ data }) => data.connections).filter(({ name }) => name === REPLICA_CONNECTION)
    .length;
}

function operatorClaims(jwt: string): z.infer<typeof OperatorJwt>["nats"] {
  const body = Buffer.from(jwt.split(".")[1] ?? "", "base64url").toString();
  return OperatorJwt.parse(JSON.parse(body)).nats;
}

async function askAll<T>(
  connection: NatsConnection,
  subject: string,
  payload: string,
  schema: z.ZodType<T>,
): Promise<T[]> {
  const found: T[] = [];
  try {
    const answers = await connection.requestMany(subject, payload, {
      strategy: RequestStrategy.Timer,
      maxWait: ANSWERS_MS,
    });
    for await (const answer of answers) if (answer.data.length > 0) found.push(schema.parse(answer.json()));
  } catch (err) {
    if (err instanceof NatsError && err.code === ErrorCode.NoResponders) return [];
    throw storeError(err, "asking who knows which keys");
  }
  return found;
}
