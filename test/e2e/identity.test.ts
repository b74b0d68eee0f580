/** The life of an agent's identity, with the programs as they are shipped. */
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { status } from "@grpc/grpc-js";
import { connect, jwtAuthenticator } from "nats";
import { expect, test } from "vitest";
import { certificateRequest } from "../../agent/enrolment/certificate-request.ts";
import { openGateway } from "../../agent/uplink/gateway-client.ts";
import { loadOrCreatePki } from "../../control-plane/access/pki.ts";
import type { AgentView, JoinRequestView } from "../../control-plane/api/schemas.ts";
import { systemClock } from "../../shared/system.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = { kind: "pipeline", name: "p", steps: [{ id: "s", environment: "site", uses: "noop" }] };
const LIMIT_MS = 90_000;
const AT_ONCE_MS = 1_000;
const REFUSED = "the control plane does not take this agent any more; it takes no work";

test("an agent that is revoked is cut off at once, and nothing that it has opens anything again, whatever is restarted", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: ["--heartbeat", "300"] });
  await plant.startServer();
  await plant.apply(SITE, PIPELINE);
  const thief = await plant.startAgent("site", "thief");
  const state = join(plant.directory, "sites", "site", "thief");
  const read = (file: string): string => readFileSync(join(state, file), "utf8");
  const file = (name: string): string => join(plant.directory, name);
  const said = (text: string): number => readFileSync(file("site-thief.log"), "utf8").split(text).length - 1;
  await plant.until(async () => said('"work queue connected"') === 1);
  // What an attacker has copied from the host.
  const { seed } = JSON.parse(read("nats-user.json")) as { seed: string };
  const access = read("nats.json");
  const { servers, userJwt } = JSON.parse(access) as { servers: string[]; userJwt: string };
  const onNats = (natsServers = servers) =>
    connect({
      servers: natsServers,
      authenticator: jwtAuthenticator(userJwt, Buffer.from(seed)),
      reconnect: false,
    });
  const stolen = await onNats();

  const beganMs = systemClock.monotonicMs();
  const revoked = (await plant.call("POST", "/v1/agents/site/thief/revoke", {
    reason: "host stolen",
  })) as AgentView;
  expect(revoked).toMatchObject({ revoked: { by: "operator", reason: "host stolen" } });
  await stolen.closed();
  await plant.until(async () => said(REFUSED) === 1);
  expect(systemClock.monotonicMs() - beganMs).toBeLessThan(AT_ONCE_MS);
  await expect(onNats()).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });

  // Restarts of everything, with the files that the attacker has kept.
  for (const child of [thief, plant.server!]) {
    const gone = once(child, "exit");
    child.kill("SIGKILL");
    await gone;
  }
  const natsPort = Number(new URL(servers[0]!).port);
  const gateway = JSON.parse(read("identity/identity.json")) as { gateway: string };
  await plant.startServer({ natsPort, gatewayPort: Number(gateway.gateway.split(":").at(-1)) });
  writeFileSync(join(state, "nats.json"), access);
  await plant.startAgent("site", "honest");
  plant.spawnAgent("site", "thief");
  await plant.until(async () => said(REFUSED) === 2);
  await expect(onNats()).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
  const { id } = await plant.start("p");
  const events = await plant.events(id, () => false);
  expect(events.flatMap((event) => (event.kind === "attempt.started" ? [event.agent] : []))).toEqual([
    "site/honest",
  ]);
  const { items } = (await plant.call("GET", "/v1/agents")) as { items: AgentView[] };
  expect(items.map(({ name, connected, revoked }) => [name, connected, revoked?.reason])).toEqual([
    ["honest", true, undefined],
    ["thief", false, "host stolen"],
  ]);
});

test("a certificate is renewed with a new key while a step runs, which notices nothing, and the older one opens nothing any more", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: ["--heartbeat", "300"] });
  await plant.startServer();
  const gate = join(plant.directory, "gate");
  const wait = ["sh", "-c", `while [ ! -e ${gate} ]; do sleep 0.05; done; echo done`];
  const gated = { kind: "pipeline", name: "gated", steps: [{ id: "s", environment: "site", run: wait }] };
  await plant.apply({ ...SITE, identity: { validFor: "90d" } }, PIPELINE, gated);
  const enrolled = await plant.startAgent("site", "a1");
  const gone = once(enrolled, "exit");
  enrolled.kill("SIGKILL");
  await gone;

  // The certificate that it would have had some weeks ago: it is due in some seconds.
  const inside = join(plant.directory, "sites", "site", "a1", "identity");
  const read = (file: string): Buffer => readFileSync(join(inside, file));
  const keyPem = read("key.pem");
  const lifeMs = 30 * 86_400_000;
  const dueInMs = 4_000;
  const pki = await loadOrCreatePki({
    directory: join(plant.directory, "server", "secrets"),
    trustDomain: parse(read("identity.json")).trustDomain,
    // It counts from five minutes before its issue.
    clock: { ...systemClock, wallMs: () => systemClock.wallMs() + dueInMs - agedMs(lifeMs) },
  });
  const agent = { environment: "site", name: "a1" };
  const key = await pki.readRequest(certificateRequest("a1", keyPem));
  const { certificatePem } = await pki.issueAgentCertificate(agent, key, lifeMs);
  writeFileSync(join(inside, "certificate.pem"), certificatePem);

  plant.spawnAgent("site", "a1");
  const { id } = await plant.start("gated");
  await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.started"));
  await plant.until(async () => !read("key.pem").equals(keyPem));
  const view = async () => (await plant.call("GET", "/v1/agents/site/a1")) as AgentView;
  await plant.until(
    async () => (await view()).certificateNotAfterMs > systemClock.wallMs() + 80 * 86_400_000,
  );
  await plant.until(async () => (await view()).connected);
  const work = await plant.start("p"); // over the queue, with an access of the new identity
  expect((await plant.events(work.id, () => false)).at(-1)).toMatchObject({ status: "succeeded" });
  writeFileSync(gate, "");
  const events = await plant.events(id, () => false);
  expect(events.filter(({ kind }) => kind.startsWith("attempt.")).map(({ kind }) => kind)).toEqual([
    "attempt.offered",
    "attempt.started",
    "attempt.finished",
  ]);
  expect(events.at(-1)).toMatchObject({ status: "succeeded" });

  const client = openGateway(`localhost:${plant.gatewayPort}`, {
    caPem: read("ca.pem"),
    keyPem,
    certificatePem: Buffer.from(certificatePem),
  });
  const refusal = new Promise((resolve) => client.Session().on("error", resolve).on("data", resolve));
  expect(await refusal).toMatchObject({ code: status.PERMISSION_DENIED });
  client.close();
});

test("an agent whose certificate has expired comes back as the same agent when a person approves its key", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: ["--heartbeat", "300"] });
  await plant.startServer();
  await plant.apply(SITE, PIPELINE);
  const agent = await plant.startAgent("site", "late");
  const gone = once(agent, "exit");
  agent.kill("SIGKILL");
  await gone;
  const inside = join(plant.directory, "sites", "site", "late", "identity");
  const read = (file: string): Buffer => readFileSync(join(inside, file));
  const keyPem = read("key.pem");
  const pki = await loadOrCreatePki({
    directory: join(plant.directory, "server", "secrets"),
    trustDomain: parse(read("identity.json")).trustDomain,
    clock: { ...systemClock, wallMs: () => systemClock.wallMs() - 31 * 86_400_000 },
  });
  const key = await pki.readRequest(certificateRequest("late", keyPem));
  const expired = await pki.issueAgentCertificate({ environment: "site", name: "late" }, key);
  expect(expired.notAfterMs).toBeLessThan(systemClock.wallMs());
  writeFileSync(join(inside, "certificate.pem"), expired.certificatePem);

  plant.spawnAgent("site", "late");
  const waiting = async () =>
    ((await plant.call("GET", "/v1/join-requests")) as { items: JoinRequestView[] }).items;
  await plant.until(async () => (await waiting()).length === 1);
  const [request] = await waiting();
  expect(request).toMatchObject({ name: "late", recovers: true });
  const log = readFileSync(join(plant.directory, "site-late.log"), "utf8");
  await plant.until(async () =>
    readFileSync(join(plant.directory, "site-late.log"), "utf8").includes(request!.fingerprint),
  );
  expect(log).toContain("certificate has expired");
  await plant.call("POST", "/v1/join-requests/site/late", {
    approve: true,
    fingerprint: request!.fingerprint,
  });
  await plant.until(async () => ((await plant.call("GET", "/v1/agents/site/late")) as AgentView).connected);
  const { id } = await plant.start("p");
  expect((await plant.events(id, () => false)).at(-1)).toMatchObject({ status: "succeeded" });
  expect(read("key.pem").equals(keyPem)).toBe(true);
});

function parse(file: Buffer): { trustDomain: string } {
  return JSON.parse(file.toString()) as { trustDomain: string };
}

/** How long after its issue a certificate is due: it is backdated by five minutes. */
function agedMs(lifeMs: number): number {
  const backdatedMs = 5 * 60_000;
  return (lifeMs + backdatedMs) * (2 / 3) - backdatedMs;
}

test("an agent whose token asks for approval says its fingerprint and waits, over a restart of the server, until it is approved", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  await plant.apply(SITE);
  const { token } = (await plant.call("POST", "/v1/join-tokens", {
    environment: "site",
    approval: true,
  })) as {
    token: string;
  };
  plant.spawnAgent("site", "new", ["--join-token", token]);
  const log = join(plant.directory, "site-new.log");
  const fingerprint = () =>
    /"fingerprint":"([^"]+)","msg":"waiting for approval/.exec(readFileSync(log, "utf8"));
  await plant.until(async () => fingerprint() !== null);
  const waiting = async () =>
    ((await plant.call("GET", "/v1/join-requests")) as { items: JoinRequestView[] }).items;
  expect(await waiting()).toMatchObject([{ name: "new", fingerprint: fingerprint()![1] }]);

  const { gatewayPort } = plant;
  const gone = once(plant.server!, "exit");
  plant.server!.kill("SIGKILL");
  await gone;
  await plant.startServer({ gatewayPort });
  const decision = { approve: true, fingerprint: fingerprint()![1] };
  const wrong = { ...decision, fingerprint: `sha256:${"0".repeat(64)}` };
  await expect(plant.call("POST", "/v1/join-requests/site/new", wrong)).rejects.toThrow(/: 409 /);
  await plant.call("POST", "/v1/join-requests/site/new", decision);
  await plant.until(async () => ((await plant.call("GET", "/v1/agents/site/new")) as AgentView).connected);
  expect(await waiting()).toEqual([]);
});
