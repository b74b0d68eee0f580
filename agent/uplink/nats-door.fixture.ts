/** A gateway's way to NATS as the agent meets it, that does what a test tells it. */
import { once } from "node:events";
import { type AddressInfo, connect, type Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { NATS_ALPN } from "../../shared/wire/one-port.ts";
import type { Authority } from "./gateway.fixture.ts";

export class TestDoor implements AsyncDisposable {
  /** `host:port` that were asked for. */
  readonly asked: string[] = [];
  /** The status line, or undefined for silence. */
  answer: string | undefined = "200 OK";
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor(authority: Authority, protocol = NATS_ALPN) {
    const { certificatePem: cert, keyPem: key } = authority.server;
    const options = { cert, key, ca: authority.caPem, requestCert: true, ALPNProtocols: [protocol] };
    this.#server = createServer(options, (socket) => void this.#serve(socket));
    this.#server.on("connection", (socket) => this.#keep(socket));
  }

  async start(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `localhost:${(this.#server.address() as AddressInfo).port}`;
  }

  /** As when the replica dies; `start` is not for one that has died. */
  die(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.die();
  }

  async #serve(near: TLSSocket): Promise<void> {
    this.#keep(near);
    const [head] = (await once(near, "data")) as [Buffer];
    near.pause();
    const target = /^CONNECT (\S+):(\d+) HTTP\/1\.1\r\nHost: \S+\r\n\r\n$/.exec(head.toString());
    this.asked.push(target ? `${target[1]}:${target[2]}` : head.toString());
    if (this.answer === undefined) return;
    near.write(`HTTP/1.1 ${this.answer}\r\n\r\n`);
    if (!target || !this.answer.startsWith("2")) return void near.end();
    const far = connect(Number(target[2]), target[1]);
    this.#keep(far);
    near.pipe(far).pipe(near);
    near.once("close", () => far.destroy());
    far.once("close", () => near.destroy());
  }

  #keep(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.once("close", () => this.#sockets.delete(socket));
  }
}
