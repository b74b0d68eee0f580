/** What can go wrong on the way to a gateway. Joining a real one is tested in test/e2e/join.test.ts. */
import "reflect-metadata"; // before @peculiar/x509
import { createHash, generateKeyPairSync, webcrypto, X509Certificate } from "node:crypto";
import { type AddressInfo, createServer } from "node:net";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import * as x509 from "@peculiar/x509";
import { afterEach, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { agentGatewayService } from "../../shared/wire/grpc.ts";
import { encodeJoinToken } from "../../shared/wire/join-token.ts";
import { openNetwork } from "../agent.fixture.ts";
import { enrol } from "./enrol.ts";

const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const HOUR_MS = 3_600_000;
const SECRET = "the-secret-of-this-token";

interface Ca {
  keys: webcrypto.CryptoKeyPair;
  certificate: x509.X509Certificate;
}

const newKeys = () => webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);

async function newCa(): Promise<Ca> {
  const nowMs = systemClock.wallMs();
  const keys = await newKeys();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: "01",
      name: "CN=Insitu CA",
      notBefore: new Date(nowMs - 48 * HOUR_MS),
      notAfter: new Date(nowMs + 48 * HOUR_MS),
      keys,
      signingAlgorithm: P256,
      extensions: [new x509.BasicConstraintsExtension(true, 0, true)],
    },
    webcrypto as never,
  );
  return { keys, certificate };
}

/** A leaf of `issuer` with what else is shown after it. */
async function chainOf(
  issuer: Ca,
  shown: Ca,
  change: { fromMs?: number; name?: string; address?: string } = {},
) {
  const nowMs = systemClock.wallMs();
  const fromMs = change.fromMs ?? nowMs - HOUR_MS;
  const keys = await newKeys();
  const leaf = await x509.X509CertificateGenerator.create(
    {
      serialNumber: "02",
      subject: "CN=gateway",
      issuer: issuer.certificate.subject,
      notBefore: new Date(fromMs),
      notAfter: new Date(fromMs + 2 * HOUR_MS),
      publicKey: keys.publicKey,
      signingKey: issuer.keys.privateKey,
      signingAlgorithm: P256,
      extensions: [
        new x509.SubjectAlternativeNameExtension(
          change.address === undefined
            ? [{ type: "dns", value: change.name ?? "localhost" }]
            : [{ type: "ip", value: change.address }],
        ),
      ],
    },
    webcrypto as never,
  );
  const pkcs8 = await webcrypto.subtle.exportKey("pkcs8", keys.privateKey);
  return {
    private_key: Buffer.from(x509.PemConverter.encode(pkcs8, "PRIVATE KEY")),
    cert_chain: Buffer.from(`${leaf.toString("pem")}\n${shown.certificate.toString("pem")}\n`),
  };
}

function pinOf({ certificate }: Ca): string {
  const key = new X509Certificate(certificate.toString("pem")).publicKey;
  return `sha256:${createHash("sha256")
    .update(key.export({ type: "spki", format: "der" }))
    .digest("hex")}`;
}

let real: Ca;
let attacker: Ca;
const servers: Server[] = [];
beforeAll(async () => {
  real = await newCa();
  attacker = await newCa(); // with the same name
});
afterEach(() => {
  for (const server of servers.splice(0)) server.forceShutdown();
});

/** Serves enrolment, and notes which secrets it is given. */
async function serve(pair: Awaited<ReturnType<typeof chainOf>>) {
  const secrets: string[] = [];
  const server = new Server();
  servers.push(server);
  server.addService(agentGatewayService, {
    Enrol(call: { request: { token: string } }, callback: (err: object) => void) {
      secrets.push(call.request.token);
      callback({ code: 7, details: "the token was used already; make a new one" });
    },
    Session: () => undefined,
    Report: () => undefined,
    Logs: () => undefined,
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("localhost:0", ServerCredentials.createSsl(null, [pair]), (err, bound) =>
      err ? reject(err) : resolve(bound),
    );
  });
  return { port, secrets };
}

const KEY = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({
  type: "pkcs8",
  format: "pem",
});

const join = (port: number, host = "localhost") =>
  enrol({
    keyPem: Buffer.from(KEY),
    joinToken: encodeJoinToken({
      environment: "dream",
      gateway: `${host}:${port}`,
      caPin: pinOf(real),
      secret: SECRET,
    }),
    name: "a1",
    clock: systemClock,
    network: openNetwork,
  });

test("a gateway of the pinned CA is given the secret, and its refusal is passed on", async () => {
  const { port, secrets } = await serve(await chainOf(real, real));
  await expect(join(port)).rejects.toMatchObject({
    code: "token.invalid",
    message: expect.stringMatching(/used already/),
  });
  expect(secrets).toEqual([SECRET]);
});

test("who shows a chain of another CA is not given the secret", async () => {
  const { port, secrets } = await serve(await chainOf(attacker, attacker));
  await expect(join(port)).rejects.toMatchObject({
    code: "auth.denied",
    message: expect.stringMatching(/does not present the CA that the join token pins/),
  });
  expect(secrets).toEqual([]);
});

test("who shows the pinned CA behind a leaf of another one is not given the secret", async () => {
  const { port, secrets } = await serve(await chainOf(attacker, real));
  await expect(join(port)).rejects.toThrow();
  expect(secrets).toEqual([]);
});

test("a gateway of the pinned CA under another name is not given the secret, and the name is told", async () => {
  const { port, secrets } = await serve(await chainOf(real, real, { name: "elsewhere.example" }));
  await expect(join(port)).rejects.toThrow(/for another name/);
  expect(secrets).toEqual([]);
});

test("a gateway is found under its IP address, which no server name is sent for", async () => {
  const warnings: Error[] = [];
  const note = (warning: Error): unknown => warnings.push(warning);
  process.on("warning", note);
  const { port, secrets } = await serve(await chainOf(real, real, { address: "127.0.0.1" }));
  await expect(join(port, "127.0.0.1")).rejects.toMatchObject({ code: "token.invalid" });
  process.off("warning", note);
  expect(secrets).toEqual([SECRET]);
  expect(warnings).toEqual([]); // DEP0123
});

test.each([
  ["for names alone", {}],
  ["for another address", { address: "127.0.0.2" }],
  ["for the name that is sent instead", { name: "gateway.invalid" }],
])("a certificate %s is not good for an IP address, and the secret is kept", async (_, change) => {
  const { port, secrets } = await serve(await chainOf(real, real, change));
  await expect(join(port, "127.0.0.1")).rejects.toThrow(/for another name/);
  expect(secrets).toEqual([]);
});

test.each([
  ["not valid yet", 24 * HOUR_MS],
  ["not valid any more", -24 * HOUR_MS],
])("a certificate that is %s leads to the clocks", async (_, shiftMs) => {
  const fromMs = systemClock.wallMs() + shiftMs;
  const { port, secrets } = await serve(await chainOf(real, real, { fromMs }));
  await expect(join(port)).rejects.toMatchObject({
    code: "unreachable",
    message: expect.stringMatching(/check the clocks/),
  });
  expect(secrets).toEqual([]);
});

test("a gateway that is not there, and one that speaks no TLS, are named as not reached", async () => {
  const plain = createServer((socket) =>
    socket
      .on("error", () => undefined)
      .resume()
      .end("HTTP/1.1 400 Bad Request\r\n\r\n"),
  );
  await new Promise<void>((resolve) => plain.listen(0, "localhost", resolve));
  const { port } = plain.address() as AddressInfo;
  await expect(join(port)).rejects.toMatchObject({
    code: "unreachable",
    retryable: true,
    message: expect.stringContaining(`localhost:${port}`),
  });
  await new Promise((resolve) => plain.close(resolve));
  await expect(join(port)).rejects.toMatchObject({
    code: "unreachable",
    message: expect.stringMatching(/ECONNREFUSED|cannot reach/),
  });
});
