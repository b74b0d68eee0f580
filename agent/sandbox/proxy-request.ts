/**
 * What a step asks the proxy for, from the first bytes of its connection: SOCKS 5 (RFC 1928, without authentication),
 * HTTP CONNECT, or HTTP with the whole URL in the first line. Pure, and never more than `HEAD_MAX_BYTES` at once.
 */
import { parseTarget, type Target } from "../../shared/model/target.ts";

export type Protocol = "socks" | "connect" | "http";

export type Asked =
  | { kind: "more" }
  /** Send it, take `used` bytes off the beginning, and go on. */
  | { kind: "greet"; reply: Buffer; used: number }
  /** Send it and close: this is no request, or none that is served. */
  | { kind: "bad"; reply: Buffer }
  /** `first` goes to the target before anything else. */
  | { kind: "target"; target: Target; protocol: Protocol; first: Buffer };

/** Of the head of an HTTP request. */
export const HEAD_MAX_BYTES = 64 * 1024;

const SOCKS = 5;
const END = "\r\n\r\n";
const HTTP_PORT = 80;

/** @param greeted whether the greeting of SOCKS has been answered */
export function readRequest(bytes: Buffer, greeted: boolean): Asked {
  if (bytes.length === 0) return { kind: "more" };
  if (greeted) return readSocksRequest(bytes);
  return bytes[0] === SOCKS ? readSocksGreeting(bytes) : readHttp(bytes);
}

function readSocksGreeting(bytes: Buffer): Asked {
  const used = 2 + (bytes[1] ?? 0);
  if (bytes.length < 2 || bytes.length < used) return { kind: "more" };
  const withoutPassword = bytes.subarray(2, used).includes(0);
  if (!withoutPassword) return { kind: "bad", reply: Buffer.from([SOCKS, 0xff]) };
  return { kind: "greet", reply: Buffer.from([SOCKS, 0]), used };
}

const SOCKS_CONNECT = 1;
const NAME = 3;
const LENGTHS: Readonly<Record<number, number>> = { 1: 4, 4: 16 };

function readSocksRequest(bytes: Buffer): Asked {
  if (bytes.length < 5) return { kind: "more" };
  const [version, command, , type, first = 0] = bytes;
  const start = type === NAME ? 5 : 4;
  const length = type === NAME ? first : LENGTHS[type!];
  if (version !== SOCKS || length === undefined) return { kind: "bad", reply: socksReply("other-address") };
  if (command !== SOCKS_CONNECT) return { kind: "bad", reply: socksReply("other-command") };
  const end = start + length + 2;
  if (bytes.length < end) return { kind: "more" };
  const host = bytes.subarray(start, start + length);
  const port = bytes.readUInt16BE(start + length);
  const target = parseTarget(
    `${type === NAME ? inBrackets(host.toString("latin1")) : addressText(host)}:${port}`,
  );
  if (target === undefined) return { kind: "bad", reply: socksReply("refused") };
  return { kind: "target", target, protocol: "socks", first: bytes.subarray(end) };
}

/** Some clients send an address of version 6 as a name. */
function inBrackets(name: string): string {
  return name.includes(":") ? `[${name}]` : name;
}

function addressText(bytes: Buffer): string {
  if (bytes.length === 4) return bytes.join(".");
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(index * 2).toString(16));
  return `[${groups.join(":")}]`;
}

const SOCKS_REPLIES = {
  connected: 0,
  refused: 2,
  unreachable: 4,
  "other-command": 7,
  "other-address": 8,
} as const;

export function socksReply(kind: keyof typeof SOCKS_REPLIES): Buffer {
  return Buffer.from([SOCKS, SOCKS_REPLIES[kind], 0, 1, 0, 0, 0, 0, 0, 0]);
}

function readHttp(bytes: Buffer): Asked {
  const end = bytes.subarray(0, HEAD_MAX_BYTES).indexOf(END);
  if (end < 0) {
    if (bytes.length < HEAD_MAX_BYTES) return { kind: "more" };
    return { kind: "bad", reply: httpReply(431, "the head of the request is too long") };
  }
  const [line = "", ...headers] = bytes.subarray(0, end).toString("latin1").split("\r\n");
  const rest = bytes.subarray(end + END.length);
  const [, method, about = ""] = /^([!-~]+) ([!-~]+) HTTP\/1\.[01]$/.exec(line) ?? [];
  if (method === undefined)
    return { kind: "bad", reply: httpReply(400, "this is a proxy for HTTP/1.1 and SOCKS 5") };
  if (method === "CONNECT") {
    const target = parseTarget(about);
    if (target) return { kind: "target", target, protocol: "connect", first: rest };
    return { kind: "bad", reply: httpReply(400, "CONNECT wants host:port") };
  }
  const [, authority = "", path = ""] = /^http:\/\/([^/?#]+)([^#]*)$/i.exec(about) ?? [];
  const target = parseTarget(/:[0-9]+$/.test(authority) ? authority : `${authority}:${HTTP_PORT}`);
  if (target === undefined)
    return { kind: "bad", reply: httpReply(400, "this is a proxy: name the whole URL, or CONNECT") };
  const first = Buffer.concat([originForm(method, path, headers), rest]);
  return { kind: "target", target, protocol: "http", first };
}

/** One request on a connection: what follows on it is the target's business alone, which it cannot leave. */
function originForm(method: string, path: string, headers: readonly string[]): Buffer {
  const kept = headers.filter((header) => !/^(proxy-[a-z-]+|connection|keep-alive)[ \t]*:/i.test(header));
  const origin = path.startsWith("/") ? path : `/${path}`;
  return Buffer.from(
    `${[`${method} ${origin} HTTP/1.1`, ...kept, "Connection: close"].join("\r\n")}${END}`,
    "latin1",
  );
}

export const CONNECTED = Buffer.from("HTTP/1.1 200 Connection established\r\n\r\n");

const PHRASES: Readonly<Record<number, string>> = {
  400: "Bad Request",
  403: "Forbidden",
  431: "Request Header Fields Too Large",
  502: "Bad Gateway",
};

export function httpReply(status: 400 | 403 | 431 | 502, message: string): Buffer {
  const body = `${message}\n`;
  const head = [
    `HTTP/1.1 ${status} ${PHRASES[status]}`,
    "Content-Type: text/plain; charset=utf-8",
    `Content-Length: ${Buffer.byteLength(body)}`,
    "Connection: close",
  ];
  return Buffer.from(`${head.join("\r\n")}${END}${body}`);
}
