/**
 * Every connection between parties goes through here, and can be cut, silenced and slowed by pair.
 *
 * Who opened a connection is read from /proc: by its port, then its inode, then the process that holds it. So one
 * address serves all, as it does without us.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { createServer, connect as dial, type Server, type Socket } from "node:net";
import { systemClock } from "../../shared/system.ts";
import { type Fault, type FaultKind, waysOf } from "./faults.ts";
import type { Network } from "./network.ts";
import { firstPort, ownPorts } from "./ports.ts";

const LOOPBACK = "127.0.0.1";

/** Who opened it, and to whom. */
interface Link {
  from: string;
  to: string;
  ends: [Socket, Socket | undefined];
}

export class ProxyNetwork implements Network {
  readonly name = "proxy";
  readonly remote = false;
  readonly cannot = new Map<FaultKind, string>([
    ["loss", "needs network namespaces: a proxy sees no packets"],
    ["unplug", "needs network namespaces: a proxy has no links"],
  ]);
  readonly #addresses = new Map<string, string>();
  #portNext = firstPort();
  readonly #pids: () => Iterable<readonly [number, string]>;
  readonly #servers: Server[] = [];
  readonly #links = new Set<Link>();
  /** By the id of who set it. */
  readonly #faults = new Map<number, Fault & { ways: ReadonlySet<string> }>();
  #changed: { promise: Promise<void>; tell: () => void } = signal();

  /** `pids`: each process that takes part, with its name. */
  constructor(pids: () => Iterable<readonly [number, string]>) {
    this.#pids = pids;
  }

  /** All bind one address; each is reached at another of its own. */
  host(party: string): string {
    if (!this.#addresses.has(party)) this.#addresses.set(party, `127.0.1.${this.#addresses.size + 1}`);
    return LOOPBACK;
  }

  async ports(_party: string, count: number): Promise<number[]> {
    const found = await ownPorts(count, this.#portNext);
    this.#portNext = found.at(-1)! + 1;
    return found;
  }

  async open(party: string, port: number): Promise<string> {
    const address = this.#addresses.get(party)!;
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
      void this.#accept(socket, party, port);
    });
    this.#servers.push(server);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, address, resolve);
    });
    return address;
  }

  at(_party: string, command: string, args: readonly string[]) {
    return { command, args };
  }

  break(fault: Fault): void {
    const ways = new Set(waysOf(fault).map(([from, to]) => way(from, to)));
    this.#faults.set(fault.id, { ...fault, ways });
    for (const link of this.#links) if (this.#faultOf(link.from, link.to)?.kind === "cut") destroy(link);
    this.#tell();
  }

  heal({ id }: Fault): void {
    this.#faults.delete(id);
    this.#tell();
  }

  /** The kernel that serves all of us lives on, and says that the connections of a killed process are closed. */
  powerOff(): void {}

  async [Symbol.asyncDispose](): Promise<void> {
    for (const link of this.#links) destroy(link);
    this.#faults.clear();
    this.#tell();
    await Promise.all(this.#servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }

  async #accept(socket: Socket, to: string, port: number): Promise<void> {
    socket.on("error", () => undefined); // "close" follows
    const from = this.#whoHas(socket.remotePort ?? 0, port) ?? "nobody";
    const link: Link = { from, to, ends: [socket, undefined] };
    this.#links.add(link);
    socket.once("close", () => this.#closed(link));
    if (this.#faultOf(from, to)?.kind === "cut") return destroy(link);
    // A connection is made by both sides: one way alone does not do.
    await this.#passable(link, from, to);
    await this.#passable(link, to, from);
    if (socket.destroyed) return;
    const upstream = dial({ host: LOOPBACK, port, allowHalfOpen: true });
    link.ends[1] = upstream;
    upstream.on("error", () => undefined);
    upstream.once("close", () => this.#closed(link));
    socket.setNoDelay(true);
    upstream.setNoDelay(true);
    await Promise.all([
      this.#carry(link, [from, socket], [to, upstream]),
      this.#carry(link, [to, upstream], [from, socket]),
    ]);
  }

  async #carry(link: Link, [from, source]: [string, Socket], [to, sink]: [string, Socket]): Promise<void> {
    try {
      for await (const piece of source) {
        await this.#passable(link, from, to);
        if (sink.destroyed) return;
        if (!sink.write(piece)) await drained(sink);
      }
      sink.end();
    } catch {
      destroy(link); // one end is gone: so is the other
    }
  }

  /** Resolves when a piece may pass. */
  async #passable(link: Link, from: string, to: string): Promise<void> {
    for (;;) {
      const fault = this.#faultOf(from, to);
      if (fault?.kind === "slow") return await systemClock.sleep(fault.amountMs);
      const waits = fault?.kind === "silence" || fault?.kind === "one-way";
      if (!waits || link.ends[0].destroyed) return;
      await this.#changed.promise;
    }
  }

  /** The worst of those that this way is under. */
  #faultOf(from: string, to: string): Fault | undefined {
    const faults = [...this.#faults.values()].filter(({ ways }) => ways.has(way(from, to)));
    const order = ["cut", "silence", "one-way", "slow"] as const;
    return order.map((kind) => faults.find((fault) => fault.kind === kind)).find((fault) => fault);
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

function way(from: string, to: string): string {
  return `${from} to ${to}`;
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
