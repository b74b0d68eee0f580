/** Through a proxy that is a process of its own, to servers that are real. */
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { createServer as createTlsServer } from "node:tls";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import {
  type ConnectProxy,
  PROXY_PASSWORD,
  PROXY_USER,
  startConnectProxy,
} from "../../test/support/connect-proxy.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { createAuthority } from "../uplink/gateway.fixture.ts";
import { addressOf } from "./address.ts";
import { dial } from "./dial.ts";
import { Network } from "./network.ts";
import { ProxyConfig, proxyOf, type SiteProxy } from "./proxy.ts";

let proxy: ConnectProxy;
let directory: TestDirectory;
let echo: Server;
let target: { host: string; port: number };

beforeAll(async () => {
  directory = testDirectory();
  writeFileSync(join(directory.path, "right"), `${PROXY_PASSWORD}\n`);
  writeFileSync(join(directory.path, "wrong"), "guess");
  proxy = await startConnectProxy();
  // Speaks first, as NATS does: its word may come in one packet with the proxy's answer.
  echo = createServer({ allowHalfOpen: true }, (socket) => {
    socket.write("hello ");
    socket.pipe(socket);
  });
  echo.listen(0, "127.0.0.1");
  await once(echo, "listening");
  target = { host: "127.0.0.1", port: (echo.address() as AddressInfo).port };
});
afterAll(async () => {
  echo?.close();
  await proxy?.[Symbol.asyncDispose]();
  directory?.[Symbol.dispose]();
});

const through = (
  change: { url?: string; file?: string; username?: string | undefined; noProxy?: string[] } = {},
): SiteProxy => {
  const { url = proxy.url, file = "right", username = PROXY_USER, noProxy = [] } = change;
  const login = username === "" ? {} : { username, passwordFile: join(directory.path, file) };
  return proxyOf(ProxyConfig.parse({ url, noProxy, ...login }));
};
const wayThrough = (given: SiteProxy) => ({ clock: systemClock, siteCaPem: "", proxy: given });
const say = async (socket: Socket, words: string): Promise<string> => {
  socket.end(words);
  return await text(socket);
};

test("a connection goes through the proxy, and not a byte of what the target says first is lost", async () => {
  const before = proxy.opened.length;
  const socket = await dial(wayThrough(through()), target);
  expect(await say(socket, "world")).toBe("hello world");
  expect(proxy.opened.slice(before)).toEqual([addressOf(target)]);
});

test("what noProxy names is reached directly", async () => {
  const before = proxy.opened.length;
  const socket = await dial(wayThrough(through({ noProxy: ["127.0.0.0/8"] })), target);
  expect(await say(socket, "world")).toBe("hello world");
  expect(proxy.opened).toHaveLength(before);
});

test("a listener on loopback stands in for the target; the same one, until it is closed", async () => {
  const network = new Network(wayThrough(through()));
  const route = await network.route(target);
  expect(route).toMatchObject({ tunnelled: true, address: { host: "127.0.0.1" } });
  expect(await network.route(target)).toEqual(route);
  const big = "x".repeat(3_000_000);
  expect((await say(connect(route.address), big)) === `hello ${big}`).toBe(true);
  const open = connect(route.address);
  await once(open, "data");
  const closed = once(open, "close");
  await network.close();
  await closed;
  const [refused] = (await once(connect(route.address), "error")) as [NodeJS.ErrnoException];
  expect(refused.code).toBe("ECONNREFUSED");
});

test.each<[string, Parameters<typeof through>[0], RegExp, string]>([
  [
    "a wrong password",
    { file: "wrong" },
    /does not accept the password of user "site-7".*wrong/,
    "auth.denied",
  ],
  ["no user", { username: "" }, /asks for a user and a password: set proxy\.username/, "auth.denied"],
  [
    "a password file that is not there",
    { file: "gone" },
    /password of the proxy cannot be read.*gone/,
    "auth.denied",
  ],
  [
    "a proxy that is not there",
    { url: "http://127.0.0.1:1" },
    /the proxy 127\.0\.0\.1:1: .*ECONNREFUSED/,
    "unreachable",
  ],
])("%s is told, by the dialler and of the listener", async (_, change, message, code) => {
  const way = wayThrough(through(change));
  await expect(dial(way, target)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  await using network = new Network(way);
  const { address } = await network.route(target);
  await once(connect(address), "close");
  expect(network.troubleOf(target)).toMatch(message);
});

test("a proxy that speaks TLS is trusted by an authority of the site, and by that alone", async () => {
  const authority = await createAuthority();
  const { keyPem: key, certificatePem: cert } = authority.server;
  const plain = Number(new URL(proxy.url).port);
  const front = createTlsServer({ key, cert, allowHalfOpen: true }, (near) => {
    const far = connect(plain, "127.0.0.1");
    for (const socket of [near, far]) socket.on("error", () => socket.destroy());
    near.pipe(far).pipe(near);
  });
  await once(front.listen(0, "localhost"), "listening");
  const given = through({ url: `https://localhost:${(front.address() as AddressInfo).port}` });
  const socket = await dial({ clock: systemClock, siteCaPem: authority.caPem, proxy: given }, target);
  expect(await say(socket, "world")).toBe("hello world");
  await expect(dial(wayThrough(given), target)).rejects.toMatchObject({
    code: "unreachable",
    message: expect.stringMatching(/TLS with the proxy localhost:\d+: .*(certificate|issuer)/),
  });
  front.close();
});

test("a target that the proxy cannot reach is told as such", async () => {
  await expect(dial(wayThrough(through()), { host: "127.0.0.1", port: 1 })).rejects.toMatchObject({
    code: "unreachable",
    message: expect.stringMatching(/opens no way to 127\.0\.0\.1:1 \(502 Bad Gateway\)/),
  });
});

test.each(["gw\r\nX-Evil: 1", "gw example", "", "gw/path"])(
  "%j is no host to ask a proxy for",
  async (host) => {
    const before = proxy.opened.length + proxy.refused.length;
    await expect(dial(wayThrough(through()), { host, port: 1 })).rejects.toThrow(/is no host:port/);
    expect(proxy.opened.length + proxy.refused.length).toBe(before);
  },
);

test.each([
  ["no HTTP", "SSH-2.0-x\r\n\r\n", /what it answers is not HTTP/],
  ["an answer without an end", "H".repeat(70_000), /has no end/],
])("a proxy that says %s is given up", async (_, answer, message) => {
  const odd = createServer((socket) => void socket.on("error", () => undefined).write(answer));
  odd.listen(0, "127.0.0.1");
  await once(odd, "listening");
  const url = `http://127.0.0.1:${(odd.address() as AddressInfo).port}`;
  await expect(dial(wayThrough(through({ url })), target)).rejects.toThrow(message);
  odd.close();
});
