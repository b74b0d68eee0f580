/** Opens TCP connections, directly or through the site's HTTP proxy (CONNECT, RFC 9110 §9.3.6). */
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { rootCertificates, connect as tlsConnect } from "node:tls";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { addressOf, type HostAndPort, serverNameOf } from "./address.ts";
import { isExempt, type SiteProxy } from "./proxy.ts";

const CONNECT_TIMEOUT_MS = 10_000;
/** Of a proxy's answer, which is a status and a few headers. */
const ANSWER_MAX_BYTES = 64 * 1024;

/** How this host gets out. */
export interface WayOut {
  clock: Clock;
  proxy?: SiteProxy | undefined;
  /** PEM of authorities of the site, trusted beside the system's: for a proxy that speaks TLS, never for a gateway. */
  siteCaPem: string;
}

/** The proxy that `target` is reached through, if any. */
export function proxyFor({ proxy }: WayOut, target: HostAndPort): SiteProxy | undefined {
  return proxy && !isExempt(proxy.noProxy, target) ? proxy : undefined;
}

/** The authorities of Node and those of the site. */
export function trustedCas(siteCaPem: string): string[] {
  return siteCaPem === "" ? [...rootCertificates] : [...rootCertificates, siteCaPem];
}

/**
 * An open connection to `target`, on which nothing was read yet. The caller ends and closes it: it stays open for
 * writing when the other side has ended.
 *
 * @throws unreachable with which hop failed, auth.denied when the proxy does not know or does not like us
 */
export async function dial(way: WayOut, target: HostAndPort, signal?: AbortSignal): Promise<Socket> {
  // It is written into the proxy's request as it is.
  if (!/^[\w.:%-]+$/.test(target.host) || !Number.isInteger(target.port))
    throw new InsituError("unreachable", `${JSON.stringify(addressOf(target))} is no host:port`);
  const proxy = proxyFor(way, target);
  if (!proxy) return await open(way, target, "", signal);
  const socket = await dialProxy(way, proxy, signal);
  try {
    await askForTunnel(way, socket, proxy, target, signal);
    return socket;
  } catch (err) {
    socket.destroy();
    throw err;
  }
}

/** To the proxy itself, with TLS when it speaks it. */
export async function dialProxy(way: WayOut, proxy: SiteProxy, signal?: AbortSignal): Promise<Socket> {
  const socket = await open(way, proxy.address, "the proxy ", signal);
  if (!proxy.secure) return socket;
  const { host } = proxy.address;
  const options = {
    socket,
    host,
    servername: serverNameOf(host),
    ca: trustedCas(way.siteCaPem),
    ALPNProtocols: ["http/1.1"],
  };
  const secured = tlsConnect(options);
  secured.on("error", () => undefined);
  await opened(way, secured, "secureConnect", `TLS with the proxy ${addressOf(proxy.address)}`, signal);
  return secured;
}

async function open(way: WayOut, target: HostAndPort, what: string, signal?: AbortSignal): Promise<Socket> {
  const { host, port } = target;
  if (port < 1 || port > 65_535)
    throw new InsituError("unreachable", `"${addressOf(target)}" is no host:port`);
  const socket = connect({ host, port, noDelay: true, allowHalfOpen: true });
  socket.on("error", () => undefined); // until somebody else listens: an end says enough, and "close" follows
  await opened(way, socket, "connect", `${what}${addressOf(target)}`, signal);
  return socket;
}

/** Destroys the socket when `event` does not come in time. @throws unreachable */
export function opened(
  { clock }: WayOut,
  socket: Socket,
  event: "connect" | "secureConnect",
  what: string,
  signal?: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const finish = (failed?: string, cause?: unknown): void => {
      timer.cancel();
      signal?.removeEventListener("abort", onAbort);
      socket.off("error", onError).off("close", onClose).off(event, onEvent);
      if (failed === undefined) return resolve();
      socket.on("error", () => undefined).destroy();
      reject(new InsituError("unreachable", `${what}: ${failed}`, { retryable: true, cause }));
    };
    const onError = (err: Error): void => finish(reasonOf(err), err);
    const onClose = (): void => finish("closed by the other side");
    const onEvent = (): void => finish();
    const onAbort = (): void => finish("given up", signal?.reason);
    const timer = clock.after(CONNECT_TIMEOUT_MS, () => finish(`no answer within ${CONNECT_TIMEOUT_MS} ms`));
    socket.once("error", onError).once("close", onClose).once(event, onEvent);
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted) onAbort();
  });
}

/** A name with several addresses fails with one error of many, whose own message is empty. */
function reasonOf(err: Error): string {
  if (!(err instanceof AggregateError)) return err.message;
  return err.errors.map((one: Error) => one.message).join("; ");
}

async function askForTunnel(
  way: WayOut,
  socket: Socket,
  proxy: SiteProxy,
  target: HostAndPort,
  signal?: AbortSignal,
): Promise<void> {
  const authority = addressOf(target);
  const login = loginOf(proxy);
  socket.write(`CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n${login}\r\n`);
  const status = await tunnelAnswer(way, socket, `the proxy ${addressOf(proxy.address)}`, signal);
  if (status.code >= 200 && status.code < 300) return;
  throw refusal(proxy, authority, status);
}

interface Answer {
  code: number;
  text: string;
}

function refusal(proxy: SiteProxy, authority: string, { code, text }: Answer): InsituError {
  const at = addressOf(proxy.address);
  if (code === 407) {
    const advice =
      proxy.username === undefined
        ? "it asks for a user and a password: set proxy.username and proxy.passwordFile"
        : `it does not accept the password of user "${proxy.username}": check proxy.username and ${proxy.passwordFile ?? "the password in HTTPS_PROXY"}`;
    return new InsituError("auth.denied", `the proxy ${at} refuses us (${text}): ${advice}`);
  }
  const advice =
    code === 403 ? "ask for it to be allowed there" : "the proxy could not reach it, or may not; see its log";
  return new InsituError("unreachable", `the proxy ${at} opens no way to ${authority} (${text}): ${advice}`, {
    retryable: true,
  });
}

/** Basic, RFC 7617: as UTF-8. The line with its end, or nothing. */
function loginOf(proxy: SiteProxy): string {
  if (proxy.username === undefined) return "";
  const password =
    proxy.passwordFile === undefined ? (proxy.password ?? "") : readPassword(proxy.passwordFile);
  const basic = Buffer.from(`${proxy.username}:${password}`, "utf8").toString("base64");
  return `Proxy-Authorization: Basic ${basic}\r\n`;
}

function readPassword(file: string): string {
  try {
    return readFileSync(file, "utf8").replace(/\r?\n$/, "");
  } catch (cause) {
    const { message } = cause as Error;
    throw new InsituError("auth.denied", `the password of the proxy cannot be read: ${message}`, { cause });
  }
}

/** The answer to CONNECT. Reads up to the empty line and not a byte further: what follows is the tunnel's. */
export function tunnelAnswer(way: WayOut, socket: Socket, at: string, signal?: AbortSignal): Promise<Answer> {
  return new Promise((resolve, reject) => {
    let head = Buffer.alloc(0);
    const finish = (failed?: string, cause?: unknown): void => {
      timer.cancel();
      signal?.removeEventListener("abort", onAbort);
      socket.off("readable", onReadable).off("error", onError).off("end", onEnd);
      if (failed === undefined) return;
      socket.on("error", () => undefined);
      reject(new InsituError("unreachable", `${at}: ${failed}`, { retryable: true, cause }));
    };
    const onReadable = (): void => {
      const bytes = socket.read() as Buffer | null;
      if (bytes === null) return;
      head = Buffer.concat([head, bytes]);
      const end = head.indexOf("\r\n\r\n");
      if (end < 0) return head.length > ANSWER_MAX_BYTES ? finish("its answer has no end") : undefined;
      const line = head.subarray(0, head.indexOf("\r\n")).toString("latin1");
      const found = /^HTTP\/1\.[01] (\d{3})(?: (.*))?$/.exec(line);
      if (!found) return finish("what it answers is not HTTP");
      finish();
      if (end + 4 < head.length) socket.unshift(head.subarray(end + 4));
      resolve({ code: Number(found[1]), text: printable(`${found[1]} ${found[2] ?? ""}`) });
    };
    const onError = (err: Error): void => finish(err.message, err);
    const onEnd = (): void => finish("it closed the connection without an answer");
    const onAbort = (): void => finish("given up", signal?.reason);
    const timer = way.clock.after(CONNECT_TIMEOUT_MS, () =>
      finish(`no answer within ${CONNECT_TIMEOUT_MS} ms`),
    );
    socket.on("readable", onReadable).once("error", onError).once("end", onEnd);
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted) onAbort();
  });
}

/** A proxy's words are shown to people and logged. */
function printable(text: string): string {
  return text
    .replace(/[^\x20-\x7e]/g, "?")
    .slice(0, 200)
    .trim();
}
