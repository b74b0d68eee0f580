/** A vault as the documentation of kv version 2 describes it, over real sockets, with ways to misbehave. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";

export interface VaultRequest {
  method: string;
  url: string;
  token: string | undefined;
  namespace: string | undefined;
  marked: string | undefined;
}

type Answer = (response: ServerResponse) => void;

export class TestVault implements AsyncDisposable {
  readonly requests: VaultRequest[] = [];
  /** `mount/path` → fields. */
  readonly secrets = new Map<string, Record<string, unknown>>();
  token = "s.right";
  /** Taken instead of what would be right, one for each request. */
  readonly instead: Answer[] = [];
  readonly #server: Server;

  constructor(tls?: { key: string; cert: string }) {
    const serve = (request: IncomingMessage, response: ServerResponse): void =>
      this.#serve(request, response);
    this.#server = tls ? createTlsServer(tls, serve) : createServer(serve);
  }

  async listen(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    const header = (name: string): string | undefined => request.headers[name] as string | undefined;
    const { method = "", url = "" } = request;
    this.requests.push({
      method,
      url,
      token: header("x-vault-token"),
      namespace: header("x-vault-namespace"),
      marked: header("x-vault-request"),
    });
    const instead = this.instead.shift();
    if (instead) return instead(response);
    if (header("x-vault-token") !== this.token)
      return answer(403, { errors: ["permission denied"] })(response);
    const [, mount = "", path = ""] = /^\/v1\/(.+)\/data\/(.+)$/.exec(url) ?? [];
    const data = this.secrets.get(`${mount}/${path}`);
    if (!data) return answer(404, { errors: [] })(response);
    const metadata = {
      created_time: "2026-11-25T12:00:00.0Z",
      deletion_time: "",
      destroyed: false,
      version: 3,
    };
    answer(200, {
      request_id: "0b4e",
      lease_id: "",
      renewable: false,
      lease_duration: 0,
      data: { data, metadata },
      wrap_info: null,
      warnings: null,
      auth: null,
    })(response);
  }
}

export function answer(status: number, body: unknown, headers: Record<string, string> = {}): Answer {
  return (response) => {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(typeof body === "string" ? body : JSON.stringify(body));
  };
}
