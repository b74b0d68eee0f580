import { generateKeyPairSync, sign, verify } from "node:crypto";
import { expect, test } from "vitest";
import { Envelope, IN_TOTO_PAYLOAD, pae, seal, unseal } from "./dsse.ts";
import { fromBase64, utf8Bytes } from "./encoding.ts";
import { verifyEd25519, verifyP256 } from "./public-key.ts";

/** github.com/secure-systems-lab/dsse, protocol.md, section Test Vectors. */
const VECTOR = {
  payloadType: "http://example.com/HelloWorld",
  body: "hello world",
  x: 46950820868899156662930047687818585632848591499744589407958293238635476079160n,
  y: 5640078356564379163099075877009565129882514886557779369047442380624545832820n,
  sig: "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==",
};

test("what is signed is what the specification says", () => {
  expect(Buffer.from(pae(VECTOR.payloadType, utf8Bytes(VECTOR.body))).toString()).toBe(
    "DSSEv1 29 http://example.com/HelloWorld 11 hello world",
  );
});

test("the published envelope verifies", () => {
  const coordinate = (value: bigint): string =>
    Buffer.from(value.toString(16).padStart(64, "0"), "hex").toString("base64url");
  const key = { kty: "EC", crv: "P-256", x: coordinate(VECTOR.x), y: coordinate(VECTOR.y) };
  const envelope = {
    payload: Buffer.from(VECTOR.body).toString("base64"),
    payloadType: VECTOR.payloadType,
    signatures: [{ sig: VECTOR.sig }],
  };
  const payload = unseal(Envelope.parse(envelope), VECTOR.payloadType, (message, signature) =>
    verify("sha256", message, { key, format: "jwk", dsaEncoding: "ieee-p1363" }, signature),
  );
  expect(Buffer.from(payload!).toString()).toBe(VECTOR.body);
});

const statement = utf8Bytes('{"_type":"https://in-toto.io/Statement/v1"}');

test.each([
  ["P-256", generateKeyPairSync("ec", { namedCurve: "prime256v1" }), "sha256", verifyP256],
  [
    "Ed25519",
    generateKeyPairSync("ed25519"),
    null,
    (spki: Uint8Array, message: Uint8Array, signature: Uint8Array) =>
      verifyEd25519(spki.subarray(-32), message, signature),
  ],
] as const)("what %s has sealed opens with its key, its type and its bytes alone", (_, pair, hash, check) => {
  const spki = new Uint8Array(pair.publicKey.export({ format: "der", type: "spki" }));
  const envelope = seal(IN_TOTO_PAYLOAD, statement, {
    keyid: "k",
    sign: (message) => new Uint8Array(sign(hash, message, pair.privateKey)),
  });
  const verifier = (message: Uint8Array, signature: Uint8Array) => check(spki, message, signature);
  expect(Envelope.parse(JSON.parse(JSON.stringify(envelope)))).toEqual(envelope);
  expect(unseal(envelope, IN_TOTO_PAYLOAD, verifier)).toEqual(statement);
  expect(unseal(envelope, "text/plain", verifier)).toBeUndefined();
  expect(unseal({ ...envelope, payloadType: "text/plain" }, "text/plain", verifier)).toBeUndefined();
  const other = Buffer.from("{}").toString("base64");
  expect(unseal({ ...envelope, payload: other }, IN_TOTO_PAYLOAD, verifier)).toBeUndefined();
  expect(
    check(
      spki.map((byte) => byte ^ 1),
      statement,
      fromBase64(envelope.signatures[0]!.sig)!,
    ),
  ).toBe(false);
  expect(check(new Uint8Array(), statement, new Uint8Array())).toBe(false);
});

test.each([
  ["no signature", { signatures: [] }],
  ["a payload in another base64", { payload: "a-_=" }],
  ["a field that nobody knows", { more: 1 }],
])("an envelope with %s is refused", (_, change) => {
  const good = { payloadType: "t", payload: "", signatures: [{ sig: "AAAA" }] };
  expect(Envelope.safeParse(good).success).toBe(true);
  expect(Envelope.safeParse({ ...good, ...change }).success).toBe(false);
});
