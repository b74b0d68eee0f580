/**
 * The way to NATS through the port of a gateway, for sites that let the agent out to one port alone: TLS with the
 * agent's certificate, then a request for the server as to an HTTP proxy, then NATS's own bytes. Through the site's own proxy
 * where there is one. See docs/adr/0039-one-port.md.
 */
import { checkServerIdentity, type TLSSocket, connect as tlsConnect } from "node:tls";
import { InsituError } from "../../shared/errors.ts";
import type { Random } from "../../shared/system.ts";
import { NATS_ALPN } from "../../shared/wire/one-port.ts";
import type { Identity } from "../enrolment/identity.ts";
import { addressOf, type HostAndPort, hostAndPort, serverNameOf } from "../network/address.ts";
import { dial, opened, tunnelAnswer, type WayOut } from "../network/dial.ts";

/** For one gateway, from TCP to its word. */
const ATTEMPT_MS = 5_000;
/** When no gateway had a way. The client would be back at once, and each try costs a gateway a handshake. */
const BACKOFF_MIN_MS = 250;
const BACKOFF_MAX_MS = 10_000;

export interface PassageOptions {
  way: WayOut;
  random: Random;
  /** In the order in which they are to be tried. */
  gateways(): readonly string[];
  /** Of now: it changes when its certificate is renewed. */
  identity(): Pick<Identity, "caPem" | "keyPem" | "certificatePem">;
}

export class NatsPassage {
  readonly #options: PassageOptions;
  /** Through which the last one went. */
  #good: string | undefined;
  /** Gateways that failed since then, each once. */
  readonly #failed = new Set<string>();
  /** Rounds without a way, since the last one that was found. */
  #rounds = 0;
  /** Why the last attempt failed, or undefined when it did not. */
  trouble: string | undefined;

  constructor(options: PassageOptions) {
    this.#options = options;
  }

  /**
   * An open connection with the NATS server, on which nothing was read yet. Each gateway is tried once; a call that comes while
   * another waits for one that says nothing begins with the next. After a round in which none had a way it waits first, longer
   * each time.
   *
   * @throws the last gateway's reason
   */
  async dial(target: HostAndPort, signal?: AbortSignal): Promise<TLSSocket> {
    await this.#wait(signal);
    let last: unknown = new InsituError("unreachable", "no gateway is known", { retryable: true });
    for (const gateway of this.#order()) {
      if (signal?.aborted) break;
      this.#failed.add(gateway); // until it is known better
      try {
        const socket = await this.through(gateway, target, signal);
        this.#good = gateway;
        this.#failed.clear();
        this.#rounds = 0;
        this.trouble = undefined;
        return socket;
      } catch (err) {
        last = err;
        this.trouble = InsituError.from(err).message;
      }
    }
    this.#rounds++;
    throw last;
  }

  /** @throws what the signal says */
  async #wait(signal?: AbortSignal): Promise<void> {
    if (this.#rounds === 0) return;
    const { way, random } = this.#options;
    const fullMs = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** (this.#rounds - 1));
    await way.clock.sleep(fullMs * (0.5 + random() / 2), signal);
  }

  /** By this gateway and no other. @throws unreachable, auth.denied */
  async through(gateway: string, target: HostAndPort, signal?: AbortSignal): Promise<TLSSocket> {
    const { way, identity } = this.#options;
    const enough = new AbortController();
    const timer = way.clock.after(ATTEMPT_MS, () =>
      enough.abort(new InsituError("timeout", `${gateway} does not answer within ${ATTEMPT_MS} ms`)),
    );
    const onAbort = (): void => enough.abort(signal?.reason);
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted) onAbort();
    try {
      const socket = await secure(way, hostAndPort(gateway), identity(), enough.signal);
      try {
        await ask(way, socket, gateway, target, enough.signal);
        return socket;
      } catch (err) {
        socket.destroy();
        throw err;
      }
    } finally {
      timer.cancel();
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** The good one first, else what the list begins with; those that failed come last. */
  #order(): string[] {
    const all = [...this.#options.gateways()];
    const first = this.#good !== undefined && all.includes(this.#good) ? [this.#good] : [];
    const order = [...new Set([...first, ...all])];
    if (order.every((gateway) => this.#failed.has(gateway))) this.#failed.clear();
    return [
      ...order.filter((one) => !this.#failed.has(one)),
      ...order.filter((one) => this.#failed.has(one)),
    ];
  }
}

/** Whether a gateway has a way to NATS on this port, without asking for it. False, too, when nobody answers. */
export async function offersNats(way: WayOut, gateway: HostAndPort, caPem: Buffer): Promise<boolean> {
  try {
    const socket = await secure(way, gateway, { caPem });
    socket.destroy();
    return true;
  } catch {
    return false; // whether the gateway can be reached at all is another's question
  }
}

/** @throws unreachable */
async function secure(
  way: WayOut,
  gateway: HostAndPort,
  trust: { caPem: Buffer; keyPem?: Buffer; certificatePem?: Buffer },
  signal?: AbortSignal,
): Promise<TLSSocket> {
  const { caPem, keyPem, certificatePem } = trust;
  const raw = await dial(way, gateway, signal);
  const socket = tlsConnect({
    socket: raw,
    servername: serverNameOf(gateway.host),
    ca: caPem,
    ...(keyPem && certificatePem ? { key: keyPem, cert: certificatePem } : {}),
    minVersion: "TLSv1.3",
    ALPNProtocols: [NATS_ALPN],
    checkServerIdentity: (_name, certificate) => checkServerIdentity(gateway.host, certificate),
  });
  socket.on("error", () => undefined);
  await opened(way, socket, "secureConnect", `TLS for NATS with ${addressOf(gateway)}`, signal);
  if (socket.alpnProtocol === NATS_ALPN) return socket;
  socket.destroy();
  throw new InsituError("unreachable", `${addressOf(gateway)} offers no way to NATS on this port`);
}

async function ask(
  way: WayOut,
  socket: TLSSocket,
  gateway: string,
  target: HostAndPort,
  signal: AbortSignal,
): Promise<void> {
  const authority = addressOf(target);
  socket.write(`CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n\r\n`);
  const { code, text } = await tunnelAnswer(way, socket, `the gateway ${gateway}`, signal);
  if (code >= 200 && code < 300) return;
  const said = `the gateway ${gateway} opens no way to NATS: ${text.replace(/^\d{3} /, "")}`;
  throw new InsituError(code === 403 ? "auth.denied" : "unreachable", said, { retryable: code !== 403 });
}
