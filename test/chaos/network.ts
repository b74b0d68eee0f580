/**
 * Every connection between parties goes through here, and can be cut, silenced and slowed by pair.
 *
 * Who opened a connection is read from /proc: by its port, then its inode, then the process that holds it. So one
 * address serves all, as it does without us.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { createServer, connect as dial, type Server, type Socket } from "node:net";
import { systemClock } from "../../shared/system.ts";

/** cut: connections are reset, new ones refused. silence: bytes wait. slow: each piece waits `delayMs`. */
export interface LinkFault {
  mode: "cut" | "silence" | "slow";
  delayMs: number;
}

interface Link {
  pair: string;
  ends: [Socket, Socket | undefined];
}

export class Network implements AsyncDisposable {
  readonly #pids: () => Iterable<readonly [number, string]>;
  readonly #servers: Server[] = [];
  readonly #links = new Set<Link>();
  /** By the id of who set it. */
  readonly #faults = new Map<number, { pairs: ReadonlySet<string>; fault: LinkFault }>();
  #changed: { promise: Promise<void>; tell: () => void } = signal();

  /** `pids`: each process that takes part, with its name. */
  constructor(pids: () => Iterable<readonly [number, string]>) {
    this.#pids = pids;
  }

  /** What connects to `address` reaches the party `to` on 127.0.0.1:`upstreamPort`. Resolves when it listens. */
  async listen(to: string, address: { host: string; port: number }, upstreamPort: number): Promise<void> {
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
      void this.#accept(socket, to, address, upstreamPort);
    });
    this.#servers.push(server);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(address.port, address.host, resolve);
    });
  }

  break(id: number, pairs: readonly (readonly [string, string])[], fault: LinkFault): void {
    this.#faults.set(id, { pairs: new Set(pairs.map(([a, b]) => pairOf(a, b))), fault });
    for (const link of this.#links) if (this.#faultOf(link.pair)?.mode === "cut") destroy(link);
    this.#tell();
  }

  heal(id: number): void {
    this.#faults.delete(id);
    this.#tell();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const link of this.#links) destroy(link);
    this.#faults.clear();
    this.#tell();
    await Promise.all(this.#servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }

  async #accept(
    socket: Socket,
    to: string,
    address: { host: string; port: number },
    upstreamPort: number,
  ): Promise<void> {
    socket.on("error", () => undefined); // "close" follows
    const from = this.#whoHas(socket.remotePort ?? 0, address.port);
    const link: Link = { pair: pairOf(from ?? "nobody", to), ends: [socket, undefined] };
    this.#links.add(link);
    socket.once("close", () => this.#closed(link));
    if (this.#faultOf(link.pair)?.mode === "cut") return destroy(link);
    await this.#passable(link);
    if (socket.destroyed) return;
    const upstream = dial({ host: "127.0.0.1", port: upstreamPort, allowHalfOpen: true });
    link.ends[1] = upstream;
    upstream.on("error", () => undefined);
    upstream.once("close", () => this.#closed(link));
    socket.setNoDelay(true);
    upstream.setNoDelay(true);
    await Promise.all([this.#carry(link, socket, upstream), this.#carry(link, upstream, socket)]);
  }

  async #carry(link: Link, from: Socket, to: Socket): Promise<void> {
    try {
      for await (const piece of from) {
        await this.#passable(link);
        if (to.destroyed) return;
        if (!to.write(piece)) await drained(to);
      }
      to.end();
    } catch {
      destroy(link); // one end is gone: so is the other
    }
  }

  /** Resolves when a piece may pass. */
  async #passable(link: Link): Promise<void> {
    for (;;) {
      const fault = this.#faultOf(link.pair);
      if (fault?.mode === "slow") return await systemClock.sleep(fault.delayMs);
      if (fault?.mode !== "silence" || link.ends[0].destroyed) return;
      await this.#changed.promise;
    }
  }

  /** The worst of those that it is under. */
  #faultOf(pair: string): LinkFault | undefined {
    const faults = [...this.#faults.values()]
      .filter(({ pairs }) => pairs.has(pair))
      .map(({ fault }) => fault);
    return (
      faults.find(({ mode }) => mode === "cut") ??
      faults.find(({ mode }) => mode === "silence") ??
      faults.find(({ mode }) => mode === "slow")
    );
  }

  #closed(link: Link): void {
    destroy(link);
    this.#links.delete(link);
  }

  #tell(): void {
    const { tell } = this.#changed;
    this.#changed = signal();
    tell();
  }

  #whoHas(port: number, peerPort: number): string | undefined {
    const inode = inodeOf(port, peerPort);
    if (inode === undefined) return undefined;
    for (const [pid, name] of this.#pids()) if (holds(pid, inode)) return name;
    return undefined;
  }
}

function pairOf(a: string, b: string): string {
  return a < b ? `${a}|${b}` : `${b}|${a}`;
}

function destroy({ ends }: Link): void {
  for (const end of ends) end?.destroy();
}

function signal(): { promise: Promise<void>; tell: () => void } {
  let tell = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    tell = resolve;
  });
  return { promise, tell };
}

async function drained(socket: Socket): Promise<void> {
  await new Promise<void>((resolve) => {
    const done = (): void => {
      socket.off("drain", done);
      socket.off("close", done);
      resolve();
    };
    socket.on("drain", done);
    socket.on("close", done);
  });
}

/** From proc(5): `sl local_address rem_address st … inode`, ports in hexadecimal. */
function inodeOf(port: number, peerPort: number): string | undefined {
  const hex = (number: number): string => number.toString(16).toUpperCase().padStart(4, "0");
  const [own, peer] = [`:${hex(port)}`, `:${hex(peerPort)}`];
  for (const line of readFileSync("/proc/net/tcp", "latin1").split("\n")) {
    const columns = line.trim().split(/\s+/);
    if (columns[1]?.endsWith(own) && columns[2]?.endsWith(peer)) return columns[9];
  }
  return undefined;
}

function holds(pid: number, inode: string): boolean {
  try {
    const directory = `/proc/${pid}/fd`;
    return readdirSync(directory).some((fd) => readlink(`${directory}/${fd}`) === `socket:[${inode}]`);
  } catch {
    return false; // it has just gone
  }
}

function readlink(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
}
