/** Sites from which one TCP port of the control plane is reachable and nothing else. With the programs as they ship. */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { certificateRequest } from "../../agent/enrolment/certificate-request.ts";
import { loadOrCreatePki } from "../../control-plane/access/pki.ts";
import type { AgentView, JoinRequestView } from "../../control-plane/api/schemas.ts";
import { systemClock } from "../../shared/system.ts";
import { PROXY_PASSWORD, PROXY_USER, startConnectProxy } from "../support/connect-proxy.ts";
import { doctor } from "../support/doctor.ts";
import { startTestNats } from "../support/nats.ts";
import { Plant } from "../support/plant.ts";
import { WalledSite, whyNoNamespaces } from "../support/walled-site.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = {
  kind: "pipeline",
  name: "hello",
  steps: [{ id: "say", environment: "site", run: ["sh", "-c", "echo hello"] }],
};
const LIMIT_MS = 120_000;
const DAY_MS = 86_400_000;
const BACKDATED_MS = 5 * 60_000;

/** A control plane and one agent, whose host is another's business. */
class Life implements AsyncDisposable {
  readonly plant: Plant;
  readonly #host: { flags: string[]; within: readonly string[] };
  readonly #listen: string;

  constructor(listen: string, host: { flags?: string[]; within?: readonly string[] } = {}) {
    this.plant = new Plant({
      dist: DIST,
      serverFlags: ["--heartbeat", "300"],
      env: { INSITU_LOG_LEVEL: "info" },
    });
    this.#host = { flags: [], within: [], ...host };
    this.#listen = listen;
  }

  /** Before the agent's own flags are known, for example. */
  async startServer(): Promise<void> {
    await this.plant.startServer({}, ["--one-port", `${this.#listen}:0`, "--public-host", this.#listen]);
    await this.plant.apply(SITE, PIPELINE);
  }

  async restartServer(): Promise<void> {
    await kill(this.plant.server!);
    const flags = ["--one-port", `${this.#listen}:${this.plant.onePort}`, "--public-host", this.#listen];
    await this.plant.startServer({}, flags);
  }

  async start(flags: string[] = []): Promise<ChildProcess> {
    return await this.plant.startAgent("site", "a", [...this.#host.flags, ...flags], this.#host.within);
  }

  spawn(): ChildProcess {
    return this.plant.spawnAgent("site", "a", this.#host.flags, this.#host.within);
  }

  async doctor(flags: string[] = []) {
    return await doctor(this.plant, "a", [...this.#host.flags, ...flags], this.#host.within);
  }

  read(file: string): Buffer {
    return readFileSync(join(this.plant.directory, "sites/site/a", file));
  }

  async view(): Promise<AgentView> {
    return (await this.plant.call("GET", "/v1/agents/site/a")) as AgentView;
  }

  async runs(): Promise<void> {
    const { events } = await this.plant.follow("hello");
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  }

  /** Gives the agent, which does not run, the certificate that it would have had from `agoMs` before now. */
  async age(agoMs: number, lifeMs: number): Promise<void> {
    const { trustDomain } = JSON.parse(this.read("identity/identity.json").toString()) as {
      trustDomain: string;
    };
    const pki = await loadOrCreatePki({
      directory: join(this.plant.directory, "server", "secrets"),
      trustDomain,
      clock: { ...systemClock, wallMs: () => systemClock.wallMs() - agoMs },
    });
    const key = await pki.readRequest(certificateRequest("a", this.read("identity/key.pem")));
    const { certificatePem } = await pki.issueAgentCertificate(
      { environment: "site", name: "a" },
      key,
      lifeMs,
    );
    writeFileSync(join(this.plant.directory, "sites/site/a/identity/certificate.pem"), certificatePem);
  }

  /** Its certificate is due within seconds of its start: it gets another, for another key, and works with that. */
  async renews(agent: ChildProcess): Promise<ChildProcess> {
    await kill(agent);
    const lifeMs = 30 * DAY_MS;
    const keyPem = this.read("identity/key.pem");
    await this.age((lifeMs + BACKDATED_MS) * (2 / 3) - BACKDATED_MS - 3_000, lifeMs);
    const started = this.spawn();
    await this.plant.until(async () => !this.read("identity/key.pem").equals(keyPem));
    await this.plant.until(async () => (await this.view()).connected);
    await this.runs();
    return started;
  }

  /** Its certificate has expired: it asks to come back, and a person lets it. */
  async recovers(agent: ChildProcess): Promise<ChildProcess> {
    await kill(agent);
    await this.age(31 * DAY_MS, 30 * DAY_MS);
    const started = this.spawn();
    const waiting = async () =>
      ((await this.plant.call("GET", "/v1/join-requests")) as { items: JoinRequestView[] }).items;
    await this.plant.until(async () => (await waiting()).length === 1);
    const { fingerprint } = (await waiting())[0]!;
    await this.plant.call("POST", "/v1/join-requests/site/a", { approve: true, fingerprint });
    await this.plant.until(async () => (await this.view()).connected);
    await this.runs();
    return started;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.plant[Symbol.asyncDispose]();
  }
}

async function kill(child: ChildProcess): Promise<void> {
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

const whyNot = whyNoNamespaces();
if (whyNot) console.warn(`not tried here: ${whyNot}`);

test.skipIf(whyNot !== undefined)(
  "with one port open in its firewall an agent enrols, runs steps, renews, recovers and outlives the server's restart",
  { timeout: LIMIT_MS },
  async () => {
    using site = new WalledSite();
    await using life = new Life(site.centre, site);
    const { plant } = life;
    await life.startServer();
    site.wall({ port: plant.onePort });

    const { token } = (await plant.call("POST", "/v1/join-tokens", { environment: "site" })) as {
      token: string;
    };
    const before = await life.doctor(["--join-token", token]);
    expect(before).toMatchObject({ code: 0, ok: true });
    expect(before.seen.nats).toBe(
      `is reached through ${site.centre}:${plant.onePort} as well: no other port is needed`,
    );

    let agent = await life.start();
    await life.runs();
    expect(JSON.parse(life.read("nats.json").toString())).toMatchObject({ throughGateway: true });
    const during = await life.doctor();
    expect(during.levels).toMatchObject({ tls: "ok", grpc: "ok", nats: "ok", identity: "ok" });
    expect(during.seen.nats).toMatch(/^nats:\/\/127\.0\.0\.1:\d+ lets this agent in through the gateway$/);

    agent = await life.renews(agent);
    agent = await life.recovers(agent);
    await life.restartServer();
    await plant.until(async () => (await life.view()).connected);
    await life.runs();

    await plant.call("POST", "/v1/agents/site/a/revoke", { reason: "test" });
    await plant.until(async () => plant.logOf("site-a").includes("does not take this agent any more"));
    // Nothing was tried but the port that is open: no name, no other port, no time server.
    expect(site.dropped).toBe(0);
    expect([plant.onePort, plant.gatewayPort].map((port) => site.knock(port))).toEqual([true, false]);
    expect(site.dropped).toBeGreaterThan(0);
    expect(agent.exitCode).toBe(null);
  },
);

test("behind a proxy with a password the one port is all that is asked for, by renewals and recoveries too", {
  timeout: LIMIT_MS,
}, async () => {
  await using proxy = await startConnectProxy();
  const flags: string[] = [];
  await using life = new Life("127.0.0.1", { flags });
  const { plant } = life;
  await life.startServer();
  const password = join(plant.directory, "password");
  writeFileSync(password, PROXY_PASSWORD, { mode: 0o600 });
  const file = join(plant.directory, "agent.json");
  writeFileSync(
    file,
    JSON.stringify({ proxy: { url: proxy.url, username: PROXY_USER, passwordFile: password } }),
  );
  flags.push("--config", file);

  let agent = await life.start();
  await life.runs();
  agent = await life.renews(agent);
  agent = await life.recovers(agent);
  const diagnosis = await life.doctor();
  expect(diagnosis.levels).toMatchObject({ proxy: "ok", tls: "ok", grpc: "ok", nats: "ok" });
  expect(new Set(proxy.opened)).toEqual(new Set([`127.0.0.1:${plant.onePort}`]));
  expect(proxy.refused).toEqual([]);

  await kill(plant.server!);
  await plant.until(async () => plant.logOf("site-a").includes("connecting again"));
  const away = await life.doctor();
  expect(away.levels).toMatchObject({ nats: "fail" });
  expect(away.asks.join("\n")).toMatch(
    new RegExp(`without TLS inspection:[^]*Port: ${plant.onePort}/tcp, outgoing\\nProtocol: .*insitu-nats/1`),
  );
  expect(agent.exitCode).toBe(null);
});

test("an agent whose replica dies goes on through the one port of another, for work and for leases", {
  timeout: LIMIT_MS,
}, async () => {
  await using nats = await startTestNats();
  await using plant = new Plant({
    dist: DIST,
    serverFlags: ["--heartbeat", "300", "--one-port", "127.0.0.1:0"],
    env: {
      INSITU_LOG_LEVEL: "info",
      INSITU_AGENT_NATS_USER: nats.user,
      INSITU_AGENT_NATS_PASSWORD: nats.password,
    },
  });
  const natsUrl = nats.url.replace("//", `//${nats.user}:${nats.password}@`);
  const flags = ["--nats-url", natsUrl, "--secrets", join(plant.directory, "secrets")];
  const [first, second] = [
    await plant.startReplica("one", {}, flags),
    await plant.startReplica("two", {}, flags),
  ];
  Object.assign(plant, { url: first.url, token: first.token });
  await plant.apply(SITE, PIPELINE);
  await plant.startAgent("site", "a");
  const file = join(plant.directory, "sites/site/a/gateways.json");
  const both = [first, second].map(({ onePort }) => `127.0.0.1:${onePort}`).sort();
  await plant.until(async () => String(JSON.parse(readFileSync(file, "utf8")).sort()) === String(both));
  await plant.follow("hello");

  Object.assign(plant, { url: second.url, token: second.token });
  await kill(first.child);
  const { events } = await plant.follow("hello");
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
});
