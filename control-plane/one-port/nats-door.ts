/**
 * The way to NATS for agents that reach one port alone. Ends their TLS, lets in who is an agent, and carries bytes between it
 * and a server of the NATS that this replica is configured with; to no other place.
 */
import { connect, type Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { NATS_ALPN } from "../../shared/wire/one-port.ts";
import type { CertificatePair } from "../access/pki.ts";
import type { OpenCall, OpenCalls } from "../gateway/open-calls.ts";
import type { Peer } from "../gateway/peer-identity.ts";
import { readHead } from "./connect-request.ts";

/** Of one agent: its own, one that it has not noticed to be dead, and a doctor's. The oldest gives way. */
const TUNNELS_PER_AGENT = 4;

const NATS_PORT = 4222;
const ANSWER_WITHIN_MS = 1_000;

export interface NatsDoorLimits {
  handshakeWithinMs: number;
  /** For the request after it. */
  requestWithinMs: number;
  dialWithinMs: number;
  /** NATS's client says something every few seconds. */
  silenceMaxMs: number;
}

const LIMITS: NatsDoorLimits = {
  handshakeWithinMs: 10_000,
  requestWithinMs: 10_000,
  dialWithinMs: 5_000,
  silenceMaxMs: 60_000,
};

export interface NatsDoorOptions {
  clock: Clock;
  log: Logger;
  /** `host:port` of the servers, as agents name them. */
  targets: readonly string[];
  /** @throws InsituError when the certificate is no agent's that is let in now */
  admit(certificate: Uint8Array | undefined, address: string): Promise<Peer>;
  openCalls: OpenCalls;
  limits?: Partial<NatsDoorLimits> | undefined;
}

export interface DoorKeys {
  caPem: string;
  pair: CertificatePair;
}

export class NatsDoor {
  readonly #options: NatsDoorOptions;
  readonly #limits: NatsDoorLimits;
  readonly #server: Server;
  readonly #tunnels = new Map<string, Tunnel[]>();
  readonly #sockets = new Set<Socket>();
  #closed = false;

  constructor(options: NatsDoorOptions, keys: DoorKeys) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#server = createServer({
      ...secureOptions(keys),
      ALPNProtocols: [NATS_ALPN],
      requestCert: true,
      rejectUnauthorized: true,
      handshakeTimeout: this.#limits.handshakeWithinMs,
    });
    this.#server.on("secureConnection", (socket) => void this.#serve(socket));
    this.#server.on("tlsClientError", (_err, socket) => socket.destroy());
  }

  /** A connection with nothing of it read. */
  take(socket: Socket): void {
    if (this.#closed) return void socket.destroy();
    this.#sockets.add(socket);
    socket.once("close", () => this.#sockets.delete(socket));
    this.#server.emit("connection", socket);
  }

  /** For connections from now on. */
  secure(keys: DoorKeys): void {
    this.#server.setSecureContext(secureOptions(keys));
  }

  close(): void {
    this.#closed = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  async #serve(near: TLSSocket): Promise<void> {
    const { clock, log, admit, targets, openCalls } = this.#options;
    near.on("error", () => near.destroy());
    const address = near.remoteAddress ?? "";
    try {
      const certificate = near.getPeerCertificate().raw as Uint8Array | undefined;
      const target = await readHead(near, clock, this.#limits.requestWithinMs);
      const peer = await admit(certificate, address);
      if (!targets.includes(target))
        throw new InsituError(
          "auth.denied",
          `${target} is no NATS server of this replica: give all replicas the same --nats-url`,
        );
      const far = await dial(target, clock, this.#limits.dialWithinMs);
      if (near.destroyed || this.#closed) return void far.destroy();
      const tunnel = new Tunnel(near, far, {
        peer,
        slot: this.#slotFor(peer.id),
        nowMs: () => clock.monotonicMs(),
        silenceMaxMs: this.#limits.silenceMaxMs,
        log,
        over: (one) => this.#remove(one),
      });
      this.#tunnels.set(peer.id, [...(this.#tunnels.get(peer.id) ?? []), tunnel]);
      openCalls.add(tunnel);
      tunnel.begin();
    } catch (thrown) {
      refuse(near, InsituError.from(thrown), clock);
    }
  }

  #slotFor(agent: string): number {
    const tunnels = this.#tunnels.get(agent) ?? [];
    for (let slot = 0; slot < TUNNELS_PER_AGENT; slot++)
      if (!tunnels.some((tunnel) => tunnel.slot === slot)) return slot;
    return tunnels[0]!.slot;
  }

  #remove(tunnel: Tunnel): void {
    this.#options.openCalls.remove(tunnel);
    const rest = (this.#tunnels.get(tunnel.peer.id) ?? []).filter((one) => one !== tunnel);
    if (rest.length > 0) this.#tunnels.set(tunnel.peer.id, rest);
    else this.#tunnels.delete(tunnel.peer.id);
  }
}

/** `host:port` of `nats://host` or `tls://[::1]:4222`, as agents ask for it. */
export function targetOf(server: string): string {
  const { hostname, port } = new URL(server);
  return `${hostname}:${port || NATS_PORT}`;
}

function secureOptions({ caPem, pair }: DoorKeys) {
  return { ca: caPem, cert: pair.chainPem, key: pair.keyPem, minVersion: "TLSv1.3" } as const;
}

interface TunnelOptions {
  nowMs(): number;
  silenceMaxMs: number;
  log: Logger;
  over(tunnel: Tunnel): void;
}

/** One agent's connection with NATS. */
class Tunnel implements OpenCall {
  readonly kind = "nats";
  readonly peer: Peer;
  readonly slot: number;
  readonly #near: TLSSocket;
  readonly #far: Socket;
  readonly #options: TunnelOptions;
  #heardMs: number;

  constructor(
    near: TLSSocket,
    far: Socket,
    { peer, slot, ...options }: TunnelOptions & { peer: Peer; slot: number },
  ) {
    this.#near = near;
    this.#far = far;
    this.peer = peer;
    this.slot = slot;
    this.#options = options;
    this.#heardMs = options.nowMs();
  }

  begin(): void {
    const [near, far] = [this.#near, this.#far];
    far.on("error", () => far.destroy());
    near.once("close", () => {
      far.destroySoon(); // what it said last still arrives
      this.#options.over(this);
    });
    far.once("close", () => near.destroySoon());
    near.on("data", () => {
      this.#heardMs = this.#options.nowMs();
    });
    near.write("HTTP/1.1 200 Connection established\r\n\r\n");
    near.pipe(far);
    far.pipe(near);
  }

  fail(err: InsituError): void {
    const { code, message } = err;
    this.#options.log.info(
      { agentId: this.peer.id, err: { code, message } },
      "way to NATS ended by the server",
    );
    this.#near.destroy();
    this.#far.destroy();
  }

  tick(nowMs: number): void {
    const { silenceMaxMs } = this.#options;
    if (nowMs - this.#heardMs < silenceMaxMs) return;
    this.fail(new InsituError("timeout", `nothing came for ${silenceMaxMs} ms`, { retryable: true }));
  }
}

async function dial(target: string, clock: Clock, withinMs: number): Promise<Socket> {
  const at = target.lastIndexOf(":");
  const host = target.slice(0, at).replace(/^\[|\]$/g, "");
  const socket = connect({ host, port: Number(target.slice(at + 1)), noDelay: true });
  return await new Promise((resolve, reject) => {
    const finish = (why?: string): void => {
      timer.cancel();
      socket.removeAllListeners();
      if (why === undefined) return resolve(socket);
      socket.on("error", () => undefined).destroy();
      reject(new InsituError("unreachable", `the gateway does not reach NATS: ${why}`, { retryable: true }));
    };
    const timer = clock.after(withinMs, () => finish(`no answer within ${withinMs} ms`));
    socket.once("connect", () => finish());
    socket.once("error", (err) => finish((err as NodeJS.ErrnoException).code ?? err.message));
  });
}

/** As a proxy would, with our words for why in the place of its reason. */
function refuse(near: TLSSocket, err: InsituError, clock: Clock): void {
  const status = err.code.startsWith("auth.")
    ? 403
    : err.code === "request.invalid"
      ? 400
      : err.code === "unreachable"
        ? 502
        : 503;
  const said = err.code === "internal" ? "the server failed; its log says why" : err.message;
  if (near.destroyed) return;
  near.end(`HTTP/1.1 ${status} ${said.replace(/[^\x20-\x7e]/g, "?")}\r\nConnection: close\r\n\r\n`);
  // Who does not read the answer is not waited for.
  const timer = clock.after(ANSWER_WITHIN_MS, () => near.destroy());
  near.once("close", () => timer.cancel());
}
