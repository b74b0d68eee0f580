/**
 * What an agent of one site tries on the others through NATS: attackers are real clients with the real credentials of
 * an environment's agent, and `describeTrespasses` is what none of them may reach on any NATS that has our accounts.
 */
import {
  type ConnectionOptions,
  connect,
  type JetStreamManager,
  jwtAuthenticator,
  type Msg,
  type NatsConnection,
} from "nats";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import type { NatsAccounts } from "../../control-plane/access/nats-accounts.ts";
import { NatsIdentityService, type NatsPeer, VALID_FOR_S } from "../../control-plane/access/nats-identity.ts";
import type { NatsOperator } from "../../control-plane/access/nats-operator.ts";
import { NatsUsers } from "../../control-plane/access/nats-users.ts";
import { connectNats, ensureStreams, ensureWorkConsumer } from "../../control-plane/store/jetstream.ts";
import { type KvStore, openKv } from "../../control-plane/store/kv.ts";
import { pushAccount } from "../../control-plane/store/nats-claims-push.ts";
import { systemClock } from "../../shared/system.ts";
import { tlsOf } from "../../shared/wire/nats-tls.ts";
import { makeNkey, type Nkey } from "../../shared/wire/nkey.ts";
import { BUCKETS, STREAMS, subjects } from "../../shared/wire/subjects.ts";

const ENVIRONMENTS = ["home", "victim"];

export interface Attacker {
  peer: NatsPeer;
  key: Nkey;
  jwt: string;
  connection: NatsConnection;
  options: ConnectionOptions;
  account: string;
  inbox: string;
  /** The code of the first refusal. */
  refused: Promise<string>;
}

/** The centre of a NATS with two environments, and agents of them. */
export interface AttackGround extends AsyncDisposable {
  accounts: NatsAccounts;
  centre: NatsConnection;
  /** Undefined where accounts are somebody else's to sign. */
  system: NatsConnection | undefined;
  manager: JetStreamManager;
  users: KvStore<NatsUsers>;
  identity: NatsIdentityService;
  /** As `environment/name`: agents that the registry has no more as soon as somebody has looked at them. */
  leaving: Set<string>;
  agent(environment: string, name: string, key?: Nkey): Promise<Attacker>;
  /** The last sequence of each stream, as the centre sees it; without the keys of agents, which tests write. */
  stored(): Promise<Record<string, number>>;
}

export const nextOf = (account: string): string => `$JS.API.CONSUMER.MSG.NEXT.${STREAMS.work}.${account}`;

export async function openAttackGround(options: {
  servers: string[];
  accounts: NatsAccounts;
  /** The same, where they are ours to sign. */
  operator?: NatsOperator;
  caPem?: string;
  replicas?: number;
}): Promise<AttackGround> {
  const { servers, accounts, operator, caPem = "", replicas = 1 } = options;
  const target = { servers, name: "test", caPem };
  const centre = await connectNats({ ...target, credentials: accounts.controlPlaneUser() });
  const system = operator && (await connectNats({ ...target, credentials: operator.claimsUser() }));
  const manager = await centre.jetstreamManager();
  await ensureStreams(manager, replicas);
  const bucket = { clock: systemClock, bucket: BUCKETS.natsUsers, schema: NatsUsers, replicas };
  const users = await openKv(centre, bucket);
  const removed = new Set<string>();
  const leaving = new Set<string>();
  const identity = new NatsIdentityService({
    accounts,
    telling: operator && system ? { operator, push: (jwt) => pushAccount(system, jwt) } : undefined,
    validForS: VALID_FOR_S,
    users,
    keysOf: ({ environment, name }) => {
      const id = `${environment}/${name}`;
      const keys = removed.has(id) ? [] : [`of ${name}`];
      if (leaving.has(id)) removed.add(id);
      return keys;
    },
    clock: systemClock,
    log: pino({ level: "silent" }),
  });
  identity.start();
  for (const environment of ENVIRONMENTS)
    await ensureWorkConsumer(manager, environment, accounts.accountOf(environment));
  await identity.setEnvironments(ENVIRONMENTS);

  return {
    accounts,
    centre,
    system,
    manager,
    users,
    identity,
    leaving,
    async agent(environment, name, key = makeNkey("user")) {
      const peer = {
        environment,
        name,
        spkiSha256: `of ${name}`,
        notAfterMs: systemClock.wallMs() + 3_600_000,
      };
      const { userJwt } = await identity.accessFor(peer, key.publicKey);
      const inbox = `_INBOX.${name}`;
      const about = {
        servers,
        authenticator: jwtAuthenticator(userJwt, Buffer.from(key.seed)),
        inboxPrefix: inbox,
        reconnect: false,
        ...tlsOf(servers, caPem),
      };
      const connection = await connect({ ...about });
      const account = accounts.accountOf(environment);
      const refused = firstError(connection);
      return { peer, key, jwt: userJwt, connection, options: about, account, inbox, refused };
    },
    async stored() {
      const all = await manager.streams.list().next();
      const others = all.filter(({ config }) => config.name !== `KV_${BUCKETS.natsUsers}`);
      return Object.fromEntries(others.map(({ config, state }) => [config.name, state.last_seq]));
    },
    async [Symbol.asyncDispose]() {
      await identity.close();
      await system?.close();
      await centre.close();
    },
  };
}

async function firstError(connection: NatsConnection): Promise<string> {
  for await (const status of connection.status()) if (status.type === "error") return String(status.data);
  return "nothing was refused";
}

/** The ground is opened before the first of the tests. */
export function describeTrespasses(ground: () => AttackGround): void {
  describe("an agent", () => {
    test("pulls and acknowledges what is for its environment", async () => {
      const { connection, account, inbox } = await ground().agent("home", "worthy");
      await ground().centre.jetstream().publish(subjects.work("home"), "an offer");
      const offered = new Promise<Msg>((resolve, reject) => {
        // Not a request: an offer keeps the subject it was published under, and the client would not know it.
        connection.subscribe(`${inbox}.offers`, {
          callback: (err, msg) => (err ? reject(err) : resolve(msg)),
        });
      });
      connection.publish(nextOf(account), JSON.stringify({ batch: 1 }), { reply: `${inbox}.offers` });
      const answer = await offered;
      expect(answer.subject).toBe(subjects.work("home"));
      const acknowledged = await connection.request(answer.reply!, "+ACK", { timeout: 2_000 });
      expect(acknowledged.string()).toBe("");
      expect((await ground().manager.streams.info(STREAMS.work)).state.messages).toBe(0);
      await connection.close();
    });

    test.each([
      ["another environment's queue", () => subjects.work("victim")],
      ["its own environment's queue", () => subjects.work("home")],
      ["a bucket", () => "$KV.agents.identity.victim.agent"],
      ["the events of a run", () => "run.1.01k0000000000000000000000"],
      ["the resources", () => subjects.resources],
      ["the inbox of reports", () => subjects.inbox(1)],
      ["the logs", () => subjects.log("r", "s", 1)],
      ["a purge of a stream", () => `$JS.API.STREAM.PURGE.${STREAMS.runs}`],
    ])("has nothing written by the reply subject of a pull into %s", async (_what, reply) => {
      const { connection, account } = await ground().agent("home", "injector");
      await ground().manager.streams.purge(STREAMS.work);
      const before = await ground().stored();
      connection.publish(nextOf(account), JSON.stringify({ batch: 1, no_wait: true }), { reply: reply() });
      connection.publish(`$JS.ACK.${STREAMS.work}.${account}.1.1.1.1.0`, "+ACK", { reply: reply() });
      await connection.flush();
      // Answered after both, on the same connection: what they were to do is done.
      await connection.request(nextOf(account), JSON.stringify({ batch: 1, no_wait: true }), {
        timeout: 2_000,
      });
      expect(await ground().stored()).toEqual(before);
      await connection.close();
    });

    test("redirects no offer of its own into another queue", async () => {
      const { connection, account } = await ground().agent("home", "redirector");
      await ground().centre.jetstream().publish(subjects.work("home"), "to be redirected");
      const before = await ground().stored();
      connection.publish(nextOf(account), JSON.stringify({ batch: 1 }), { reply: subjects.work("victim") });
      await connection.flush();
      await connection
        .request(nextOf(account), JSON.stringify({ batch: 1, no_wait: true }), { timeout: 2_000 })
        .catch(() => undefined);
      expect(await ground().stored()).toEqual(before);
      await ground().manager.streams.purge(STREAMS.work);
      await connection.close();
    });

    test.each([
      ["pull of another environment's work", (victim: string) => nextOf(victim)],
      ["acknowledge it", (victim: string) => `$JS.ACK.${STREAMS.work}.${victim}.1.1.1.1.0`],
      ["publish into its queue", () => subjects.work("victim")],
      ["purge the centre's account", () => `$JS.API.ACCOUNT.PURGE.${ground().accounts.controlPlane}`],
      ["purge a stream", () => `$JS.API.STREAM.PURGE.${STREAMS.runs}`],
      ["delete a stream", () => `$JS.API.STREAM.DELETE.${STREAMS.work}`],
      ["read a message", () => `$JS.API.STREAM.MSG.GET.${STREAMS.runs}`],
      ["read a message directly", () => `$JS.API.DIRECT.GET.${STREAMS.runs}`],
      ["make a consumer", () => `$JS.API.CONSUMER.CREATE.${STREAMS.runs}`],
      ["restore a stream", () => `$JS.API.STREAM.RESTORE.${STREAMS.runs}`],
      ["tell the servers of an account", () => "$SYS.REQ.CLAIMS.UPDATE"],
      ["write a bucket", () => "$KV.agents.identity.victim.agent"],
    ])("may not %s", async (_what, subject) => {
      const victim = ground().accounts.accountOf("victim");
      await ground().centre.jetstream().publish(subjects.work("victim"), "for the victim");
      const before = await ground().stored();
      const { connection, refused } = await ground().agent("home", "trespasser");
      connection.publish(subject(victim), JSON.stringify({ batch: 1 }), { reply: "_INBOX.trespasser.x" });
      await connection.flush();
      expect(await refused).toBe("PERMISSIONS_VIOLATION");
      expect(await ground().stored()).toEqual(before);
      const { state } = await ground().manager.streams.info(STREAMS.work);
      expect(state.messages).toBeGreaterThan(0);
      expect(state.consumer_count).toBe(2);
      await ground().manager.streams.purge(STREAMS.work);
      await connection.close();
    });

    test.each([">", "_INBOX.>", "_INBOX.other.>", "work.>", "$JS.API.>", "$SYS.>"])(
      "may not listen to %s",
      async (subject) => {
        const { connection } = await ground().agent("home", "listener");
        const heard = new Promise<string>((resolve) => {
          connection.subscribe(subject, { callback: (err) => resolve(err ? err.code : "a message") });
        });
        expect(await heard).toBe("PERMISSIONS_VIOLATION");
        await connection.close();
      },
    );
  });
}
