/** The command line in this process, with what it wrote; and a small HTTP server that answers what a test says. */
import http from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { type Clock, systemClock } from "../../shared/system.ts";
import type { World } from "./invocation.ts";
import { runCommand } from "./program.ts";
import type { Screen } from "./terminal.ts";

export interface Written {
  code: number;
  out: Buffer;
  stdout: string;
  stderr: string;
}

export interface CliOptions {
  server?: string;
  token?: string;
  cwd?: string;
  stdin?: string;
  tty?: boolean;
  signal?: AbortSignal;
  clock?: Clock;
}

export async function insitu(argv: string[], options: CliOptions = {}): Promise<Written> {
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  const screen = (into: Buffer[]): Screen => ({
    isTty: options.tty === true,
    columns: () => 80,
    rows: () => 24,
    write: async (chunk) => {
      into.push(Buffer.from(chunk as string));
    },
    onResize: () => () => undefined,
  });
  const cwd = options.cwd ?? "/";
  const world: World = {
    terminal: {
      out: screen(out),
      err: screen(err),
      colorAllowed: false,
      readStdin: async () => options.stdin ?? "",
    },
    settings: {
      server: options.server ?? null,
      token: options.token ?? null,
      caFile: null,
      userContextFile: "/nonexistent/context.json",
      cwd,
      backupPassphrase: null,
      noColor: true,
    },
    clock: options.clock ?? systemClock,
    env: {},
    program: "insitu",
    signal: options.signal ?? new AbortController().signal,
    insist: new AbortController().signal,
  };
  const code = await runCommand(argv, world);
  const bytes = Buffer.concat(out);
  return { code, out: bytes, stdout: bytes.toString(), stderr: Buffer.concat(err).toString() };
}

export interface Received {
  method: string;
  path: string;
  headers: http.IncomingHttpHeaders;
  body: unknown;
}
export type Reply = (response: http.ServerResponse, request: Received) => void | Promise<void>;

/** Routes by "METHOD /path"; a list of replies is used up one by one, the last one stays. */
export class SmallServer implements AsyncDisposable {
  readonly received: Received[] = [];
  readonly #server: http.Server;
  readonly #routes: Record<string, Reply | Reply[]>;

  private constructor(routes: Record<string, Reply | Reply[]>) {
    this.#routes = routes;
    this.#server = http.createServer((request, response) => {
      this.#answer(request, response).catch((err: unknown) => response.destroy(err as Error));
    });
  }

  static async start(routes: Record<string, Reply | Reply[]>): Promise<SmallServer> {
    const server = new SmallServer(routes);
    await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", resolve));
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async #answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const body = await text(request);
    const received: Received = {
      method: request.method ?? "",
      path: request.url ?? "",
      headers: request.headers,
      body: body === "" ? null : JSON.parse(body),
    };
    this.received.push(received);
    const route = this.#routes[`${received.method} ${received.path.split("?")[0]}`];
    const reply = Array.isArray(route) ? (route.length > 1 ? route.shift() : route[0]) : route;
    if (reply) await reply(response, received);
    else await problem("not-found", 404, `there is nothing at ${received.path}`)(response, received);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export const json =
  (value: unknown, status = 200): Reply =>
  (response) => {
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
  };

export const problem =
  (code: string, status: number, detail: string, more: object = {}): Reply =>
  (response) => {
    const body = { type: `urn:insitu:problem:${code}`, title: code, status, detail, code, ...more };
    response.writeHead(status, { "content-type": "application/problem+json" }).end(JSON.stringify(body));
  };

/** Ends as the product ends it, or by cutting the connection. */
export const stream =
  (type: string, chunks: readonly string[], end: "end" | "cut" = "end"): Reply =>
  async (response) => {
    response.writeHead(200, { "content-type": type });
    for (const chunk of chunks) await new Promise((resolve) => response.write(chunk, resolve));
    if (end === "end") response.end();
    else response.destroy();
  };
