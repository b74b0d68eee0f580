/**
 * One TCP port for everything that agents need. Looks at the ClientHello of each connection, without taking part in TLS, and
 * hands the connection on, with every byte, to whoever speaks the protocol that it asks for.
 */
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import { GRPC_ALPN, NATS_ALPN } from "../../shared/wire/one-port.ts";
import { networkOf } from "../gateway/rate-limit.ts";
import { readClientHello } from "./client-hello.ts";

export interface OnePortLimits {
  connections: number;
  /** Of one address, or of the first 64 bits of it in IPv6. A site behind one address has many agents. */
  connectionsPerNetwork: number;
  /** That have not said their hello yet. The oldest gives way. */
  waiting: number;
  waitingPerNetwork: number;
  /** For the whole hello. */
  helloWithinMs: number;
}

const LIMITS: OnePortLimits = {
  connections: 16_384,
  connectionsPerNetwork: 4_096,
  waiting: 1_024,
  waitingPerNetwork: 256,
  helloWithinMs: 10_000,
};
/** A hello comes in one or two; who sends it by the byte makes us read it again each time. */
const HELLO_MAX_READS = 64;
const COUNTS_EVERY_MS = 60_000;

export interface OnePortOptions {
  clock: Clock;
  log: Logger;
  listen: { host: string; port: number };
  /** Get the socket with nothing of it read. */
  grpc(socket: Socket): void;
  nats(socket: Socket): void;
  limits?: Partial<OnePortLimits> | undefined;
}

/** Since the start; `open` and `waiting` are of now. */
export interface OnePortCounts {
  open: number;
  waiting: number;
  grpc: number;
  nats: number;
  refused: { notTls: number; protocol: number; slow: number; full: number };
}

interface Waiting {
  network: string;
  timer: Timer;
}

export class OnePort implements AsyncDisposable {
  readonly #options: OnePortOptions;
  readonly #limits: OnePortLimits;
  readonly #server: Server;
  readonly #open = new Map<string, number>();
  /** In the order of coming. */
  readonly #waiting = new Map<Socket, Waiting>();
  readonly #counts = { grpc: 0, nats: 0, refused: { notTls: 0, protocol: 0, slow: 0, full: 0 } };
  #told = "";
  #telling: Timer | undefined;

  constructor(options: OnePortOptions) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 30_000 }, (socket) =>
      this.#accept(socket),
    );
    this.#server.maxConnections = this.#limits.connections;
    this.#server.on("drop", () => this.#counts.refused.full++);
  }

  /** Resolves when it listens. @throws unavailable when the address cannot be had */
  async start(): Promise<void> {
    const { listen, log, clock } = this.#options;
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (cause) => {
        const message = `the one port cannot listen on ${listen.host}, port ${listen.port} (${cause.message}): is it taken, or below 1024 and not allowed to this user?`;
        reject(new InsituError("unavailable", message, { cause }));
      });
      this.#server.listen(listen.port, listen.host, resolve);
    });
    this.#server.removeAllListeners("error").on("error", (err) => log.error({ err }, "the one port failed"));
    this.#telling = clock.every(COUNTS_EVERY_MS, () => this.#tell());
    log.info({ host: listen.host, port: this.port }, "one port listens for gRPC and NATS");
  }

  /** After `start`. */
  get port(): number {
    return (this.#server.address() as AddressInfo | null)?.port ?? 0;
  }

  get counts(): OnePortCounts {
    const open = [...this.#open.values()].reduce((sum, count) => sum + count, 0);
    return { open, waiting: this.#waiting.size, ...structuredClone(this.#counts) };
  }

  /** Takes no more. What was handed on is closed by whoever has it. */
  async close(): Promise<void> {
    this.#telling?.cancel();
    this.#server.close();
    for (const socket of [...this.#waiting.keys()]) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #accept(socket: Socket): void {
    socket.on("error", () => socket.destroy());
    const network = networkOf(`${socket.remoteAddress ?? ""}:${socket.remotePort ?? 0}`);
    const { connectionsPerNetwork, waiting, waitingPerNetwork, helloWithinMs } = this.#limits;
    const before = this.#open.get(network) ?? 0;
    if (before >= connectionsPerNetwork) {
      this.#counts.refused.full++;
      return void socket.destroy();
    }
    const ofNetwork = [...this.#waiting].filter(([, one]) => one.network === network);
    if (ofNetwork.length >= waitingPerNetwork) this.#refuse(ofNetwork[0]![0], "full");
    else if (this.#waiting.size >= waiting) this.#refuse([...this.#waiting.keys()][0]!, "full");
    this.#open.set(network, before + 1);
    const timer = this.#options.clock.after(helloWithinMs, () => this.#refuse(socket, "slow"));
    this.#waiting.set(socket, { network, timer });
    socket.once("close", () => {
      const left = this.#open.get(network)! - 1;
      if (left > 0) this.#open.set(network, left);
      else this.#open.delete(network);
      this.#settle(socket);
    });
    this.#read(socket);
  }

  #read(socket: Socket): void {
    let head = Buffer.alloc(0);
    let reads = 0;
    const onReadable = (): void => {
      const bytes = socket.read() as Buffer | null;
      if (bytes === null || !this.#waiting.has(socket)) return;
      head = Buffer.concat([head, bytes]);
      const verdict = readClientHello(head);
      if (verdict.kind === "more") {
        if (++reads > HELLO_MAX_READS) this.#refuse(socket, "slow");
        return;
      }
      if (verdict.kind === "refused") return this.#refuse(socket, "notTls");
      socket.off("readable", onReadable);
      this.#settle(socket);
      // TLS takes what is in the buffer for what has come, and the rest from the handle.
      socket.unshift(head);
      this.#handOn(socket, verdict.hello.protocols);
    };
    socket.on("readable", onReadable);
    socket.once("end", () => this.#waiting.has(socket) && socket.destroy());
  }

  #handOn(socket: Socket, protocols: readonly string[]): void {
    const { grpc, nats } = this.#options;
    if (protocols.includes(NATS_ALPN)) {
      this.#counts.nats++;
      nats(socket);
    } else if (protocols.includes(GRPC_ALPN)) {
      this.#counts.grpc++;
      grpc(socket);
    } else {
      this.#counts.refused.protocol++;
      socket.destroy();
    }
  }

  #refuse(socket: Socket, why: keyof OnePortCounts["refused"]): void {
    this.#counts.refused[why]++;
    this.#settle(socket);
    socket.destroy();
  }

  #settle(socket: Socket): void {
    this.#waiting.get(socket)?.timer.cancel();
    this.#waiting.delete(socket);
  }

  /** A port on the Internet is knocked at all day: one line a minute at the most, and none when nothing was refused. */
  #tell(): void {
    const { refused, ...counts } = this.counts;
    const text = JSON.stringify(refused);
    if (text !== this.#told && Object.values(refused).some((count) => count > 0))
      this.#options.log.info({ ...counts, refused }, "connections were refused at the one port");
    this.#told = text;
  }
}
