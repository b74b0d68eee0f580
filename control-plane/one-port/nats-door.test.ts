/** The way to NATS through a gateway's one port, as an agent, a former one and an attacker meet it. */
import { once } from "node:events";
import { type AddressInfo, connect as connectTcp, createServer, type Server, type Socket } from "node:net";
import { connect, type TLSSocket } from "node:tls";
import { status } from "@grpc/grpc-js";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { revokeAgent } from "../access/revocation.ts";
import {
  csrOf,
  forge,
  newKeys,
  openSession,
  startWorld,
  TRUST_DOMAIN,
  type World,
} from "../gateway/gateway.fixture.ts";
import { targetOf } from "./nats-door.ts";

const LISTEN = { host: "127.0.0.1", port: 0 };

let world: World;
/** Not NATS, and not to be reached. */
let other: Server;
let otherTarget: string;
let reached = 0;

beforeAll(async () => {
  other = createServer((socket) => {
    reached++;
    socket.destroy();
  }).listen(0, "127.0.0.1");
  await once(other, "listening");
  otherTarget = `127.0.0.1:${(other.address() as AddressInfo).port}`;
  world = await startWorld({ onePort: { listen: LISTEN, natsTargets: [] } });
});
afterAll(async () => {
  await world?.stop();
  other?.close();
});

interface Client {
  keyPem: string;
  certificatePem: string;
}

const opened: Socket[] = [];
afterEach(() => {
  for (const socket of opened.splice(0)) socket.destroy();
});

function shakeHands(identity?: Client, from = world): TLSSocket {
  const socket = connect({
    host: "localhost",
    port: from.gateway.onePort,
    ca: from.pki.caPem,
    ALPNProtocols: ["insitu-nats/1"],
    ...(identity ? { key: identity.keyPem, cert: identity.certificatePem } : {}),
  });
  opened.push(socket);
  return socket.on("error", () => undefined);
}

/** What comes back until it says enough or ends. */
async function said(socket: Socket, enough = "\r\n"): Promise<string> {
  let text = "";
  socket.on("data", (bytes: Buffer) => {
    text += bytes.toString("latin1");
    if (text.includes(enough)) socket.emit("enough");
  });
  await new Promise<void>((resolve) => socket.once("enough", resolve).once("close", () => resolve()));
  return text;
}

const natsTarget = (from = world): string => targetOf(from.nats.url);

function ask(identity: Client | undefined, target: string, from = world): TLSSocket {
  const socket = shakeHands(identity, from);
  socket.write(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
  return socket;
}

const gone = async (socket: Socket): Promise<void> => {
  socket.resume();
  if (!socket.closed) await new Promise((resolve) => socket.once("close", resolve));
};

/** NATS's first word, which is an INFO. */
async function tunnel(identity: Client, from = world): Promise<TLSSocket> {
  const socket = ask(identity, natsTarget(from), from);
  expect(await said(socket, "INFO ")).toMatch(/^HTTP\/1\.1 200 [^\r]*\r\n\r\nINFO /);
  return socket;
}

test("an agent reaches NATS, which speaks first, and the calls of its gateway on the same port", async () => {
  const agent = await world.join("dream", "both");
  const way = await tunnel(agent);
  const { stream, welcome } = await openSession(world.client(agent, world.gateway.onePort));
  expect(welcome.nats).toMatchObject({ throughGateway: true, servers: [world.nats.url] });
  stream.end();
  // Without a user NATS lets nobody do anything; that it says so shows that our bytes reach it.
  way.write("CONNECT {}\r\nPING\r\n");
  expect(await said(way, "Authorization")).toMatch(/-ERR 'Authorization/);
});

describe("without an agent's certificate nobody gets as far as to ask", () => {
  const strangers: [string, () => Promise<Client | undefined>][] = [
    ["no certificate", async () => undefined],
    ["one that it signed itself", async () => await forge(await newKeys(), { uris: [uriOf("victim")] })],
    [
      "one with another key behind it, of our authority, that is no client's",
      async () =>
        await forge(await newKeys(), {
          uris: [uriOf("victim")],
          usages: ["1.3.6.1.5.5.7.3.1"],
          pki: world.pki,
          caDirectory: world.caDirectory,
        }),
    ],
  ];
  test.each(strangers)("%s", async (_what, client) => {
    expect(await said(ask(await client(), natsTarget()))).not.toMatch(/ 200 |INFO/);
  });
});

const uriOf = (name: string): string => `spiffe://${TRUST_DOMAIN}/env/dream/agent/${name}`;

test("a certificate of our authority for an agent that never joined opens nothing", async () => {
  const client = await forge(await newKeys(), {
    uris: [uriOf("nobody")],
    pki: world.pki,
    caDirectory: world.caDirectory,
  });
  expect(await said(ask(client, natsTarget()))).toMatch(/^HTTP\/1\.1 403 .*not enrolled here/);
});

test("a way leads to NATS and to nothing else, by whatever name it is asked for", async () => {
  const agent = await world.join("dream", "curious");
  const { port } = new URL(world.nats.url);
  for (const target of [
    otherTarget,
    `localhost:${port}`,
    `127.0.0.2:${port}`,
    "169.254.169.254:80",
    "[::1]:22",
  ])
    expect(await said(ask(agent, target))).toMatch(/^HTTP\/1\.1 403 .*is no NATS server of this replica/);
  expect(reached).toBe(0);
});

test.each([
  ["another method", "GET / HTTP/1.1\r\n\r\n"],
  ["no port", "CONNECT localhost HTTP/1.1\r\n\r\n"],
  ["another version", "CONNECT localhost:4222 HTTP/2\r\n\r\n"],
  ["no end", `CONNECT localhost:4222 HTTP/1.1\r\nX: ${"x".repeat(5_000)}`],
])("a request with %s is refused", async (_what, request) => {
  const socket = shakeHands(await world.join("dream", "odd"));
  socket.write(request);
  expect(await said(socket)).toMatch(/^HTTP\/1\.1 400 /);
  await gone(socket);
});

test("a revoked agent's way ends within a second, and it gets no other", async () => {
  const agent = await world.join("dream", "bad");
  const way = await tunnel(agent);
  const stays = await tunnel(await world.join("dream", "good"));
  const startedMs = systemClock.monotonicMs();
  const { registry, tokens, log } = world;
  await revokeAgent(
    { registry, tokens, log },
    { environment: "dream", name: "bad", by: "test", reason: "stolen" },
  );
  await gone(way);
  expect(systemClock.monotonicMs() - startedMs).toBeLessThan(1_000);
  expect(await said(ask(agent, natsTarget()))).toMatch(/^HTTP\/1\.1 403 the agent dream\/bad was revoked/);
  expect(stays.destroyed).toBe(false);
});

test("of one agent's ways the oldest gives way to a fifth", async () => {
  const agent = await world.join("dream", "eager");
  const ways: TLSSocket[] = [];
  for (let count = 0; count < 4; count++) ways.push(await tunnel(agent));
  expect(ways.some(({ destroyed }) => destroyed)).toBe(false);
  const end = gone(ways[0]!);
  ways.push(await tunnel(agent));
  await end;
  expect(ways.slice(1).map(({ destroyed }) => destroyed)).toEqual([false, false, false, false]);
  // A place that became free is taken before another one is taken away.
  ways[2]!.destroy();
  ways.push(await tunnel(agent));
  expect(ways.slice(3).map(({ destroyed }) => destroyed)).toEqual([false, false, false]);
});

test("the gateway sees who calls on the one port, and not itself", async () => {
  const from = "127.0.0.9";
  const wire = createServer((near) => {
    const far = connectTcp({ host: "127.0.0.1", port: world.gateway.onePort, localAddress: from });
    for (const end of [near, far]) end.on("error", () => end.destroy());
    near.pipe(far).pipe(near);
    opened.push(near, far);
  }).listen(0, "127.0.0.1");
  await once(wire, "listening");
  const client = world.client(undefined, (wire.address() as AddressInfo).port);
  const err = await new Promise((resolve) => client.Check({}, (refused) => resolve(refused)));
  expect(err).toMatchObject({ code: status.UNAUTHENTICATED });
  const refusals = world.logLines.filter(({ msg }) => msg === "call without an agent's certificate refused");
  expect(refusals.at(-1)!.address).toMatch(/^127\.0\.0\.9:/);
  wire.close();
});

describe("with short limits", () => {
  let hasty: World;
  beforeEach(async () => {
    hasty = await startWorld({
      onePort: {
        listen: LISTEN,
        natsTargets: [],
        natsLimits: { handshakeWithinMs: 400, requestWithinMs: 400, silenceMaxMs: 500 },
      },
    });
  });
  afterEach(async () => {
    await hasty?.stop();
  });

  test("who does not ask is cut, and so is a way on which nothing is said", async () => {
    const agent = await hasty.join("dream", "quiet");
    const mute = shakeHands(agent, hasty);
    expect(await said(mute)).toMatch(/^HTTP\/1\.1 503 no request came within 400 ms/);
    await gone(await tunnel(agent, hasty));
    const lines = hasty.logLines.filter(({ msg }) => msg === "way to NATS ended by the server");
    expect(lines).toMatchObject([{ agentId: "dream/quiet", err: { code: "timeout" } }]);
  });

  test("when NATS is away that is said, and after its return it is reached", async () => {
    const agent = await hasty.join("dream", "patient");
    const way = await tunnel(agent, hasty);
    const end = gone(way);
    await hasty.nats.kill();
    await end;
    expect(await said(ask(agent, natsTarget(hasty), hasty))).toMatch(
      /^HTTP\/1\.1 502 the gateway does not reach NATS: ECONNREFUSED/,
    );
    await hasty.nats.restart();
    await tunnel(agent, hasty);
  });

  test("a gateway that closes takes its ways along, and while it drains it opens none", async () => {
    const agent = await hasty.join("dream", "last");
    const port = hasty.gateway.onePort;
    const way = await tunnel(agent, hasty);
    await hasty.gateway.drain(0);
    expect(await said(ask(agent, natsTarget(hasty), hasty))).toMatch(/^HTTP\/1\.1 503 this server stops/);
    const end = gone(way);
    await hasty.gateway.close();
    await end;
    const late = connectTcp(port, "127.0.0.1");
    expect(await once(late, "error")).toMatchObject([{ code: "ECONNREFUSED" }]);
  });
});

test("a way ends when a renewed certificate with a new key is at work, and opens with that one", async () => {
  const agent = await world.join("dream", "renewing");
  const first = await openSession(world.client(agent));
  const way = await tunnel(agent);
  const keys = await newKeys();
  const csrDer = await csrOf(keys);
  const answer = await new Promise<{ certificatePem: Buffer }>((resolve, reject) => {
    const request = { csrDer, version: { major: 1 } };
    world.client(agent).Renew(request, (err, response) => (err ? reject(err) : resolve(response!)));
  });
  const renewed = { keyPem: keys.keyPem, certificatePem: answer.certificatePem.toString() };
  expect(way.destroyed).toBe(false);
  const end = gone(way);
  const second = await openSession(world.client(renewed));
  await end;
  await tunnel(renewed);
  expect(await said(ask(agent, natsTarget()))).toMatch(/^HTTP\/1\.1 403 .*has another key by now/);
  first.stream.end();
  second.stream.end();
});
