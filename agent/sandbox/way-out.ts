/**
 * Carries a boxed step's connections to the targets on its list, and counts what goes over them. Lives in the
 * supervisor, outside the box: it alone resolves names, and dials the very address that it has looked at.
 */
import { promises as dns, type LookupAddress } from "node:dns";
import { createServer, isIP, type Server, Socket } from "node:net";
import { z } from "zod";
import { targetText } from "../../shared/model/target.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import { isLocal, ownAddresses } from "./local-addresses.ts";
import type { NetworkPlan } from "./network-plan.ts";
import {
  type Asked,
  CONNECTED,
  HEAD_MAX_BYTES,
  httpReply,
  readRequest,
  socksReply,
} from "./proxy-request.ts";

/** Of one step at once; each takes two descriptors of the supervisor, which other steps need as well. */
export const CONNECTIONS_MAX = 128;
/** For a request to the proxy to be complete. */
const REQUEST_MS = 30_000;
const DIAL_MS = 15_000;
const ADDRESSES_MAX = 4;
/** After the step's end, for what it has written to reach its target. */
const FLUSH_MS = 2_000;
const TROUBLE_MAX_CHARS = 200;

/** What went over the network; see `Traffic` for the meaning of the figures. */
export const Traffic = z.object({
  /** One for each target, in the order of the plan: connections made, tries that failed, bytes out, bytes in. */
  targets: z.array(z.tuple([z.number(), z.number(), z.number(), z.number()])),
  /** Asked for and not on the list, or more than `CONNECTIONS_MAX` at once. */
  refused: z.number(),
  /** The first failure, in words. */
  trouble: z.string().optional(),
});
export type Traffic = z.infer<typeof Traffic>;
type Figures = Traffic["targets"][number];
const [MADE, FAILED, SENT, RECEIVED] = [0, 1, 2, 3] as const;

export interface WayOutOptions {
  plan: Pick<NetworkPlan, "targets">;
  clock: Clock;
  /** The host's resolver, with its `/etc/hosts`. */
  resolve?: (name: string) => Promise<readonly LookupAddress[]>;
}

type Planned = NetworkPlan["targets"][number];

export class WayOut {
  readonly #options: Required<WayOutOptions>;
  readonly #figures: Figures[];
  readonly #servers: Server[] = [];
  readonly #open = new Set<Socket>();
  readonly #flows = new Set<Promise<void>>();
  readonly #lookups = new Map<string, Promise<readonly LookupAddress[]>>();
  /** End the dialling of others. */
  readonly #dialling = new Set<(why: Error) => void>();
  /** The step has ended, and what it has sent has had its time. */
  #late = false;
  /** Rejects then: the host's resolver may take long. */
  readonly #givenUp: Promise<never>;
  #giveUp: (why: Error) => void = () => undefined;
  #refused = 0;
  #trouble: string | undefined;

  constructor(options: WayOutOptions) {
    this.#options = { resolve: (name) => dns.lookup(name, { all: true }), ...options };
    this.#figures = options.plan.targets.map(() => [0, 0, 0, 0]);
    this.#givenUp = new Promise((_, reject) => {
      this.#giveUp = reject;
    });
    this.#givenUp.catch(() => undefined); // with nobody waiting
  }

  get traffic(): Traffic {
    return {
      targets: this.#figures.map((figures) => [...figures] as Figures),
      refused: this.#refused,
      ...(this.#trouble === undefined ? {} : { trouble: this.#trouble }),
    };
  }

  /** @param listener listens in the box already @param index of the target; null for the proxy */
  async serve(listener: Server, index: number | null): Promise<void> {
    const server = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket, index));
    this.#servers.push(server);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(listener, resolve);
    });
  }

  /** The step has ended: what it has sent still goes out, for as long as `FLUSH_MS`; then all is let go. */
  async close(): Promise<void> {
    // What the step has opened in its last moment is taken, too.
    await new Promise<void>((resolve) => setImmediate(resolve));
    for (const server of this.#servers) server.close();
    let timer: Timer | undefined;
    const patience = new Promise<void>((resolve) => {
      timer = this.#options.clock.after(FLUSH_MS, resolve);
    });
    await Promise.race([Promise.all(this.#flows), patience]);
    timer?.cancel();
    this.#late = true;
    const why = new Error("the step has ended");
    this.#giveUp(why);
    for (const end of this.#dialling) end(why);
    for (const socket of this.#open) socket.destroy();
    await Promise.all(this.#flows);
  }

  #accept(socket: Socket, index: number | null): void {
    socket.on("error", () => undefined); // "close" follows
    if (this.#open.size >= CONNECTIONS_MAX * 2 || this.#flows.size >= CONNECTIONS_MAX) {
      this.#refused++;
      this.#trouble ??= `more than ${CONNECTIONS_MAX} connections at once`;
      socket.resetAndDestroy();
      return;
    }
    this.#hold(socket);
    const flow = (index === null ? this.#proxied(socket) : this.#direct(socket, index))
      .catch(() => undefined) // counted where it happened
      .finally(() => {
        socket.destroy();
        this.#flows.delete(flow);
      });
    this.#flows.add(flow);
  }

  #hold(socket: Socket): void {
    this.#open.add(socket);
    socket.once("close", () => this.#open.delete(socket));
  }

  async #direct(socket: Socket, index: number): Promise<void> {
    const upstream = await this.#dial(index).catch((thrown: unknown) => {
      // All that can be said to a program that has not asked: no end of data, but a break.
      socket.resetAndDestroy();
      throw thrown;
    });
    await this.#carry(socket, upstream, index);
  }

  async #proxied(socket: Socket): Promise<void> {
    const request = await this.#request(socket);
    if (request === undefined) return;
    const { target, protocol, first } = request;
    const index = this.#options.plan.targets.findIndex(
      ({ host, port }) => host === target.host && port === target.port,
    );
    if (index < 0) {
      this.#refused++;
      const message = `${targetText(target)} is not on the list of the step (network.allow)`;
      return await last(socket, protocol === "socks" ? socksReply("refused") : httpReply(403, message));
    }
    let upstream: Socket;
    try {
      upstream = await this.#dial(index);
    } catch (thrown) {
      const reply =
        protocol === "socks" ? socksReply("unreachable") : httpReply(502, String((thrown as Error).message));
      return await last(socket, reply);
    }
    if (protocol === "socks") socket.write(socksReply("connected"));
    if (protocol === "connect") socket.write(CONNECTED);
    if (first.length > 0) upstream.write(first);
    await this.#carry(socket, upstream, index);
  }

  /** Undefined when there is none that can be served; the step has been told. */
  async #request(socket: Socket): Promise<Extract<Asked, { kind: "target" }> | undefined> {
    let bytes: Buffer = Buffer.alloc(0);
    let greeted = false;
    const late = this.#options.clock.after(REQUEST_MS, () => socket.destroy());
    try {
      for (;;) {
        const asked = readRequest(bytes, greeted);
        if (asked.kind === "target") return asked;
        if (asked.kind === "bad") {
          await last(socket, asked.reply);
          return undefined;
        }
        if (asked.kind === "greet") {
          socket.write(asked.reply);
          bytes = bytes.subarray(asked.used);
          greeted = true;
          continue;
        }
        const more = bytes.length > HEAD_MAX_BYTES ? null : await nextChunk(socket);
        if (more === null) return undefined;
        bytes = Buffer.concat([bytes, more]);
      }
    } finally {
      late.cancel();
    }
  }

  /** @throws Error for the step to read; the failure is counted */
  async #dial(index: number): Promise<Socket> {
    const target = this.#options.plan.targets[index]!;
    try {
      const addresses = await this.#addressesOf(target);
      let failure: unknown;
      for (const address of addresses.slice(0, ADDRESSES_MAX)) {
        try {
          const upstream = await this.#connect(address, target.port);
          this.#figures[index]![MADE]++;
          return upstream;
        } catch (thrown) {
          failure = thrown;
        }
      }
      throw new Error(`${targetText(target)} does not answer: ${(failure as Error).message}`, {
        cause: failure,
      });
    } catch (thrown) {
      this.#figures[index]![FAILED]++;
      this.#trouble ??= (thrown as Error).message.slice(0, TROUBLE_MAX_CHARS);
      throw thrown;
    }
  }

  async #addressesOf(target: Planned): Promise<string[]> {
    const { host, mayBeLocal } = target;
    const found = isIP(host) === 0 ? await this.#lookup(host) : [host];
    if (mayBeLocal) return found;
    const own = ownAddresses();
    const allowed = found.filter((address) => !isLocal(address, own));
    if (allowed.length > 0) return allowed;
    const which = isIP(host) === 0 ? `${targetText(target)} is at ${found[0]}, which` : targetText(target);
    throw new Error(`${which} is an address of the agent's host, or link-local: steps are not let out to it`);
  }

  /** Those that ask for a name at the same time wait for one answer: the resolver's threads are few. */
  async #lookup(host: string): Promise<string[]> {
    let lookup = this.#lookups.get(host);
    if (!lookup) {
      lookup = this.#options.resolve(host).finally(() => this.#lookups.delete(host));
      this.#lookups.set(host, lookup);
    }
    try {
      const found = await Promise.race([lookup, this.#givenUp]);
      return found.map(({ address }) => address);
    } catch (thrown) {
      const { code } = thrown as NodeJS.ErrnoException;
      const why = this.#late ? "the step has ended" : code;
      throw new Error(`${host} is not known to the resolver of the agent's host (${why})`, {
        cause: thrown,
      });
    }
  }

  #connect(host: string, port: number): Promise<Socket> {
    const upstream = new Socket({ allowHalfOpen: true });
    this.#hold(upstream);
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        late.cancel();
        this.#dialling.delete(fail);
        upstream.off("error", fail);
        upstream.on("error", () => undefined); // "close" follows
      };
      const fail = (why: Error): void => {
        settle();
        upstream.destroy();
        reject(why);
      };
      const late = this.#options.clock.after(DIAL_MS, () => fail(new Error(`nothing within ${DIAL_MS} ms`)));
      this.#dialling.add(fail);
      upstream.once("error", fail);
      if (this.#late) return fail(new Error("the step has ended"));
      upstream.connect({ host, port }, () => {
        settle();
        resolve(upstream);
      });
    });
  }

  /** Resolves when both are closed. An end of one side is passed on; a break of one breaks the other. */
  async #carry(socket: Socket, upstream: Socket, index: number): Promise<void> {
    const figures = this.#figures[index]!;
    const over = new Promise<void>((resolve) => {
      upstream.once("close", () => {
        figures[SENT] += upstream.bytesWritten;
        figures[RECEIVED] += upstream.bytesRead;
        if (!upstream.readableEnded) socket.resetAndDestroy();
        resolve();
      });
    });
    const gone = new Promise<void>((resolve) => {
      socket.once("close", () => {
        // Gone in the middle: the target is to know that this was no end. Else it gets the rest of what was sent; its
        // answer is read for nobody, for a socket that is closed before drops what it has still to send.
        if (!socket.readableEnded) upstream.resetAndDestroy();
        else upstream.resume();
        resolve();
      });
    });
    socket.pipe(upstream);
    upstream.pipe(socket);
    await Promise.all([over, gone]);
  }
}

/** Null at the end. Leaves the socket paused, so that nothing is lost before it is piped. */
function nextChunk(socket: Socket): Promise<Buffer | null> {
  return new Promise((resolve) => {
    const done = (chunk: Buffer | null): void => {
      socket.pause();
      socket.off("data", done);
      socket.off("end", over);
      socket.off("close", over);
      resolve(chunk);
    };
    const over = (): void => done(null);
    socket.on("data", done);
    socket.once("end", over);
    socket.once("close", over);
    if (socket.destroyed || socket.readableEnded) return over();
    socket.resume();
  });
}

/** Says it and ends; resolves when it is said, or there is nobody to say it to. */
function last(socket: Socket, reply: Buffer): Promise<void> {
  return new Promise((resolve) => {
    socket.once("close", () => resolve());
    socket.end(reply, () => resolve());
  });
}
