import "reflect-metadata"; // before @peculiar/x509
import {
  createHash,
  createPublicKey,
  generateKeyPairSync,
  verify,
  webcrypto,
  X509Certificate,
} from "node:crypto";
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as x509 from "@peculiar/x509";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { OFFER_PURPOSE } from "../../shared/wire/attempt.ts";
import { loadOrCreateApiToken } from "./api-token.ts";
import { loadOrCreateOfferSigner } from "./offer-signer.ts";
import { loadOrCreatePki } from "./pki.ts";

const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-pki-"));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

const open = (extra = {}) =>
  loadOrCreatePki({
    directory: join(directory, "ca"),
    trustDomain: "insitu.test",
    clock: systemClock,
    ...extra,
  });

async function request(algorithm: object = P256) {
  const keys = (await webcrypto.subtle.generateKey(algorithm as never, true, [
    "sign",
    "verify",
  ])) as webcrypto.CryptoKeyPair;
  const csr = await x509.Pkcs10CertificateRequestGenerator.create(
    {
      name: "CN=root,O=somebody else",
      keys,
      signingAlgorithm: algorithm as never,
      extensions: [
        new x509.SubjectAlternativeNameExtension([
          { type: "url", value: "spiffe://insitu.test/env/hq/agent/boss" },
        ]),
      ],
    },
    webcrypto as never,
  );
  return { der: new Uint8Array(csr.rawData), keys };
}

describe("the certificate authority", () => {
  test("is the same after a restart, and its files are for the owner alone", async () => {
    const first = await open();
    const again = await open();
    expect(again.caPem).toBe(first.caPem);
    expect(again.caPin()).toBe(first.caPin());
    for (const file of ["ca.key.pem", "ca.crt.pem"]) {
      expect((await stat(join(directory, "ca", file))).mode & 0o777).toBe(0o600);
    }
    expect((await stat(join(directory, "ca"))).mode & 0o777).toBe(0o700);
  });

  test("two processes that make it at once end up with one", async () => {
    const [one, other] = await Promise.all([open(), open()]);
    expect(one.caPem).toBe(other.caPem);
  });

  test("pins the SHA-256 of the root's public key", async () => {
    const pki = await open();
    const spki = new X509Certificate(pki.caPem).publicKey.export({ type: "spki", format: "der" });
    expect(pki.caPin()).toBe(`sha256:${createHash("sha256").update(spki).digest("hex")}`);
  });

  test("a key that others can read is refused", async () => {
    await open();
    await chmod(join(directory, "ca", "ca.key.pem"), 0o644);
    await expect(open()).rejects.toThrow(/chmod 600/);
  });

  test("a certificate of another key is refused", async () => {
    await open();
    const other = await loadOrCreatePki({
      directory: join(directory, "other"),
      trustDomain: "insitu.test",
      clock: systemClock,
    });
    await writeFile(join(directory, "ca", "ca.crt.pem"), other.caPem, { mode: 0o600 });
    await expect(open()).rejects.toThrow(/belongs to another key/);
  });

  test("a certificate without its key is never replaced by a new authority", async () => {
    const pki = await open();
    await rm(join(directory, "ca", "ca.key.pem"));
    await expect(open()).rejects.toThrow(/restore the key from a backup/);
    expect(await readFile(join(directory, "ca", "ca.crt.pem"), "utf8")).toBe(pki.caPem);
  });

  test("server certificates carry the names asked for and the root behind them", async () => {
    const pki = await open();
    const pair = await pki.issueServerCertificate({ dns: ["gateway.example"], ips: ["10.1.2.3"] });
    const leaf = new X509Certificate(pair.chainPem);
    expect(leaf.subjectAltName).toBe(
      "DNS:localhost, DNS:gateway.example, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, IP Address:10.1.2.3",
    );
    expect(leaf.keyUsage).toEqual(["1.3.6.1.5.5.7.3.1"]);
    expect(leaf.verify(new X509Certificate(pki.caPem).publicKey)).toBe(true);
    expect(pair.chainPem).toContain(pki.caPem);
  });

  test("agent certificates take the key of the request and nothing else", async () => {
    const pki = await open();
    const { der, keys } = await request();
    const key = await pki.readRequest(der);
    const issued = await pki.issueAgentCertificate({ environment: "dream", name: "a1" }, key);
    const leaf = new X509Certificate(issued.certificatePem);
    expect(leaf.subjectAltName).toBe("URI:spiffe://insitu.test/env/dream/agent/a1");
    expect(leaf.subject).toBe("OU=dream\nCN=a1");
    expect(leaf.keyUsage).toEqual(["1.3.6.1.5.5.7.3.2"]);
    expect(leaf.ca).toBe(false);
    const spki = Buffer.from(await webcrypto.subtle.exportKey("spki", keys.publicKey));
    expect(leaf.publicKey.export({ type: "spki", format: "der" }).equals(spki)).toBe(true);
    expect(issued.spkiSha256).toBe(createHash("sha256").update(spki).digest("hex"));
    const days = (issued.notAfterMs - systemClock.wallMs()) / 86_400_000;
    expect(days).toBeGreaterThan(29.9);
    expect(days).toBeLessThanOrEqual(30);
    expect(new Date(leaf.validFrom).getTime()).toBeLessThanOrEqual(systemClock.wallMs() - 5 * 60_000);
    expect(leaf.serialNumber).toHaveLength(34);
  });

  test("a request without proof of possession is refused", async () => {
    const pki = await open();
    const { der } = await request();
    const forged = new Uint8Array(der);
    forged[forged.length - 1]! ^= 1;
    await expect(pki.readRequest(forged)).rejects.toMatchObject({ code: "request.invalid" });
  });

  test.each([
    ["garbage", new Uint8Array([1, 2, 3])],
    ["nothing", new Uint8Array()],
    ["too much", new Uint8Array(10_000)],
  ])("a request of %s is refused", async (_, bytes) => {
    await expect((await open()).readRequest(bytes)).rejects.toMatchObject({ code: "request.invalid" });
  });

  test("keys of a kind that is not taken are refused, and it says which are", async () => {
    const pki = await open();
    const { der } = await request({
      name: "RSASSA-PKCS1-v1_5",
      hash: "SHA-256",
      modulusLength: 1024,
      publicExponent: new Uint8Array([1, 0, 1]),
    });
    await expect(pki.readRequest(der)).rejects.toThrow(/rsa.*P-256/);
  });

  test("Ed25519 and P-384 requests are taken", async () => {
    const pki = await open();
    for (const algorithm of [{ name: "Ed25519" }, { name: "ECDSA", namedCurve: "P-384", hash: "SHA-384" }]) {
      const key = await pki.readRequest((await request(algorithm)).der);
      const issued = await pki.issueAgentCertificate({ environment: "dream", name: "a1" }, key);
      expect(
        new X509Certificate(issued.certificatePem).verify(new X509Certificate(pki.caPem).publicKey),
      ).toBe(true);
    }
  });
});

describe("the offer signer", () => {
  test("signs under the purpose, with a key that outlives a restart", async () => {
    const signer = await loadOrCreateOfferSigner(directory);
    const payload = Buffer.from('{"v":1}');
    const signature = Buffer.from((await loadOrCreateOfferSigner(directory)).sign(payload), "base64");
    const key = createPublicKey(signer.publicKeyPem);
    expect(verify(null, Buffer.concat([Buffer.from(`${OFFER_PURPOSE}\0`), payload]), key, signature)).toBe(
      true,
    );
    expect(verify(null, payload, key, signature)).toBe(false);
  });

  test("a key of another kind is refused", async () => {
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    await writeFile(join(directory, "offer-key.pem"), privateKey.export({ type: "pkcs8", format: "pem" }), {
      mode: 0o600,
    });
    await expect(loadOrCreateOfferSigner(directory)).rejects.toThrow(/ed25519/);
  });
});

describe("the API token", () => {
  test("stays over a restart, readable by its owner alone", async () => {
    const gate = await loadOrCreateApiToken(directory);
    const again = await loadOrCreateApiToken(directory);
    expect(again.token).toBe(gate.token);
    expect(gate.token.length).toBeGreaterThanOrEqual(43);
    expect((await stat(join(directory, "api-token"))).mode & 0o777).toBe(0o600);
  });
});
