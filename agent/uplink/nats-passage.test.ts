/** Through gateways that speak real TLS, to a real NATS. */
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { connect } from "nats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { PROXY_PASSWORD, PROXY_USER, startConnectProxy } from "../../test/support/connect-proxy.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { openNetwork, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { hostAndPort } from "../network/address.ts";
import { Network } from "../network/network.ts";
import { ProxyConfig, proxyOf } from "../network/proxy.ts";
import { type Authority, createAuthority } from "./gateway.fixture.ts";
import { teachNatsToDial } from "./nats-dial.ts";
import { TestDoor } from "./nats-door.fixture.ts";
import { endpointFor } from "./nats-endpoints.ts";
import { NatsPassage, offersNats } from "./nats-passage.ts";

let authority: Authority;
let nats: TestNats;
let plain: TestNats;
let directory: TestDirectory;

beforeAll(async () => {
  teachNatsToDial();
  directory = testDirectory();
  const file = (name: string, content: string): string => {
    writeFileSync(join(directory.path, name), content);
    return join(directory.path, name);
  };
  authority = await createAuthority();
  const { certificatePem, keyPem } = authority.server;
  nats = await startTestNats({
    tls: {
      certFile: file("nats.crt.pem", certificatePem),
      keyFile: file("nats.key.pem", keyPem),
      caFile: file("ca.pem", authority.caPem),
    },
  });
  plain = await startTestNats();
});
afterAll(async () => {
  await nats?.stop();
  await plain?.stop();
  directory?.[Symbol.dispose]();
});

const passageOf = (
  gateways: string[],
  { way }: Pick<Network, "way"> = openNetwork,
  random = () => 0,
): NatsPassage =>
  new NatsPassage({
    way,
    random,
    gateways: () => gateways,
    identity: () => authority.identity(0),
  });

async function reach(passage: NatsPassage, server: string, caPem = ""): Promise<void> {
  const endpoint = await endpointFor({ network: openNetwork, passage }, { servers: [server], caPem }, 0);
  const connection = await connect({ ...endpoint, user: nats.user, pass: nats.password, reconnect: false });
  await connection.flush();
  await connection.close();
}

test("NATS is reached through a gateway, in the clear inside the gateway's TLS where it is on that host", async () => {
  await using door = new TestDoor(authority);
  const passage = passageOf([await door.start()]);
  await reach(passage, `nats://127.0.0.1:${plain.port}`);
  expect(door.asked).toEqual([`127.0.0.1:${plain.port}`]);
  expect(passage.trouble).toBeUndefined();
});

test("NATS's own TLS goes through untouched, and its name is still what its certificate is held against", async () => {
  await using door = new TestDoor(authority);
  const passage = passageOf([await door.start()]);
  await reach(passage, `tls://localhost:${nats.port}`, authority.caPem);
  await expect(reach(passage, `tls://127.0.0.1:${nats.port}`, authority.caPem)).rejects.toThrow(
    /altnames|cert/i,
  );
  const other = await createAuthority();
  await expect(reach(passage, `tls://localhost:${nats.port}`, other.caPem)).rejects.toThrow(
    /certificate|signature/,
  );
});

test("the site's proxy is asked for the gateway, and knows nothing of NATS", async () => {
  await using proxy = await startConnectProxy();
  await using door = new TestDoor(authority);
  const gateway = await door.start();
  const passwordFile = join(directory.path, "password");
  writeFileSync(passwordFile, PROXY_PASSWORD);
  const given = proxyOf(ProxyConfig.parse({ url: proxy.url, username: PROXY_USER, passwordFile }));
  await using proxied = new Network({ clock: systemClock, siteCaPem: "", proxy: given });
  await reach(passageOf([gateway], proxied), `tls://localhost:${nats.port}`, authority.caPem);
  expect(proxy.opened).toEqual([gateway]);
});

describe("of several gateways", () => {
  const target = (): ReturnType<typeof hostAndPort> => hostAndPort(`127.0.0.1:${plain.port}`);

  test("one that is dead is passed over, and the one that answered is asked first from then on", async () => {
    await using dead = new TestDoor(authority);
    await using living = new TestDoor(authority);
    const [first, second] = [await dead.start(), await living.start()];
    dead.die();
    const passage = passageOf([first, second]);
    for (let count = 0; count < 2; count++) (await passage.dial(target())).destroy();
    expect(living.asked).toHaveLength(2);
  });

  test("one that has no such port, and one that refuses, are passed over", async () => {
    await using old = new TestDoor(authority, "h2");
    await using full = new TestDoor(authority);
    full.answer = "503 this server stops";
    await using good = new TestDoor(authority);
    const passage = passageOf([await old.start(), await full.start(), await good.start()]);
    (await passage.dial(target())).destroy();
    expect([full, good].map(({ asked }) => asked.length)).toEqual([1, 1]);
  });

  test("one that says nothing does not hold up the next try", async () => {
    const deaf = createServer((socket) => void socket.on("error", () => undefined)).listen(0, "127.0.0.1");
    await once(deaf, "listening");
    await using good = new TestDoor(authority);
    const passage = passageOf([`localhost:${(deaf.address() as AddressInfo).port}`, await good.start()]);
    const stop = new AbortController();
    const held = passage.dial(target(), stop.signal);
    (await passage.dial(target())).destroy();
    stop.abort(new Error("enough"));
    await expect(held).rejects.toThrow();
    deaf.close();
  });

  test("when none has a way the client's next tries come ever later, and at once again after one that had", async () => {
    await using away = new TestDoor(authority);
    away.answer = "502 the gateway does not reach NATS: ECONNREFUSED";
    const waits: number[] = [];
    const sleep = async (ms: number): Promise<void> => void waits.push(ms);
    const way = { ...openNetwork.way, clock: { ...systemClock, sleep } };
    const passage = passageOf([await away.start()], { way }, () => 1);
    for (let count = 0; count < 8; count++)
      await expect(passage.dial(target())).rejects.toThrow(/ECONNREFUSED/);
    expect(waits).toEqual([250, 500, 1_000, 2_000, 4_000, 8_000, 10_000]);
    away.answer = "200 OK";
    for (let count = 0; count < 2; count++) (await passage.dial(target())).destroy();
    expect(waits.slice(7)).toEqual([10_000]);
  });

  test("when all fail, the last one's reason is told, and all are tried again", async () => {
    await using one = new TestDoor(authority);
    await using two = new TestDoor(authority);
    one.answer = two.answer = "403 the agent dream/a1 was revoked";
    const passage = passageOf([await one.start(), await two.start()]);
    await expect(passage.dial(target())).rejects.toMatchObject({ code: "auth.denied" });
    expect(passage.trouble).toMatch(/opens no way to NATS: the agent dream\/a1 was revoked/);
    one.answer = "200 OK";
    (await passage.dial(target())).destroy();
    expect(passage.trouble).toBeUndefined();
  });
});

test("a gateway of another authority gets neither a request nor the certificate", async () => {
  const stranger = await createAuthority();
  await using door = new TestDoor(stranger);
  await expect(passageOf([await door.start()]).dial({ host: "127.0.0.1", port: 1 })).rejects.toThrow(
    /certificate|signature/,
  );
  expect(door.asked).toEqual([]);
});

test("whether a gateway has the way is seen without asking for it", async () => {
  await using door = new TestDoor(authority);
  await using old = new TestDoor(authority, "h2");
  const caPem = Buffer.from(authority.caPem);
  const offers = async (gateway: string) => await offersNats(openNetwork.way, hostAndPort(gateway), caPem);
  expect(await offers(await door.start())).toBe(true);
  expect(await offers(await old.start())).toBe(false);
  expect(await offers("localhost:1")).toBe(false);
  expect(door.asked).toEqual([]);
});

test("a client whose gateway dies comes back through another by itself", async () => {
  await using first = new TestDoor(authority);
  await using second = new TestDoor(authority);
  const passage = passageOf([await first.start(), await second.start()]);
  const access = { servers: [`nats://127.0.0.1:${plain.port}`], caPem: "" };
  const endpoint = await endpointFor({ network: openNetwork, passage }, access, 0);
  const connection = await connect({
    ...endpoint,
    user: plain.user,
    pass: plain.password,
    reconnectTimeWait: 20,
  });
  first.die();
  for await (const { type } of connection.status()) if (type === "reconnect") break;
  await connection.flush();
  expect(second.asked).toEqual([`127.0.0.1:${plain.port}`]);
  await connection.close();
});
