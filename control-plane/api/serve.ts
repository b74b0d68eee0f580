/** Puts the API on a port: HTTPS anywhere, plain HTTP on loopback alone. */
import { createServer as createHttpServer, type Server } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import { type AddressInfo, BlockList, isIP } from "node:net";
import { getRequestListener } from "@hono/node-server";
import type { Hono } from "hono";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { ApiEnv } from "./context.ts";
import { sourceAddress, trustedProxies } from "./source-address.ts";

export interface ServeOptions {
  /** An address or a name to bind. Anything but loopback needs `tls`. */
  host: string;
  /** 0 for any free one. */
  port: number;
  /** PEM. */
  tls?: { cert: string | Buffer; key: string | Buffer };
  /** Addresses and networks of proxies that say truly whom they were called by. */
  trustedProxies?: readonly string[];
  clock: Clock;
}

export interface ApiServer extends AsyncDisposable {
  /** Resolves when connections are accepted. @throws InsituError `unavailable` when the address cannot be had. */
  start(signal: AbortSignal): Promise<void>;
  /** No new connections; those that are open may finish until the deadline. Abort `stopping` first: streams have no end. */
  drain(deadlineMs: number): Promise<void>;
  /** Cuts every connection. Safe early and twice. */
  close(): Promise<void>;
  /** Such as `http://127.0.0.1:7070`. @throws InsituError `unavailable` while it does not listen */
  readonly url: string;
  readonly port: number;
}

/** A connection that says nothing for longer is asked whether its other end is still there. */
const IDLE_MAX_MS = 15_000;
const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

/** True for `localhost` and the addresses of the machine itself. */
export function isLoopback(host: string): boolean {
  return (
    host === "localhost" || (isIP(host) !== 0 && LOOPBACK.check(host, isIP(host) === 6 ? "ipv6" : "ipv4"))
  );
}

/**
 * @throws InsituError `request.invalid` for an address off loopback without TLS
 */
export function serveApi(app: Pick<Hono<ApiEnv>, "fetch">, options: ServeOptions): ApiServer {
  const { host, tls } = options;
  if (tls === undefined && !isLoopback(host)) {
    const message = `${host} is not a loopback address, and there is no plaintext mode off loopback; give a certificate and a key`;
    throw new InsituError("request.invalid", message);
  }
  // The adapter would replace the process's global Request and Response otherwise.
  const listener = getRequestListener(answerOn(app, trustedProxies(options.trustedProxies ?? [])), {
    overrideGlobalObjects: false,
    hostname: host,
  });
  // A client that is cut off without a word would hold its stream for ever: the kernel asks after it.
  const alive = { keepAlive: true, keepAliveInitialDelay: IDLE_MAX_MS };
  const server =
    tls === undefined
      ? createHttpServer(alive)
      : createHttpsServer({ ...tls, ...alive, minVersion: "TLSv1.2" });
  server.on("request", (incoming, outgoing) => {
    // Once nobody new is let in, a connection that has had its answer would idle until its timeout.
    outgoing.once("close", () => {
      if (!server.listening) server.closeIdleConnections();
    });
    // Whatever goes wrong is answered by the adapter; there is nothing left to await.
    void listener(incoming, outgoing);
  });
  server.headersTimeout = 15_000;
  server.requestTimeout = 120_000;
  server.keepAliveTimeout = 30_000;
  return new NodeApiServer(server, options);
}

function answerOn(
  app: Pick<Hono<ApiEnv>, "fetch">,
  trusted: BlockList,
): Parameters<typeof getRequestListener>[0] {
  return (request, { incoming, outgoing }) => {
    const { remoteAddress = "", remotePort = 0 } = incoming.socket;
    const forwarded = incoming.headers["x-forwarded-for"];
    const source = sourceAddress(remoteAddress, forwarded?.toString(), trusted);
    return app.fetch(request, { outgoing, peer: `${source}:${remotePort}` });
  };
}

class NodeApiServer implements ApiServer {
  readonly #server: Server;
  readonly #options: ServeOptions;
  #closed: Promise<void> | null = null;

  constructor(server: Server, options: ServeOptions) {
    this.#server = server;
    this.#options = options;
  }

  get port(): number {
    return this.#address().port;
  }

  get url(): string {
    const { host, tls } = this.#options;
    const { address, port } = this.#address();
    const name = host === "localhost" || isLoopback(host) ? host : address;
    return `${tls === undefined ? "http" : "https"}://${name.includes(":") ? `[${name}]` : name}:${port}`;
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#closed !== null) throw new InsituError("unavailable", "the API server has been closed");
    const { host, port, tls } = this.#options;
    await new Promise<void>((resolve, reject) => {
      const onError = (err: Error) => {
        const message = `cannot listen on ${host}:${port}: ${err.message}; is another server running there?`;
        reject(new InsituError("unavailable", message, { cause: err }));
      };
      this.#server.once("error", onError);
      this.#server.listen({ host, port }, () => {
        this.#server.off("error", onError);
        resolve();
      });
    });
    // A name may resolve to anything, "localhost" too.
    if (tls === undefined && !isLoopback(this.#address().address)) {
      await this.close();
      throw new InsituError(
        "request.invalid",
        `${host} is not a loopback address here; give a certificate and a key`,
      );
    }
  }

  async drain(deadlineMs: number): Promise<void> {
    const closed = this.#stopListening();
    this.#server.closeIdleConnections();
    const cut = this.#options.clock.after(deadlineMs, () => this.#server.closeAllConnections());
    await closed;
    cut.cancel();
  }

  async close(): Promise<void> {
    const closed = this.#stopListening();
    this.#server.closeAllConnections();
    await closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #stopListening(): Promise<void> {
    this.#closed ??= new Promise((resolve) => {
      // The error says that it never listened, which is where it should be.
      this.#server.close(() => resolve());
    });
    return this.#closed;
  }

  #address(): AddressInfo {
    const address = this.#server.address();
    if (address === null || typeof address === "string") {
      throw new InsituError("unavailable", "the API server is not listening");
    }
    return address;
  }
}
