/** What an agent of one site can do to the others through the nats-server that we start. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, jwtAuthenticator, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { NatsIdentityService, VALID_FOR_S } from "../../control-plane/access/nats-identity.ts";
import { loadOrCreateNatsOperator, type NatsOperator } from "../../control-plane/access/nats-operator.ts";
import { pushAccount } from "../../control-plane/store/nats-claims-push.ts";
import { type NatsServer, startNatsServer } from "../../control-plane/store/nats-server.ts";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { systemClock } from "../../shared/system.ts";
import { makeNkey } from "../../shared/wire/nkey.ts";
import { type AttackGround, describeTrespasses, openAttackGround } from "../support/nats-attackers.ts";

const log = pino({ level: "silent" });
let directory: string;
let server: NatsServer;
let ground: AttackGround;
let operator: NatsOperator;
const agent: AttackGround["agent"] = (...about) => ground.agent(...about);

/** Resolves with the next of these events of a connection. */
async function once(connection: NatsConnection, type: string): Promise<void> {
  for await (const status of connection.status()) if (status.type === type) return;
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
  ground = await openAttackGround({ servers: [server.url], accounts: operator, operator });
});

afterAll(async () => {
  await ground?.[Symbol.asyncDispose]();
  await server?.stop();
  if (directory) await rm(directory, { recursive: true, force: true });
});

describeTrespasses(() => ground);

describe("a key", () => {
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
    await ground.identity.revoke(out.peer, []);
    await out.connection.closed();
    expect(stays.connection.isClosed()).toBe(false);
    await expect(connect({ ...out.options })).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
    const back = once(ground.centre, "reconnect");
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
    await ground.identity.revoke(out.peer, []);
    await out.connection.closed();
    const other = new NatsIdentityService({
      accounts: operator,
      telling: { operator, push: (jwt) => pushAccount(ground.system!, jwt) },
      validForS: VALID_FOR_S,
      users: ground.users,
      keysOf: ({ name }) => [`of ${name}`],
      clock: systemClock,
      log,
    });
    await other.setEnvironments(["victim"]);
    await expect(connect({ ...out.options })).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
    await other.close();
  });

  test("of an agent that is removed while it is let in comes after all", async () => {
    ground.leaving.add("home/late");
    await expect(agent("home", "late")).rejects.toMatchObject({ code: "auth.denied" });
    const entry = await ground.users.get("home.late");
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
