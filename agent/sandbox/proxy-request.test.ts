import fc from "fast-check";
import { expect, test } from "vitest";
import { targetText } from "../../shared/model/target.ts";
import { HEAD_MAX_BYTES, readRequest } from "./proxy-request.ts";

const asked = (text: string) => readRequest(Buffer.from(text, "latin1"), false);

test("CONNECT names its target, and what came with it goes to the target", () => {
  expect(asked("CONNECT DB.example:5432 HTTP/1.1\r\nHost: x\r\n\r\nrest")).toMatchObject({
    kind: "target",
    protocol: "connect",
    target: { host: "db.example", port: 5432 },
    first: Buffer.from("rest"),
  });
});

test.each([
  ["GET http://a.example/x?y HTTP/1.1", "a.example:80", "GET /x?y HTTP/1.1"],
  ["GET http://a.example HTTP/1.0", "a.example:80", "GET / HTTP/1.1"],
  ["POST HTTP://[2001:db8::7]:8080?q HTTP/1.1", "[2001:db8::7]:8080", "POST /?q HTTP/1.1"],
])("%s goes to %s as %s", (line, target, sent) => {
  const head = `${line}\r\nHost: a\r\nProxy-Authorization: Basic eDp5\r\nConnection: keep-alive\r\n\r\nbody`;
  const result = asked(head);
  if (result.kind !== "target") throw new Error(`it is ${result.kind}`);
  expect(targetText(result.target)).toBe(target);
  expect(result.first.toString()).toBe(`${sent}\r\nHost: a\r\nConnection: close\r\n\r\nbody`);
});

test.each([
  ["GET / HTTP/1.1\r\n\r\n", /^HTTP\/1\.1 400 /],
  ["CONNECT a.example HTTP/1.1\r\n\r\n", /^HTTP\/1\.1 400 /],
  ["GET http://user@a.example/ HTTP/1.1\r\n\r\n", /^HTTP\/1\.1 400 /],
  ["GET https://a.example/ HTTP/1.1\r\n\r\n", /^HTTP\/1\.1 400 /],
  ["\x16\x03\x01 a TLS hello\r\n\r\n", /^HTTP\/1\.1 400 /],
  ["x".repeat(HEAD_MAX_BYTES), /^HTTP\/1\.1 431 /],
])("%j is answered", (text, reply) => {
  const result = asked(text);
  expect(result.kind).toBe("bad");
  expect("reply" in result && result.reply.toString()).toMatch(reply);
});

test("SOCKS 5 is greeted without a password, and refused to whoever insists on one", () => {
  expect(readRequest(Buffer.from([5, 2, 0, 2]), false)).toMatchObject({ kind: "greet", used: 4 });
  expect(readRequest(Buffer.from([5, 1, 2]), false)).toMatchObject({
    kind: "bad",
    reply: Buffer.from([5, 0xff]),
  });
});

const socks = (type: number, host: Buffer, port: number, command = 1) =>
  Buffer.concat([Buffer.from([5, command, 0, type]), host, Buffer.from([port >> 8, port & 255])]);
const name = (text: string) => Buffer.concat([Buffer.from([text.length]), Buffer.from(text)]);
const v6 = Buffer.from("20010db8000000000000000000000007", "hex");

test.each([
  [socks(1, Buffer.from([10, 20, 0, 7]), 5432), "10.20.0.7:5432"],
  [socks(3, name("db.example"), 5432), "db.example:5432"],
  [socks(3, name("2001:db8::7"), 443), "[2001:db8::7]:443"],
  [socks(4, v6, 443), "[2001:db8::7]:443"],
])("a request of SOCKS names %s", (bytes, target) => {
  const result = readRequest(bytes, true);
  expect(result.kind === "target" && targetText(result.target)).toBe(target);
});

test.each([
  [socks(3, name("localhost"), 80), 2],
  [socks(3, name("a.example"), 0), 2],
  [socks(3, name("a.example"), 80, 2), 7],
  [socks(9, name("a.example"), 80), 8],
])("what SOCKS is not served for is answered with its code", (bytes, code) => {
  const result = readRequest(bytes, true);
  expect(result.kind === "bad" && result.reply[1]).toBe(code);
});

test("a request that comes in pieces is the same request, and nothing makes the reader throw", () => {
  const requests = [
    Buffer.from("CONNECT a.example:1 HTTP/1.1\r\nA: b\r\n\r\n"),
    Buffer.from("GET http://a.example:8/x HTTP/1.1\r\nA: b\r\n\r\n"),
    socks(3, name("db.example"), 5432),
    socks(4, v6, 443),
  ];
  fc.assert(
    fc.property(fc.constantFrom(...requests), fc.nat(), (bytes, cut) => {
      const greeted = bytes[0] === 5;
      expect(readRequest(bytes.subarray(0, cut % bytes.length), greeted).kind).toBe("more");
      expect(readRequest(bytes, greeted).kind).toBe("target");
    }),
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), fc.boolean(), (bytes, greeted) => {
      expect(["more", "greet", "bad", "target"]).toContain(readRequest(Buffer.from(bytes), greeted).kind);
    }),
  );
});
