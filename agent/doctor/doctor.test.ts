/** Against real servers that are not what they should be. A whole control plane is in test/e2e/site-network.test.ts. */
import { once } from "node:events";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { type Clock, systemClock } from "../../shared/system.ts";
import { encodeJoinToken } from "../../shared/wire/join-token.ts";
import { PROXY_USER, startConnectProxy } from "../../test/support/connect-proxy.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { type AgentConfig, loadConfig } from "../config.ts";
import { type Identity, saveIdentity } from "../enrolment/identity.ts";
import { Network } from "../network/network.ts";
import type { BoxHost } from "../sandbox/box-plan.ts";
import { SandboxConfig } from "../sandbox/sandbox-config.ts";
import { type Authority, createAuthority, TestGateway } from "../uplink/gateway.fixture.ts";
import { keepAccess } from "../uplink/nats-access.ts";
import { examine } from "./doctor.ts";
import { checkSandbox } from "./host-checks.ts";
import { asJson, asText, type Check, exitCodeOf, type Finding } from "./report.ts";

let authority: Authority;
let other: Authority;
let nats: TestNats;
let gateway: TestGateway;
let directory: TestDirectory;

beforeAll(async () => {
  authority = await createAuthority();
  other = await createAuthority();
  nats = await startTestNats();
});
afterAll(() => nats?.stop());
beforeEach(async () => {
  directory = testDirectory();
  gateway = new TestGateway(authority);
  await gateway.start();
});
afterEach(() => {
  gateway?.stop();
  directory?.[Symbol.dispose]();
});

const enrolled = (change: Partial<Identity> = {}, by = authority): void =>
  saveIdentity(directory.path, by.identity(gateway.port, change));

const access = (change: { server?: string; password?: string } = {}): void =>
  keepAccess(join(directory.path, "nats.json"), {
    servers: [change.server ?? nats.url],
    user: nats.user,
    password: change.password ?? nats.password,
    inboxPrefix: "_INBOX.a1",
    stream: "WORK",
    consumer: "env-dream",
    caPem: "",
    userJwt: "",
    throughGateway: false,
  });

interface Diagnosis {
  of: Record<Check, Finding>;
  findings: Finding[];
  gateway: string;
}

async function diagnose(keys: object = {}, clock: Clock = systemClock): Promise<Diagnosis> {
  const file = join(directory.path, "agent.json");
  writeFileSync(file, JSON.stringify({ stateDir: ".", name: "a1", ...keys }));
  const config = await loadConfig({ config: file }, {});
  await using network = new Network({ clock, proxy: config.proxy, siteCaPem: config.siteCaPem });
  const probe = async () => ({ can: false, reason: "bubblewrap is not installed" }) as const;
  const examination = await examine(config, { network, clock, probe });
  const of = Object.fromEntries(examination.findings.map((one) => [one.check, one])) as Record<
    Check,
    Finding
  >;
  return { ...examination, of };
}

test("with all well nothing is in the way, and nothing is left behind", async () => {
  enrolled();
  access();
  const { of, findings } = await diagnose();
  for (const check of ["name", "proxy", "tcp", "tls", "clock", "nats", "grpc"] as const)
    expect(of[check]).toMatchObject({ level: "ok" });
  expect(of.identity).toMatchObject({ level: "ok", seen: expect.stringMatching(/^dream\/a1, until 2/) });
  expect(of.disk.seen).toMatch(/MiB free, a sync takes [\d.]+ ms/);
  expect(of.sandbox).toMatchObject({
    level: "warn",
    seen: expect.stringContaining("bubblewrap is not installed"),
  });
  expect(findings.flatMap(({ ask }) => ask ?? [])).toEqual([]);
  expect(exitCodeOf(findings)).toBe(0);
  expect(readdirSync(directory.path).filter((name) => name.startsWith(".doctor-"))).toEqual([]);
});

test("a certificate of another authority is told with its issuer and both pins, and its exemption is asked for", async () => {
  enrolled({}, other);
  const { of, findings } = await diagnose();
  expect(of.tls).toMatchObject({
    level: "fail",
    seen: expect.stringMatching(
      /issued by "CN=test authority".*pin sha256:[0-9a-f]{64}; got sha256:[0-9a-f]{64}/,
    ),
    ask: expect.stringMatching(
      /exempt this connection from TLS inspection[\s\S]*issued by: CN=test authority/,
    ),
  });
  expect(of.grpc.level).toBe("skip");
  expect(exitCodeOf(findings)).toBe(1);
});

test("a join token whose pin nobody shows is told so, and is not used", async () => {
  const pin = `sha256:${"0".repeat(64)}`;
  const joinToken = encodeJoinToken({
    environment: "dream",
    gateway: `localhost:${gateway.port}`,
    caPin: pin,
    secret: "the-secret-of-this-token",
  });
  const { of } = await diagnose({ joinToken });
  expect(of.tls).toMatchObject({ level: "fail", seen: expect.stringContaining(`pin ${pin}`) });
  expect(of.identity.level).toBe("ok");
  expect(gateway.hellos).toEqual([]);
});

test("a closed port is a rule of the firewall to ask for, with source, destination, port and protocol", async () => {
  enrolled();
  gateway.stop();
  const { of } = await diagnose();
  expect(of.tcp).toMatchObject({ level: "fail", seen: expect.stringMatching(/ECONNREFUSED/) });
  expect(of.tcp.ask).toMatch(/Source: (127\.0\.0\.1|::1) \(/);
  expect(of.tcp.ask).toMatch(/Destination: localhost/);
  expect(of.tcp.ask).toContain(`Port: ${gateway.port}/tcp, outgoing`);
  expect(of.tcp.ask).toMatch(/TLS.*client certificates, HTTP\/2/);
  expect(of.tls.level).toBe("skip");
});

test("a name that is not known is asked of the DNS", async () => {
  enrolled({ gateway: "gateway.invalid:7443" });
  const { of } = await diagnose();
  expect(of.name).toMatchObject({
    level: "fail",
    seen: expect.stringMatching(/gateway\.invalid is not known here \((ENOTFOUND|EAI_AGAIN)\)/),
    ask: expect.stringMatching(/resolve the name gateway\.invalid/),
  });
  expect(of.tcp.level).toBe("skip");
});

test("a NATS that is not there fails with its own rule; one that refuses the access is only noted", async () => {
  enrolled();
  access({ server: "nats://127.0.0.1:1" });
  const down = await diagnose();
  expect(down.of.nats).toMatchObject({
    level: "fail",
    seen: expect.stringMatching(/nats:\/\/127\.0\.0\.1:1: .*(ECONNREFUSED|CONNECTION_REFUSED)/),
    ask: expect.stringMatching(/Port: 1\/tcp, outgoing\nProtocol: .*NATS/),
  });
  expect(down.of.grpc.level).toBe("ok");
  access({ password: "old" });
  expect((await diagnose()).of.nats).toMatchObject({
    level: "warn",
    seen: expect.stringMatching(/refuses the access/),
  });
});

test("an identity that the control plane does not accept any more is told in its words", async () => {
  enrolled();
  gateway.refusal = "the agent dream/a1 is not enrolled any more";
  const { of, findings } = await diagnose();
  expect(of.grpc.level).toBe("ok");
  expect(of.clock.level).toBe("ok"); // by the date of the refusal
  expect(of.identity).toMatchObject({ level: "fail", seen: expect.stringContaining(gateway.refusal) });
  expect(findings.filter(({ check }) => check === "identity")).toHaveLength(1);
});

test.each([
  [2, "ok"],
  [-20, "warn"],
  [120, "fail"],
])("a clock that is %i s off is %s", async (offS, level) => {
  enrolled();
  const clock = { ...systemClock, wallMs: () => systemClock.wallMs() + offS * 1_000 };
  const { of } = await diagnose({}, clock);
  expect(of.clock).toMatchObject({
    level,
    seen: expect.stringContaining(`${Math.abs(offS)} s ${offS > 0 ? "ahead of" : "behind"}`),
  });
  expect(of.clock.ask !== undefined).toBe(level !== "ok");
});

test("a proxy that does not accept the password is told, and its account asked for", async () => {
  await using proxy = await startConnectProxy();
  writeFileSync(join(directory.path, "password"), "guess");
  enrolled();
  const { of } = await diagnose({
    proxy: { url: proxy.url, username: PROXY_USER, passwordFile: "password" },
  });
  expect(of.proxy).toMatchObject({
    level: "fail",
    seen: expect.stringMatching(/does not accept the password of user "site-7"/),
    ask: expect.stringMatching(/check the account "site-7" on the proxy 127\.0\.0\.1:/),
  });
  expect(of.tls.level).toBe("skip");
});

test("what speaks TLS and no HTTP/2, and what speaks no TLS, are told apart", async () => {
  const { server } = authority;
  const chatty = createTlsServer({ key: server.keyPem, cert: server.certificatePem }, (socket) =>
    socket.on("error", () => undefined).end("HTTP/1.1 400 Bad Request\r\n\r\n"),
  );
  const mute = createServer((socket) => socket.on("error", () => undefined).end("SSH-2.0-x\r\n"));
  for (const one of [chatty, mute]) await once(one.listen(0, "localhost"), "listening");
  const portOf = (one: { address(): unknown }): number => (one.address() as AddressInfo).port;
  enrolled({ gateway: `localhost:${portOf(chatty)}` });
  expect((await diagnose()).of.grpc).toMatchObject({
    level: "fail",
    ask: expect.stringMatching(/HTTP\/2 inside it/),
  });
  enrolled({ gateway: `localhost:${portOf(mute)}` });
  expect((await diagnose()).of.tls).toMatchObject({
    level: "fail",
    seen: expect.stringMatching(/does not complete TLS/),
  });
  for (const one of [chatty, mute]) one.close();
});

test("an identity that has ended, a dataset that is not there and a full disk are the host's own matter", async () => {
  mkdirSync(join(directory.path, "data"));
  const datasets = { here: "data", gone: "nowhere.parquet", far: "s3://bucket/key" };
  const { of } = await diagnose({
    datasets,
    diskFreeMinBytes: Number.MAX_SAFE_INTEGER,
    sandbox: { mode: "required" },
  });
  expect(of.datasets).toMatchObject({
    level: "fail",
    seen: expect.stringMatching(/^gone: .*nowhere\.parquet is not there$/),
  });
  expect(of.disk).toMatchObject({ level: "fail", seen: expect.stringMatching(/no work is taken/) });
  expect(of.sandbox.level).toBe("fail");
  expect(of.identity).toMatchObject({ level: "fail", seen: expect.stringMatching(/join-token create/) });
  expect(of.tcp).toMatchObject({ level: "skip" });
  enrolled();
  const later = { ...systemClock, wallMs: () => systemClock.wallMs() + 2 * 3_600_000 };
  expect((await diagnose({}, later)).of.identity).toMatchObject({
    level: "fail",
    seen: expect.stringMatching(/ended at/),
  });
});

test("the report is text for people, with each request once, and JSON for programs", () => {
  const findings: Finding[] = [
    { check: "tcp", level: "fail", seen: "no answer", ask: "Please open\nPort: 1" },
    { check: "tls", level: "skip", seen: "later", ask: "Please open\nPort: 1" },
  ];
  expect(asText("gw:1", findings)).toBe(
    "Gateway gw:1\n\nfail  tcp       no answer\nskip  tls       later\n\nFor the network team:\n\n  Please open\n  Port: 1\n\nIn the way: tcp.\n",
  );
  expect(JSON.parse(asJson("gw:1", findings))).toEqual({ gateway: "gw:1", ok: false, checks: findings });
  expect(asText("", [])).toContain("Nothing is in the way.");
  expect(asText("", [{ check: "tls", level: "fail", seen: "for \u001b[2J\u009b1m" }])).toContain(
    "for ?[2J?1m",
  );
});

test("a host that boxes steps and cannot let them out is told where the site wants them let out", async () => {
  const host = { version: "0.8.0" } as BoxHost;
  const probe = async () => ({ can: true, host, noWayOut: "nsenter is not installed" }) as const;
  const configOf = (egress: string[]) => ({ sandbox: SandboxConfig.parse({ egress }) }) as AgentConfig;
  expect(await checkSandbox(configOf([]), probe)).toMatchObject({ level: "ok" });
  expect(await checkSandbox(configOf(["db.test:5432"]), probe)).toMatchObject({
    level: "warn",
    seen: expect.stringMatching(/cannot be let out .*nsenter is not installed/),
  });
});
