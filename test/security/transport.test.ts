/** What a scanner sees from outside of a server that listens off loopback: versions, ciphers, headers, cookies. */
import { request } from "node:https";
import { connect as connectTcp } from "node:net";
import { type ConnectionOptions, connect, type TLSSocket } from "node:tls";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));

let plant: Plant;
let ports: { api: number; gateway: number; "one port": number };

beforeAll(async () => {
  plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "warn" } });
  const replica = await plant.startReplica("server", {}, [
    ...["--host", "0.0.0.0", "--gateway-host", "0.0.0.0"],
    ...["--one-port", "0.0.0.0:0"],
  ]);
  ports = {
    api: Number(new URL(replica.url).port),
    gateway: replica.gatewayPort,
    "one port": replica.onePort,
  };
});
afterAll(async () => {
  await plant?.[Symbol.asyncDispose]();
});

const targets = [["api"], ["gateway"], ["one port"]] as const;

/** What a handshake agrees on, or the error that it ends with. The certificate is another test's. */
function shakeHands(port: number, options: ConnectionOptions): Promise<string> {
  return new Promise((resolve) => {
    const socket: TLSSocket = connect(
      { host: "127.0.0.1", port, rejectUnauthorized: false, ALPNProtocols: ["h2", "http/1.1"], ...options },
      () => {
        resolve(`${socket.getProtocol()} ${socket.getCipher().name}`);
        socket.destroy();
      },
    );
    socket.once("error", (err: NodeJS.ErrnoException) => resolve(`refused: ${err.code ?? err.message}`));
  });
}

describe.each(targets)("the port of the %s", (which) => {
  test.each(["TLSv1.2", "TLSv1.3"] as const)(
    "speaks %s with forward secrecy and an AEAD",
    async (version) => {
      const agreed = await shakeHands(ports[which], { minVersion: version, maxVersion: version });
      expect(agreed).toMatch(
        version === "TLSv1.3"
          ? /^TLSv1\.3 TLS_(AES|CHACHA20)/
          : /^TLSv1\.2 ECDHE-(ECDSA|RSA)-(AES(128|256)-GCM|CHACHA20)/,
      );
    },
  );

  test.each(["TLSv1", "TLSv1.1"] as const)("refuses %s", async (version) => {
    const options = { minVersion: version, maxVersion: version, ciphers: "DEFAULT@SECLEVEL=0" } as const;
    expect(await shakeHands(ports[which], options)).toMatch(/^refused: /);
  });

  // Of each kind one: no secrecy, no authentication, no forward secrecy, broken, export, old block sizes.
  test.each(["NULL", "aNULL", "AES128-SHA", "AES256-GCM-SHA384", "RC4", "3DES", "ECDHE-ECDSA-AES128-SHA"])(
    "refuses the cipher %s",
    async (cipher) => {
      const options = { maxVersion: "TLSv1.2", ciphers: `${cipher}:@SECLEVEL=0` } as const;
      let agreed: string;
      try {
        agreed = await shakeHands(ports[which], options);
      } catch (err) {
        // This OpenSSL no longer knows it: then no server can be made to speak it from here.
        agreed = `refused: ${(err as NodeJS.ErrnoException).code}`;
      }
      expect(agreed).toMatch(/^refused: /);
    },
  );

  test("answers nothing to a client that speaks no TLS", async () => {
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = connectTcp(ports[which], "127.0.0.1", () =>
        socket.write("GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
      );
      const chunks: Buffer[] = [];
      socket.on("data", (chunk: Buffer) => chunks.push(chunk));
      socket.on("close", () => resolve(Buffer.concat(chunks).toString("latin1")));
      socket.on("error", reject);
    });
    expect(answer).not.toMatch(/HTTP|insitu/i);
  });
});

test("the way to NATS on the one port speaks TLS 1.3 alone", async () => {
  const to = (options: ConnectionOptions) =>
    shakeHands(ports["one port"], { ALPNProtocols: ["insitu-nats/1"], ...options });
  expect(await to({})).toMatch(/^TLSv1\.3 /);
  expect(await to({ maxVersion: "TLSv1.2" })).toMatch(/^refused: /);
});

describe("an answer of the API", () => {
  const get = (path: string) =>
    new Promise<Record<string, string | string[] | undefined>>((resolve, reject) => {
      const options = { host: "127.0.0.1", port: ports.api, path, rejectUnauthorized: false };
      request(options, (response) => {
        response.resume();
        resolve(response.headers);
      })
        .once("error", reject)
        .end();
    });

  test.each(["/", "/console.js", "/v1/runs", "/nothing", "/livez"])(
    "at %s has the headers that it should",
    async (path) => {
      const headers = await get(path);
      expect(headers["x-content-type-options"]).toBe("nosniff");
      expect(headers["content-security-policy"]).toMatch(/default-src 'none'/);
      expect(headers["content-security-policy"]).toMatch(/frame-ancestors 'none'/);
      expect(headers["referrer-policy"]).toBe("no-referrer");
      expect(headers["strict-transport-security"]).toMatch(/^max-age=\d{7,}/);
      expect(headers["access-control-allow-origin"]).toBeUndefined();
      expect(headers["x-powered-by"]).toBeUndefined();
      expect(headers.server).toBeUndefined();
      expect(headers["set-cookie"]).toBeUndefined();
    },
  );
});
