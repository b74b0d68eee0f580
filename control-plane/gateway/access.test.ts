/** The gateway as an attacker meets it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ServiceError, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { loadOrCreatePki } from "../access/pki.ts";
import {
  csrOf,
  forge,
  hello,
  Inbox,
  newKeys,
  openSession,
  startWorld,
  TRUST_DOMAIN,
  type World,
} from "./gateway.fixture.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(async () => {
  await world?.stop();
});

const AGENT_URI = `spiffe://${TRUST_DOMAIN}/env/dream/agent/victim`;

/** How each method that needs an agent answers this identity. */
async function tryAll(identity?: {
  keyPem: string;
  certificatePem: string;
}): Promise<(ServiceError | undefined)[]> {
  const client = world.client(identity);
  const session = client.Session();
  const inboxes = [session, client.Report(), client.Logs()].map((stream) => new Inbox(stream as never));
  session.write(hello());
  const ends = await Promise.all(inboxes.map((inbox) => inbox.end()));
  expect(inboxes.flatMap((inbox) => inbox.all)).toEqual([]);
  const checked = await new Promise<ServiceError | undefined>((resolve) => {
    client.Check({}, (err) => resolve(err ?? undefined));
  });
  return [...ends, checked];
}

async function expectRefused(identity: { keyPem: string; certificatePem: string } | undefined, code: status) {
  for (const err of await tryAll(identity)) expect(err).toMatchObject({ code });
  expect(world.fleet.agentsOf("dream").filter((agent) => agent.id === "dream/victim")).toEqual([]);
}

describe("without an agent's certificate nothing but Enrol answers", () => {
  beforeAll(async () => {
    await world.join("dream", "victim");
  });

  test("no certificate", async () => {
    await expectRefused(undefined, status.UNAUTHENTICATED);
  });

  test("a certificate of another authority with the same names", async () => {
    const directory = await mkdtemp(join(tmpdir(), "insitu-other-ca-"));
    const other = await loadOrCreatePki({ directory, trustDomain: TRUST_DOMAIN, clock: systemClock });
    const keys = await newKeys();
    const issued = await other.issueAgentCertificate(
      { environment: "dream", name: "victim" },
      await other.readRequest(await csrOf(keys)),
    );
    await expectRefused(
      { keyPem: keys.keyPem, certificatePem: issued.certificatePem },
      status.UNAUTHENTICATED,
    );
    await rm(directory, { recursive: true });
  });

  test("a self-signed certificate with the right name", async () => {
    await expectRefused(await forge(await newKeys(), { uris: [AGENT_URI] }), status.UNAUTHENTICATED);
  });

  test("a certificate of ours that has expired", async () => {
    const past = await loadOrCreatePki({
      directory: world.caDirectory,
      trustDomain: TRUST_DOMAIN,
      clock: systemClock,
      agentValidityMs: -1_000,
    });
    const keys = await newKeys();
    const issued = await past.issueAgentCertificate(
      { environment: "dream", name: "victim" },
      await past.readRequest(await csrOf(keys)),
    );
    await expectRefused(
      { keyPem: keys.keyPem, certificatePem: issued.certificatePem },
      status.UNAUTHENTICATED,
    );
  });

  test("a server's certificate used as a client's", async () => {
    const pair = await world.pki.issueServerCertificate({ dns: [], ips: [] });
    await expectRefused({ keyPem: pair.keyPem, certificatePem: pair.chainPem }, status.UNAUTHENTICATED);
  });

  test.each([
    ["two URIs", "name", { uris: [AGENT_URI, `spiffe://${TRUST_DOMAIN}/env/biscoe/agent/victim`] }],
    ["the same URI twice", "name", { uris: [AGENT_URI, AGENT_URI] }],
    ["another trust domain", "name", { uris: ["spiffe://elsewhere.test/env/dream/agent/victim"] }],
    [
      "a trust domain that begins like ours",
      "name",
      { uris: [`spiffe://${TRUST_DOMAIN}.evil/env/dream/agent/victim`] },
    ],
    ["a path behind the name", "name", { uris: [`${AGENT_URI}/../other`] }],
    ["an authority's rights", "authority", { uris: [AGENT_URI], ca: true }],
    // TLS itself finds this one, and tells no more than that.
    ["a server's usage", "none", { uris: [AGENT_URI], usages: ["1.3.6.1.5.5.7.3.1"] }],
  ])("a certificate signed by us with %s", async (_, fault, wanted) => {
    const before = world.logLines.length;
    const signer = { pki: world.pki, caDirectory: world.caDirectory };
    await expectRefused(await forge(await newKeys(), { ...wanted, ...signer }), status.UNAUTHENTICATED);
    expect(world.logLines.slice(before).map((line) => line.fault)).toEqual([fault, fault, fault, fault]);
  });

  test("a certificate of ours for an agent that never enrolled", async () => {
    const uris = [`spiffe://${TRUST_DOMAIN}/env/dream/agent/nobody`];
    const identity = await forge(await newKeys(), { uris, pki: world.pki, caDirectory: world.caDirectory });
    await expectRefused(identity, status.PERMISSION_DENIED);
  });

  test("a certificate of ours with the right name and another key", async () => {
    const wanted = { uris: [AGENT_URI], pki: world.pki, caDirectory: world.caDirectory };
    await expectRefused(await forge(await newKeys(), wanted), status.PERMISSION_DENIED);
  });

  test("the right certificate is let in", async () => {
    const agent = await world.join("dream", "honest");
    const { welcome, stream } = await openSession(world.client(agent));
    expect(welcome.replicaId).toBe("replica-1");
    stream.end();
  });
});

describe("an agent that was revoked", () => {
  test("loses its open streams at once, and gets no new ones", async () => {
    const agent = await world.join("dream", "removed");
    const client = world.client(agent);
    const session = await openSession(client);
    const report = client.Report();
    const reports = new Inbox(report as never);
    report.write({ reports: [{ seq: 1, payload: Buffer.from("{}") }] });
    await reports.find(() => true);
    await world.registry.revoke("dream/removed", { by: "ada", reason: "stolen" });
    expect(await session.inbox.end()).toMatchObject({ code: status.PERMISSION_DENIED });
    expect(await reports.end()).toMatchObject({ code: status.PERMISSION_DENIED });
    await expectRefused(agent, status.PERMISSION_DENIED);
    expect(world.fleet.get("dream/removed")).toMatchObject({
      connected: false,
      revoked: { by: "ada", reason: "stolen" },
    });
  });

  test("is refused by another replica's gateway that hears of it from the store", async () => {
    const agent = await world.join("dream", "removed-elsewhere");
    const session = await openSession(world.client(agent));
    const elsewhere = await world.openRegistry();
    await elsewhere.revoke("dream/removed-elsewhere", { by: "ada", reason: "stolen" });
    expect(await session.inbox.end()).toMatchObject({ code: status.PERMISSION_DENIED });
    await elsewhere.close();
  });
});

describe("an open stream", () => {
  test("ends when the certificate that opened it expires", async () => {
    const brief = await loadOrCreatePki({
      directory: world.caDirectory,
      trustDomain: TRUST_DOMAIN,
      clock: systemClock,
      agentValidityMs: 2_000,
    });
    const keys = await newKeys();
    const agent = { environment: "dream", name: "brief" };
    const issued = await brief.issueAgentCertificate(agent, await brief.readRequest(await csrOf(keys)));
    await world.registry.register(agent, issued);
    const session = await openSession(
      world.client({ keyPem: keys.keyPem, certificatePem: issued.certificatePem }),
    );
    const err = await session.inbox.end();
    expect(err).toMatchObject({ code: status.PERMISSION_DENIED });
    expect(err?.details).toMatch(/certificate of dream\/brief expired/);
  });
});
