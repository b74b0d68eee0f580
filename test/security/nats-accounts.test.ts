/**
 * What an agent of one site can do to the others through NATS: attackers are real clients with the real credentials of
 * an environment's agent, against the real server.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type ConnectionOptions,
  connect,
  type JetStreamManager,
  jwtAuthenticator,
  type Msg,
  type NatsConnection,
} from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { NatsIdentityService, type NatsPeer } from "../../control-plane/access/nats-identity.ts";
import { loadOrCreateNatsOperator, type NatsOperator } from "../../control-plane/access/nats-operator.ts";
import { NatsUsers } from "../../control-plane/access/nats-users.ts";
import { connectNats, ensureStreams, ensureWorkConsumer } from "../../control-plane/store/jetstream.ts";
import { type KvStore, openKv } from "../../control-plane/store/kv.ts";
import { pushAccount } from "../../control-plane/store/nats-claims-push.ts";
import { type NatsServer, startNatsServer } from "../../control-plane/store/nats-server.ts";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { systemClock } from "../../shared/system.ts";
import { makeNkey, type Nkey } from "../../shared/wire/nkey.ts";
import { BUCKETS, STREAMS, subjects } from "../../shared/wire/subjects.ts";

const log = pino({ level: "silent" });
let directory: string;
let operator: NatsOperator;
let server: NatsServer;
let centre: NatsConnection;
let system: NatsConnection;
let manager: JetStreamManager;
let users: KvStore<NatsUsers>;
let identity: NatsIdentityService;
/** Of the registry of agents. */
const removed = new Set<string>();
/** Removed as soon as somebody has looked at them. */
const leaving = new Set<string>();

interface Attacker {
  peer: NatsPeer;
  key: Nkey;
  jwt: string;
  connection: NatsConnection;
  options: ConnectionOptions;
  account: string;
  inbox: string;
  refused: Promise<string>;
}

async function agent(environment: string, name: string, key = makeNkey("user")): Promise<Attacker> {
  const peer = { environment, name, spkiSha256: `of ${name}`, notAfterMs: systemClock.wallMs() + 3_600_000 };
  const { userJwt } = await identity.accessFor(peer, key.publicKey);
  const options = {
    servers: [server.url],
    authenticator: jwtAuthenticator(userJwt, Buffer.from(key.seed)),
    inboxPrefix: `_INBOX.${name}`,
    reconnect: false,
  };
  const connection = await connect({ ...options });
  const account = operator.accountOf(environment);
  return {
    peer,
    key,
    jwt: userJwt,
    connection,
    options,
    account,
    inbox: `_INBOX.${name}`,
    refused: firstError(connection),
  };
}

async function firstError(connection: NatsConnection): Promise<string> {
  for await (const status of connection.status()) if (status.type === "error") return String(status.data);
  return "nothing was refused";
}

/** Resolves with the next of these events of a connection. */
async function once(connection: NatsConnection, type: string): Promise<void> {
  for await (const status of connection.status()) if (status.type === type) return;
}

const nextOf = (account: string): string => `$JS.API.CONSUMER.MSG.NEXT.${STREAMS.work}.${account}`;

/** What all streams hold, as the centre sees it; without the keys of agents, which these tests write themselves. */
async function stored(): Promise<Record<string, number>> {
  const all = await manager.streams.list().next();
  const others = all.filter(({ config }) => config.name !== `KV_${BUCKETS.natsUsers}`);
  return Object.fromEntries(others.map(({ config, state }) => [config.name, state.last_seq]));
}

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-accounts-"));
  operator = await loadOrCreateNatsOperator(join(directory, "secrets"));
  const { path: binary } = await findNatsServer();
  server = await startNatsServer({
    binary,
    directory: join(directory, "nats"),
    host: "127.0.0.1",
    port: 0,
    users: [],
    operator: {
      ...operator.config,
      streamsAccount: operator.controlPlane,
      credentials: operator.controlPlaneUser(),
    },
    log: { debug() {}, info() {}, warn() {} },
    clock: systemClock,
  });
  const target = { servers: [server.url], name: "test" };
  centre = await connectNats({ ...target, credentials: operator.controlPlaneUser() });
  system = await connectNats({ ...target, credentials: operator.claimsUser() });
  manager = await centre.jetstreamManager();
  await ensureStreams(manager, 1);
  users = await openKv(centre, { clock: systemClock, bucket: BUCKETS.natsUsers, schema: NatsUsers });
  identity = new NatsIdentityService({
    operator,
    users,
    push: (jwt) => pushAccount(system, jwt),
    keysOf: ({ environment, name }) => {
      const id = `${environment}/${name}`;
      const keys = removed.has(id) ? [] : [`of ${name}`];
      if (leaving.has(id)) removed.add(id);
      return keys;
    },
    clock: systemClock,
    log,
  });
  identity.start();
  for (const environment of ["home", "victim"])
    await ensureWorkConsumer(manager, environment, operator.accountOf(environment));
  await identity.setEnvironments(["home", "victim"]);
});

afterAll(async () => {
  await identity?.close();
  await system?.close();
  await centre?.close();
  await server?.stop();
  if (directory) await rm(directory, { recursive: true, force: true });
});

describe("an agent", () => {
  test("pulls and acknowledges what is for its environment", async () => {
    const { connection, account, inbox } = await agent("home", "worthy");
    await centre.jetstream().publish(subjects.work("home"), "an offer");
    const offered = new Promise<Msg>((resolve, reject) => {
      // Not a request: an offer keeps the subject it was published under, and the client would not know it.
      connection.subscribe(`${inbox}.offers`, { callback: (err, msg) => (err ? reject(err) : resolve(msg)) });
    });
    connection.publish(nextOf(account), JSON.stringify({ batch: 1 }), { reply: `${inbox}.offers` });
    const answer = await offered;
    expect(answer.subject).toBe(subjects.work("home"));
    const acknowledged = await connection.request(answer.reply!, "+ACK", { timeout: 2_000 });
    expect(acknowledged.string()).toBe("");
    expect((await manager.streams.info(STREAMS.work)).state.messages).toBe(0);
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
    const { connection, account } = await agent("home", "injector");
    await manager.streams.purge(STREAMS.work);
    const before = await stored();
    connection.publish(nextOf(account), JSON.stringify({ batch: 1, no_wait: true }), { reply: reply() });
    connection.publish(`$JS.ACK.${STREAMS.work}.${account}.1.1.1.1.0`, "+ACK", { reply: reply() });
    await connection.flush();
    // Answered after both, on the same connection: what they were to do is done.
    await connection.request(nextOf(account), JSON.stringify({ batch: 1, no_wait: true }), {
      timeout: 2_000,
    });
    expect(await stored()).toEqual(before);
    await connection.close();
  });

  test("redirects no offer of its own into another queue", async () => {
    const { connection, account } = await agent("home", "redirector");
    await centre.jetstream().publish(subjects.work("home"), "to be redirected");
    const before = await stored();
    connection.publish(nextOf(account), JSON.stringify({ batch: 1 }), { reply: subjects.work("victim") });
    await connection.flush();
    await connection
      .request(nextOf(account), JSON.stringify({ batch: 1, no_wait: true }), { timeout: 2_000 })
      .catch(() => undefined);
    expect(await stored()).toEqual(before);
    await manager.streams.purge(STREAMS.work);
    await connection.close();
  });

  test.each([
    ["pull of another environment's work", (victim: string) => nextOf(victim)],
    ["acknowledge it", (victim: string) => `$JS.ACK.${STREAMS.work}.${victim}.1.1.1.1.0`],
    ["publish into its queue", () => subjects.work("victim")],
    ["purge the centre's account", () => `$JS.API.ACCOUNT.PURGE.${operator.controlPlane}`],
    ["purge a stream", () => `$JS.API.STREAM.PURGE.${STREAMS.runs}`],
    ["delete a stream", () => `$JS.API.STREAM.DELETE.${STREAMS.work}`],
    ["read a message", () => `$JS.API.STREAM.MSG.GET.${STREAMS.runs}`],
    ["read a message directly", () => `$JS.API.DIRECT.GET.${STREAMS.runs}`],
    ["make a consumer", () => `$JS.API.CONSUMER.CREATE.${STREAMS.runs}`],
    ["restore a stream", () => `$JS.API.STREAM.RESTORE.${STREAMS.runs}`],
    ["tell the servers of an account", () => "$SYS.REQ.CLAIMS.UPDATE"],
    ["write a bucket", () => "$KV.agents.identity.victim.agent"],
  ])("may not %s", async (_what, subject) => {
    const victim = operator.accountOf("victim");
    await centre.jetstream().publish(subjects.work("victim"), "for the victim");
    const before = await stored();
    const { connection, refused } = await agent("home", "trespasser");
    connection.publish(subject(victim), JSON.stringify({ batch: 1 }), { reply: "_INBOX.trespasser.x" });
    await connection.flush();
    expect(await refused).toBe("PERMISSIONS_VIOLATION");
    expect(await stored()).toEqual(before);
    const { state } = await manager.streams.info(STREAMS.work);
    expect(state.messages).toBeGreaterThan(0);
    expect(state.consumer_count).toBe(2);
    await manager.streams.purge(STREAMS.work);
    await connection.close();
  });

  test.each([">", "_INBOX.>", "_INBOX.other.>", "work.>", "$JS.API.>", "$SYS.>"])(
    "may not listen to %s",
    async (subject) => {
      const { connection } = await agent("home", "listener");
      const heard = new Promise<string>((resolve) => {
        connection.subscribe(subject, { callback: (err) => resolve(err ? err.code : "a message") });
      });
      expect(await heard).toBe("PERMISSIONS_VIOLATION");
      await connection.close();
    },
  );

  test("cannot widen what its JWT says", async () => {
    const { jwt, key, connection } = await agent("home", "forger");
    const [head, body, signature] = jwt.split(".") as [string, string, string];
    const claims = JSON.parse(Buffer.from(body, "base64url").toString()) as { nats: object };
    const wide = JSON.stringify({ ...claims, nats: { ...claims.nats, pub: {}, sub: {} } });
    const forged = `${head}.${Buffer.from(wide).toString("base64url")}.${signature}`;
    const authenticator = jwtAuthenticator(forged, Buffer.from(key.seed));
    await expect(connect({ servers: [server.url], reconnect: false, authenticator })).rejects.toMatchObject({
      code: "AUTHORIZATION_VIOLATION",
    });
    await connection.close();
  });

  test("is not let in without the seed of its key, nor with no credentials", async () => {
    const { jwt, connection } = await agent("home", "owner");
    const other = makeNkey("user");
    for (const authenticator of [jwtAuthenticator(jwt, Buffer.from(other.seed)), () => undefined]) {
      await expect(connect({ servers: [server.url], reconnect: false, authenticator })).rejects.toMatchObject(
        {
          code: "AUTHORIZATION_VIOLATION",
        },
      );
    }
    await connection.close();
  });
});

describe("revocation", () => {
  test("cuts the live connection, leaves others alone, and lasts over a restart", async () => {
    const [out, stays] = [await agent("home", "out"), await agent("home", "stays")];
    await identity.revoke(out.peer, []);
    await out.connection.closed();
    expect(stays.connection.isClosed()).toBe(false);
    await expect(connect({ ...out.options })).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
    const back = once(centre, "reconnect");
    await server.restart();
    await back;
    await expect(connect({ ...out.options })).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
    const again = await connect({ ...stays.options });
    await again.close();
    // An agent that enrols anew on the same host is let in, and what it had before stays void.
    const anew = await agent("home", "out", out.key);
    await expect(connect({ ...out.options })).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
    await anew.connection.close();
  });

  test("by one replica is upheld by another that started with an older state", async () => {
    const out = await agent("victim", "out");
    await identity.revoke(out.peer, []);
    await out.connection.closed();
    const other = new NatsIdentityService({
      operator,
      users,
      push: (jwt) => pushAccount(system, jwt),
      keysOf: ({ name }) => [`of ${name}`],
      clock: systemClock,
      log,
    });
    await other.setEnvironments(["victim"]);
    await expect(connect({ ...out.options })).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
    await other.close();
  });

  test("of an agent that is removed while it is let in comes after all", async () => {
    leaving.add("home/late");
    await expect(agent("home", "late")).rejects.toMatchObject({ code: "auth.denied" });
    const entry = await users.get("home.late");
    expect(entry?.value.users.map(({ revokedAtS }) => revokedAtS)).toEqual([expect.any(Number)]);
  });
});

test("a user's JWT ends its connection when it expires", async () => {
  const key = makeNkey("user");
  const nowS = Math.floor(systemClock.wallMs() / 1_000);
  const jwt = operator.agentJwt({
    environment: "home",
    name: "brief",
    userKey: key.publicKey,
    issuedAtS: nowS,
    expiresAtS: nowS + 2,
  });
  const connection = await connect({
    servers: [server.url],
    reconnect: false,
    authenticator: jwtAuthenticator(jwt, Buffer.from(key.seed)),
  });
  expect(await connection.closed()).toMatchObject({ code: "AUTHENTICATION_EXPIRED" });
});
