/**
 * Reads the ClientHello of TLS (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2) without taking part in it: which name is called
 * (RFC 6066 §3), and which protocols are offered (RFC 7301). Pure.
 */

/** Of what is kept until the hello is whole. Real ones have some hundred bytes, or two thousand with newer keys. */
export const HELLO_MAX_BYTES = 16 * 1024;

export interface ClientHello {
  /** Empty: none was sent. */
  serverName: string;
  /** In the client's order. */
  protocols: string[];
}

export type HelloVerdict =
  | { kind: "hello"; hello: ClientHello }
  | { kind: "more" }
  | { kind: "refused"; why: "not TLS" | "too long" | "malformed" };

const RECORD_HANDSHAKE = 22;
const RECORD_HEAD = 5;
/** RFC 8446 §5.1: of a record's content. */
const RECORD_MAX_BYTES = 16_384;
const HANDSHAKE_CLIENT_HELLO = 1;
const HANDSHAKE_HEAD = 4;
const EXTENSION_SERVER_NAME = 0;
const EXTENSION_ALPN = 16;

/** @param bytes all that has come on the connection; what follows the hello is not looked at */
export function readClientHello(bytes: Uint8Array): HelloVerdict {
  const records = handshakeOf(bytes);
  if (records === undefined) return { kind: "refused", why: "not TLS" };
  const head = records.content;
  if (head.length > 0 && head[0] !== HANDSHAKE_CLIENT_HELLO) return { kind: "refused", why: "not TLS" };
  if (head.length >= HANDSHAKE_HEAD) {
    const length = head.readUIntBE(1, 3);
    if (HANDSHAKE_HEAD + length > HELLO_MAX_BYTES) return { kind: "refused", why: "too long" };
    if (head.length >= HANDSHAKE_HEAD + length) {
      const hello = bodyOf(head.subarray(HANDSHAKE_HEAD, HANDSHAKE_HEAD + length));
      return hello ? { kind: "hello", hello } : { kind: "refused", why: "malformed" };
    }
  }
  // A hello that is cut into many records has a head for each: they count too.
  return bytes.length >= HELLO_MAX_BYTES ? { kind: "refused", why: "too long" } : { kind: "more" };
}

/** What the records hold, as far as they have come: a hello may be cut anywhere. Undefined: no TLS handshake. */
function handshakeOf(bytes: Uint8Array): { content: Buffer } | undefined {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const parts: Buffer[] = [];
  for (let at = 0; at < all.length; ) {
    if (all[at] !== RECORD_HANDSHAKE) return parts.length > 0 ? { content: Buffer.concat(parts) } : undefined;
    if (at + 1 < all.length && all[at + 1] !== 3) return undefined;
    if (at + RECORD_HEAD > all.length) break;
    const length = all.readUInt16BE(at + 3);
    if (length === 0 || length > RECORD_MAX_BYTES) return undefined;
    parts.push(all.subarray(at + RECORD_HEAD, at + RECORD_HEAD + length));
    at += RECORD_HEAD + length;
  }
  return { content: Buffer.concat(parts) };
}

function bodyOf(body: Buffer): ClientHello | undefined {
  try {
    const reader = new Reader(body);
    reader.take(2 + 32); // version and random
    reader.take(reader.number(1)); // session
    reader.take(reader.number(2)); // cipher suites
    reader.take(reader.number(1)); // compression
    const hello: ClientHello = { serverName: "", protocols: [] };
    if (reader.done) return hello;
    const extensions = new Reader(reader.take(reader.number(2)));
    if (!reader.done) return undefined;
    while (!extensions.done) {
      const kind = extensions.number(2);
      const data = new Reader(extensions.take(extensions.number(2)));
      if (kind === EXTENSION_SERVER_NAME) hello.serverName = nameOf(data);
      if (kind === EXTENSION_ALPN) hello.protocols = protocolsOf(data);
    }
    return hello;
  } catch {
    return undefined; // it ends before it says that it does
  }
}

function nameOf(data: Reader): string {
  if (data.done) return "";
  const names = new Reader(data.take(data.number(2)));
  while (!names.done) {
    const kind = names.number(1);
    const name = names.take(names.number(2)).toString("latin1");
    if (kind === 0) return name;
  }
  return "";
}

function protocolsOf(data: Reader): string[] {
  const names = new Reader(data.take(data.number(2)));
  const protocols: string[] = [];
  while (!names.done) protocols.push(names.take(names.number(1)).toString("latin1"));
  return protocols;
}

/** @throws RangeError past the end */
class Reader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get done(): boolean {
    return this.#at === this.#bytes.length;
  }

  number(bytes: 1 | 2): number {
    const value = this.#bytes.readUIntBE(this.#at, bytes);
    this.#at += bytes;
    return value;
  }

  take(length: number): Buffer {
    if (this.#at + length > this.#bytes.length) throw new RangeError("past the end");
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }
}
