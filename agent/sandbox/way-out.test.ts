/** The way out of a step without its box: real sockets on loopback, and a resolver that says what a test wants. */
import type { LookupAddress } from "node:dns";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { WayOut } from "./way-out.ts";

let target: Server;
let port: number;
let way: WayOut | undefined;
const open: Socket[] = [];

beforeEach(async () => {
  target = createServer((socket) => {
    open.push(socket);
    socket.on("error", () => undefined);
    socket.pipe(socket);
  }).listen(0, "127.0.0.1");
  await once(target, "listening");
  port = (target.address() as AddressInfo).port;
});
afterEach(async () => {
  await way?.close();
  for (const socket of open.splice(0)) socket.destroy();
  target.close();
});

const at = (...addresses: string[]): LookupAddress[] => addresses.map((address) => ({ address, family: 4 }));

/** Listens for the target itself and for the proxy. */
async function wayTo(resolve: () => Promise<LookupAddress[]>, mayBeLocal = true) {
  const targets = [{ host: "db.test", port, mayBeLocal, listen: { address: "127.0.0.1", port: 0 } }];
  way = new WayOut({ plan: { targets }, clock: systemClock, resolve });
  const ports: number[] = [];
  for (const index of [0, null]) {
    const listener = createServer().listen(0, "127.0.0.1");
    await once(listener, "listening");
    await way.serve(listener, index);
    ports.push((listener.address() as AddressInfo).port);
  }
  return { way, direct: ports[0]!, proxy: ports[1]! };
}

/** What comes back until the end; `broken` for a reset. */
async function said(to: number, text: string): Promise<string> {
  const socket = connect(to, "127.0.0.1");
  open.push(socket);
  let heard = "";
  socket.on("data", (data) => {
    heard += data.toString();
  });
  socket.end(text);
  return await new Promise((resolve) => {
    socket.once("error", () => resolve("broken"));
    socket.once("close", () => resolve(heard));
  });
}

test("a name is resolved outside, and its connection carried and counted", async () => {
  const { way, direct } = await wayTo(async () => at("127.0.0.1"));
  expect(await said(direct, "ping")).toBe("ping");
  await way.close();
  expect(way.traffic).toEqual({ targets: [[1, 0, 4, 4]], refused: 0 });
});

test.each(["127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"])(
  "a name that leads to %s leads nowhere",
  async (address) => {
    const { way, direct, proxy } = await wayTo(async () => at(address), false);
    let reached = 0;
    target.on("connection", () => reached++);
    expect(await said(direct, "ping")).toBe("broken");
    expect(await said(proxy, `CONNECT db.test:${port} HTTP/1.1\r\n\r\n`)).toMatch(
      /^HTTP\/1\.1 502 [\s\S]*db\.test:\d+ is at .*, which is an address of the agent's host/,
    );
    expect(reached).toBe(0);
    expect(way.traffic).toMatchObject({
      targets: [[0, 2, 0, 0]],
      trouble: expect.stringMatching(/db\.test/),
    });
  },
);

test("what was looked at is what is dialled, whatever the resolver says next", async () => {
  const answers = [at("127.0.0.1"), at("169.254.169.254")];
  let asked = 0;
  const { direct } = await wayTo(async () => answers[Math.min(asked++, 1)]!);
  expect(await said(direct, "ping")).toBe("ping");
  expect(asked).toBe(1);
});

test("an address that does not answer is followed by the next", async () => {
  const { direct } = await wayTo(async () => at("127.0.0.2", "127.0.0.1"));
  expect(await said(direct, "ping")).toBe("ping");
});

test("a name that is not known, and a port where nobody listens, are told in words", async () => {
  const lost = await wayTo(async () => {
    throw Object.assign(new Error("getaddrinfo"), { code: "ENOTFOUND" });
  });
  const request = `CONNECT db.test:${port} HTTP/1.1\r\n\r\n`;
  expect(await said(lost.proxy, request)).toMatch(/db\.test is not known to the resolver .*ENOTFOUND/);
  await lost.way.close();
  target.close();
  const { proxy } = await wayTo(async () => at("127.0.0.1"));
  expect(await said(proxy, request)).toMatch(/db\.test:\d+ does not answer: .*ECONNREFUSED/);
});

test("a target that breaks the connection breaks the step's, so that it is not taken for an end", async () => {
  const { direct } = await wayTo(async () => at("127.0.0.1"));
  target.removeAllListeners("connection");
  target.on("connection", (socket) => socket.once("data", () => socket.resetAndDestroy()));
  const socket = connect(direct, "127.0.0.1", () => socket.write("ping"));
  open.push(socket);
  const [err] = (await once(socket, "error")) as [NodeJS.ErrnoException];
  expect(err.code).toBe("ECONNRESET");
});

test("a step that ends while its target is dialled has sent what it wrote", async () => {
  const { way, direct } = await wayTo(async () => at("127.0.0.1"));
  const socket = connect(direct, "127.0.0.1", () => socket.end("ping"));
  open.push(socket);
  await once(socket, "finish");
  await way.close();
  expect(way.traffic.targets).toEqual([[1, 0, 4, 4]]);
});

test("a target that does not let go is let go of", async () => {
  const { way, direct } = await wayTo(async () => at("127.0.0.1"));
  target.removeAllListeners("connection");
  const held = createServer({ allowHalfOpen: true }, (socket) => open.push(socket.resume()));
  target.close();
  held.listen(port, "127.0.0.1");
  await once(held, "listening");
  const socket = connect(direct, "127.0.0.1", () => socket.end("ping"));
  socket.on("error", () => undefined); // what it gets in the end
  await once(socket, "finish");
  await way.close();
  expect(way.traffic.targets).toEqual([[1, 0, 4, 0]]);
  held.close();
});

test("a resolver that does not answer does not hold the end of a step", async () => {
  const { way, direct } = await wayTo(() => new Promise(() => undefined));
  const socket = connect(direct, "127.0.0.1", () => socket.end("ping"));
  socket.on("error", () => undefined); // what it gets in the end
  open.push(socket);
  await once(socket, "finish");
  await way.close();
  expect(way.traffic).toMatchObject({ targets: [[0, 1, 0, 0]], trouble: expect.stringMatching(/has ended/) });
});
