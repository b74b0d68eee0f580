/**
 * The agent's one way out. Where the site has a proxy, a listener on loopback for each target stands in for it: the
 * clients of gRPC and NATS know no such proxy (or read it from the environment by rules of their own), and speak TLS
 * through the listener with the target itself. See docs/adr/0027-a-loopback-tunnel-through-the-proxy.md.
 */
import { once } from "node:events";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { InsituError } from "../../shared/errors.ts";
import { addressOf, type HostAndPort } from "./address.ts";
import { dial, proxyFor, type WayOut } from "./dial.ts";

/** Of one target. The agent itself has two at a time at the most; the rest is for who else of this host finds it. */
const CONNECTIONS_MAX = 16;

export interface Route {
  /** Where to connect: the target, or the listener that stands in for it. */
  address: HostAndPort;
  tunnelled: boolean;
}

interface Tunnel {
  server: Server;
  address: HostAndPort;
}

export class Network implements AsyncDisposable {
  readonly way: WayOut;
  readonly #tunnels = new Map<string, Promise<Tunnel>>();
  readonly #troubles = new Map<string, string>();
  readonly #sockets = new Set<Socket>();
  #closed = false;

  constructor(way: WayOut) {
    this.way = way;
  }

  /** Whether what is dialled at `target` goes through the proxy. */
  isTunnelled(target: HostAndPort): boolean {
    return proxyFor(this.way, target) !== undefined;
  }

  /** The same listener for the same target, until `close`. */
  async route(target: HostAndPort): Promise<Route> {
    if (!this.isTunnelled(target)) return { address: target, tunnelled: false };
    const key = addressOf(target);
    const open = this.#tunnels.get(key) ?? this.#open(target);
    this.#tunnels.set(key, open);
    try {
      const { address } = await open;
      return { address, tunnelled: true };
    } catch (err) {
      this.#tunnels.delete(key); // no file descriptor was free, for example: the next one tries again
      throw err;
    }
  }

  /** What the proxy said when `target` was last tried, or undefined when it let us through. */
  troubleOf(target: HostAndPort): string | undefined {
    return this.#troubles.get(addressOf(target));
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const socket of this.#sockets) socket.destroy();
    const tunnels = await Promise.allSettled(this.#tunnels.values());
    for (const one of tunnels) if (one.status === "fulfilled") one.value.server.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #open(target: HostAndPort): Promise<Tunnel> {
    if (this.#closed) throw new InsituError("cancelled", "the network is closed");
    const server = createServer(
      { noDelay: true, pauseOnConnect: true, allowHalfOpen: true },
      (near) => void this.#serve(near, target),
    );
    server.maxConnections = CONNECTIONS_MAX;
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    server.unref(); // the connections keep the process alive, not the listener
    return { server, address: { host: "127.0.0.1", port: (server.address() as AddressInfo).port } };
  }

  async #serve(near: Socket, target: HostAndPort): Promise<void> {
    const gone = new AbortController();
    this.#keep(near);
    near.once("close", () => gone.abort());
    try {
      const far = await dial(this.way, target, gone.signal); // `close` takes the near end away
      this.#troubles.delete(addressOf(target));
      this.#keep(far);
      for (const [one, other] of [
        [near, far],
        [far, near],
      ] as const) {
        one.once("close", () => other.destroySoon()); // what it said last still arrives
        one.pipe(other);
      }
      if (near.destroyed) far.destroy();
    } catch (err) {
      if (!gone.signal.aborted) this.#troubles.set(addressOf(target), InsituError.from(err).message);
      near.destroy();
    }
  }

  #keep(socket: Socket): void {
    if (this.#closed) socket.destroy();
    this.#sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.once("close", () => this.#sockets.delete(socket));
  }
}
