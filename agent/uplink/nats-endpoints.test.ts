/** To a real NATS that speaks TLS with a certificate for "localhost", and to a gateway with the same. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { connect } from "nats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import {
  type ConnectProxy,
  PROXY_PASSWORD,
  PROXY_USER,
  startConnectProxy,
} from "../../test/support/connect-proxy.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { openNetwork, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { hostAndPort } from "../network/address.ts";
import { Network } from "../network/network.ts";
import { ProxyConfig, proxyOf } from "../network/proxy.ts";
import { type Authority, createAuthority, TestGateway } from "./gateway.fixture.ts";
import { openGateway } from "./gateway-client.ts";
import { endpointFor } from "./nats-endpoints.ts";

let authority: Authority;
let nats: TestNats;
let proxy: ConnectProxy;
let directory: TestDirectory;
let proxied: Network;

beforeAll(async () => {
  directory = testDirectory();
  const file = (name: string, content: string): string => {
    const path = join(directory.path, name);
    writeFileSync(path, content);
    return path;
  };
  authority = await createAuthority();
  const { certificatePem, keyPem } = authority.server;
  nats = await startTestNats({
    tls: {
      certFile: file("nats.crt.pem", certificatePem),
      keyFile: file("nats.key.pem", keyPem),
      caFile: file("ca.pem", authority.caPem),
    },
  });
  proxy = await startConnectProxy();
  const passwordFile = file("password", PROXY_PASSWORD);
  const given = proxyOf(ProxyConfig.parse({ url: proxy.url, username: PROXY_USER, passwordFile }));
  proxied = new Network({ clock: systemClock, siteCaPem: "", proxy: given });
});
afterAll(async () => {
  await proxied?.close();
  await proxy?.[Symbol.asyncDispose]();
  await nats?.stop();
  directory?.[Symbol.dispose]();
});

async function reach(network: Network, servers: string[], caPem = authority.caPem, turn = 0): Promise<void> {
  const endpoint = await endpointFor({ network }, { servers, caPem }, turn);
  const connection = await connect({ ...endpoint, user: nats.user, pass: nats.password, reconnect: false });
  await connection.close();
}

describe.each([
  ["directly", () => openNetwork],
  ["through the proxy", () => proxied],
])("%s", (how, network) => {
  test("NATS is found by the name that its certificate carries", async () => {
    const before = proxy.opened.length;
    await reach(network(), [`tls://localhost:${nats.port}`]);
    const expected = how === "directly" ? [] : [`localhost:${nats.port}`];
    expect(proxy.opened.slice(before)).toEqual(expected);
  });

  test("NATS is not taken for a server of another address", async () => {
    await expect(reach(network(), [`tls://127.0.0.1:${nats.port}`])).rejects.toThrow(
      /127\.0\.0\.1.*cert|altnames/i,
    );
  });

  test("NATS of another authority is refused", async () => {
    const other = await createAuthority();
    await expect(reach(network(), [`tls://localhost:${nats.port}`], other.caPem)).rejects.toThrow(
      /certificate|signature/,
    );
  });

  test("the gateway is found by the name that its certificate carries, and by no other", async () => {
    const gateway = new TestGateway(authority);
    await gateway.start();
    const check = async (address: string): Promise<unknown> => {
      const route = await network().route(hostAndPort(address));
      const client = openGateway(address, authority.identity(gateway.port), {}, route);
      try {
        return await new Promise((resolve, reject) => {
          client.Check({}, (err, reply) => (err ? reject(err) : resolve(reply)));
        });
      } finally {
        client.close();
      }
    };
    expect(await check(`localhost:${gateway.port}`)).toHaveProperty("wallMs");
    await expect(check(`127.0.0.1:${gateway.port}`)).rejects.toThrow(/altnames|cert/i);
    gateway.stop();
  });
});

test("behind a proxy, of several servers the next one is asked each time", async () => {
  const servers = ["tls://localhost:1", `tls://localhost:${nats.port}`];
  await expect(reach(proxied, servers, authority.caPem, 0)).rejects.toThrow();
  await reach(proxied, servers, authority.caPem, 1);
});
