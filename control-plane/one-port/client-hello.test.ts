/** Hellos of a real client, cut and bent. */
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { connect } from "node:tls";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { HELLO_MAX_BYTES, readClientHello } from "./client-hello.ts";

/** What Node's own client sends first. */
async function helloOf(options: { servername?: string; ALPNProtocols?: string[] }): Promise<Buffer> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const client = connect({ host: "127.0.0.1", port: (server.address() as AddressInfo).port, ...options });
  client.on("error", () => undefined);
  const [socket] = await once(server, "connection");
  const [bytes] = (await once(socket, "data")) as [Buffer];
  socket.destroy();
  client.destroy();
  server.close();
  return bytes;
}

/** The same handshake message, in records of this size. */
function inRecords(hello: Buffer, size: number): Buffer {
  const content = hello.subarray(5);
  const records: Buffer[] = [];
  for (let at = 0; at < content.length; at += size) {
    const part = content.subarray(at, at + size);
    records.push(Buffer.from([22, 3, 1, part.length >> 8, part.length & 0xff]), part);
  }
  return Buffer.concat(records);
}

let hello: Buffer;
beforeAll(async () => {
  hello = await helloOf({ servername: "insitu.example.org", ALPNProtocols: ["insitu-nats/1", "h2"] });
});

const READ = {
  kind: "hello",
  hello: { serverName: "insitu.example.org", protocols: ["insitu-nats/1", "h2"] },
};

describe("the hello of a client", () => {
  test("tells the name and the protocols", () => {
    expect(readClientHello(hello)).toEqual(READ);
  });

  test("may have neither", async () => {
    const bare = { kind: "hello", hello: { serverName: "", protocols: [] } };
    expect(readClientHello(await helloOf({ servername: "" }))).toEqual(bare);
  });

  test("is waited for until its last byte", () => {
    for (let length = 0; length < hello.length; length++)
      expect(readClientHello(hello.subarray(0, length))).toEqual({ kind: "more" });
  });

  test("is read from records of any size", () => {
    for (const size of [1, 2, 3, 7, 100]) expect(readClientHello(inRecords(hello, size))).toEqual(READ);
  });

  test("is read no further than its end", () => {
    expect(readClientHello(Buffer.concat([hello, Buffer.from("whatever follows")]))).toEqual(READ);
  });
});

describe("what is no hello", () => {
  test.each<[string, Buffer]>([
    ["HTTP", Buffer.from("GET / HTTP/1.1\r\n\r\n")],
    ["the HTTP/2 preface", Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")],
    ["SSH", Buffer.from("SSH-2.0-OpenSSH_9.2\r\n")],
    ["an alert", Buffer.from([21, 3, 3, 0, 2, 2, 40])],
    ["a ServerHello", Buffer.from([22, 3, 3, 0, 4, 2, 0, 0, 0])],
    ["an empty record", Buffer.from([22, 3, 1, 0, 0])],
  ])("%s is refused at once", (_what, bytes) => {
    expect(readClientHello(bytes)).toEqual({ kind: "refused", why: "not TLS" });
  });

  test("one that announces more than the limit is refused before it has come", () => {
    const head = Buffer.from([22, 3, 1, 0x40, 0, 1, 0, 0x40, 0]);
    expect(readClientHello(head)).toEqual({ kind: "refused", why: "too long" });
  });

  test("one that is cut into very many records is refused at the limit", () => {
    const long = Buffer.concat([Buffer.from([22, 3, 1, 0x3f, 0, 1, 0, 0x3e, 0]), Buffer.alloc(0x3efc)]);
    const bytes = inRecords(long, 1).subarray(0, HELLO_MAX_BYTES);
    expect(readClientHello(bytes)).toEqual({ kind: "refused", why: "too long" });
  });

  test("one whose lengths contradict each other is refused", () => {
    const bent = Buffer.from(hello);
    bent[5 + 4 + 2 + 32] = 255; // of the session: past the end of all
    bent.writeUInt16BE(0xffff, 5 + 4 + 2 + 32 + 1 + 32);
    expect(readClientHello(bent)).toEqual({ kind: "refused", why: "malformed" });
  });

  test("no bytes make it throw or keep it waiting past the limit", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), fc.nat(600), (noise, at) => {
        const bent = Buffer.from(hello);
        bent.set(noise.subarray(0, Math.max(0, bent.length - at)), Math.min(at, bent.length));
        for (const bytes of [noise, bent]) readClientHello(bytes);
        const padded = Buffer.concat([bent, Buffer.alloc(HELLO_MAX_BYTES)]);
        expect(readClientHello(padded).kind).not.toBe("more");
      }),
    );
  });
});
