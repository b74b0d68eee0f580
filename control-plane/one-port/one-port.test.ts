/** A real port on loopback, and whoever knocks at it. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { text } from "node:stream/consumers";
import { connect as connectTls } from "node:tls";
import pino from "pino";
import { expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { OnePort, type OnePortLimits } from "./one-port.ts";

class Knocked implements AsyncDisposable {
  readonly got: { protocol: "grpc" | "nats"; socket: Socket }[] = [];
  readonly port: OnePort;
  readonly #waiting: (() => void)[] = [];

  constructor(limits: Partial<OnePortLimits> = {}) {
    const take = (protocol: "grpc" | "nats") => (socket: Socket) => {
      this.got.push({ protocol, socket });
      for (const resolve of this.#waiting.splice(0)) resolve();
    };
    this.port = new OnePort({
      clock: systemClock,
      log: pino({ level: "silent" }),
      listen: { host: "127.0.0.1", port: 0 },
      grpc: take("grpc"),
      nats: take("nats"),
      limits,
    });
  }

  async taken(count: number): Promise<void> {
    while (this.got.length < count) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Resolves when it is connected. */
  async knock(bytes?: Buffer | string): Promise<Socket> {
    const socket = connect({ host: "127.0.0.1", port: this.port.port });
    socket.on("error", () => undefined);
    await once(socket, "connect");
    if (bytes) socket.write(bytes);
    return socket;
  }

  /** With a ClientHello that offers these. */
  hello(protocols: string[]): Socket {
    const socket = connectTls({ host: "127.0.0.1", port: this.port.port, ALPNProtocols: protocols });
    return socket.on("error", () => undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.port.close();
    for (const { socket } of this.got) socket.destroy();
  }
}

async function opened(limits?: Partial<OnePortLimits>): Promise<Knocked> {
  const knocked = new Knocked(limits);
  await knocked.port.start();
  return knocked;
}

/** Resolves when the other side has let go, however it did. */
const gone = async (socket: Socket): Promise<void> => {
  socket.resume();
  if (!socket.closed) await new Promise((resolve) => socket.once("close", resolve));
};

test("a connection goes to who speaks what it offers, with every byte of it", async () => {
  await using knocked = await opened();
  for (const [protocols, taken] of [
    [["h2"], "grpc"],
    [["insitu-nats/1"], "nats"],
    [["http/1.1", "h2"], "grpc"],
  ] as const) {
    const client = knocked.hello([...protocols]);
    await knocked.taken(knocked.got.length + 1);
    const { protocol, socket } = knocked.got.at(-1)!;
    expect(protocol).toBe(taken);
    expect([...(socket.read() as Buffer).subarray(0, 3)]).toEqual([22, 3, 1]);
    client.destroy();
  }
  expect(knocked.port.counts).toMatchObject({ grpc: 2, nats: 1, waiting: 0 });
});

test("a hello that comes in pieces is put together, and what comes with it is not lost", async () => {
  await using knocked = await opened();
  const client = knocked.hello(["insitu-nats/1"]);
  await knocked.taken(1);
  const hello = knocked.got[0]!.socket.read() as Buffer;
  const pieces = await knocked.knock();
  pieces.setNoDelay(true);
  for (let at = 0; at < hello.length; at += 100) {
    await new Promise<void>((resolve) => pieces.write(hello.subarray(at, at + 100), () => resolve()));
    await new Promise((resolve) => setImmediate(resolve));
  }
  pieces.end("more");
  await knocked.taken(2);
  expect(await text(knocked.got[1]!.socket)).toBe(`${hello.toString()}more`);
  client.destroy();
});

test.each([
  ["HTTP in the clear", "GET / HTTP/1.1\r\nHost: insitu\r\n\r\n"],
  ["NATS in the clear", "CONNECT {}\r\nPING\r\n"],
])("%s is cut at once", async (_what, bytes) => {
  await using knocked = await opened();
  await gone(await knocked.knock(bytes));
  expect(knocked.port.counts.refused).toMatchObject({ notTls: 1 });
  expect(knocked.got).toEqual([]);
});

test.each([[["http/1.1"]], [["postgresql"]], [[]]])("TLS that offers %j is cut", async (protocols) => {
  await using knocked = await opened();
  await gone(knocked.hello(protocols));
  expect(knocked.port.counts.refused).toMatchObject({ protocol: 1 });
  expect(knocked.got).toEqual([]);
});

test("who says nothing, or one byte at a time, is cut when its time is over, and by the number of its bytes", async () => {
  await using knocked = await opened({ helloWithinMs: 300 });
  const startedMs = systemClock.monotonicMs();
  const silent = await knocked.knock();
  const begun = await knocked.knock(Buffer.from([22, 3, 1, 2, 0, 1]));
  await Promise.all([gone(silent), gone(begun)]);
  expect(systemClock.monotonicMs() - startedMs).toBeGreaterThan(250);

  await using patient = await opened();
  const dribbling = await patient.knock(Buffer.from([22, 3, 1, 2, 0, 1, 0, 1, 0xfc]));
  const end = gone(dribbling);
  dribbling.setNoDelay(true);
  while (!dribbling.destroyed) {
    await new Promise<void>((resolve) => dribbling.write(Buffer.alloc(1), () => resolve()));
    await new Promise((resolve) => setImmediate(resolve));
  }
  await end;
  expect(patient.port.counts.refused.slow).toBe(1);
});

test("where too many wait, the oldest gives way to the newest, and who has said its hello stays", async () => {
  await using knocked = await opened({ waitingPerNetwork: 3 });
  const client = knocked.hello(["h2"]);
  await knocked.taken(1);
  const silent: Socket[] = [];
  for (let count = 0; count < 5; count++) silent.push(await knocked.knock());
  await Promise.all(silent.slice(0, 2).map(gone));
  expect(silent.slice(2).map(({ destroyed }) => destroyed)).toEqual([false, false, false]);
  expect(knocked.port.counts).toMatchObject({ waiting: 3, open: 4, refused: { full: 2 } });
  expect(client.destroyed).toBe(false);
  for (const socket of [client, ...silent]) socket.destroy();
});

test("of one network no more are taken than may be, and one that leaves makes room", async () => {
  await using knocked = await opened({ connectionsPerNetwork: 1 });
  const first = knocked.hello(["h2"]);
  await knocked.taken(1);
  await gone(await knocked.knock());
  expect(knocked.port.counts.refused.full).toBe(1);
  const left = once(knocked.got[0]!.socket.resume(), "close");
  first.destroy();
  await left;
  const next = knocked.hello(["h2"]);
  await knocked.taken(2);
  next.destroy();
});

test("a port that is taken is said so", async () => {
  await using knocked = await opened();
  const second = new OnePort({
    clock: systemClock,
    log: pino({ level: "silent" }),
    listen: { host: "127.0.0.1", port: knocked.port.port },
    grpc: (socket) => socket.destroy(),
    nats: (socket) => socket.destroy(),
  });
  await expect(second.start()).rejects.toMatchObject({
    code: "unavailable",
    message: expect.stringMatching(/the one port cannot listen on 127\.0\.0\.1, port \d+ .*EADDRINUSE/),
  });
});
