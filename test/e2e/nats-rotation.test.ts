/** `insitu nats rotate` as shipped, on nats-servers as shipped, while runs go on. */
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { connect, jwtAuthenticator } from "nats";
import { expect, test } from "vitest";
import { loadNatsOperator, type NatsOperator } from "../../control-plane/access/nats-operator.ts";
import { loadOrCreatePki } from "../../control-plane/access/pki.ts";
import { connectNats } from "../../control-plane/store/jetstream.ts";
import { pushAccount } from "../../control-plane/store/nats-claims-push.ts";
import { systemClock } from "../../shared/system.ts";
import { tlsOf } from "../../shared/wire/nats-tls.ts";
import { makeNkey } from "../../shared/wire/nkey.ts";
import { joinRoute, type OwnNats, renewNodes, startOwnNats } from "../support/own-nats.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 240_000;
const POLL_MS = 200;
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };

interface Status {
  rotations: { what: string; state: string; keys: number[]; signs: number }[];
  replicas: { connected: number; current: number };
  behind: string[];
  holders: string[];
}

/** A step that ends when the file is there, and one after it. */
const waiting = (gate: string) => ({
  kind: "pipeline",
  name: "waiting",
  steps: [
    { id: "long", environment: "site", run: ["sh", "-c", `until [ -e ${gate} ]; do sleep 0.1; done`] },
    { id: "after", environment: "site", needs: ["long"], run: ["true"] },
  ],
});

interface Place {
  /** Flags that name the server. */
  place: string[];
  caFile?: string;
}

const placeOf = ({ secrets, natsUrl, caFile }: OwnNats): Place => ({
  place: ["--secrets", secrets, "--nats-url", natsUrl],
  caFile,
});

function rotate(
  { place, caFile }: Place,
  ...flags: string[]
): { code: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(DIST, "insitu.js"), "nats", "rotate", "-o", "json", ...place, ...flags],
    {
      encoding: "utf8",
      env: { ...process.env, ...(caFile === undefined ? {} : { INSITU_NATS_CA_FILE: caFile }) },
    },
  );
  return { code: status, stdout, stderr };
}

function made(place: Place, ...flags: string[]): Status {
  const { code, stdout, stderr } = rotate(place, ...flags);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return JSON.parse(stdout) as Status;
}

type There = Pick<OwnNats, "servers" | "caPem">;

/** Whoever had the secrets before the rotation: keys, credentials and all. */
async function thiefTries(nats: There, stolen: NatsOperator): Promise<Record<string, string>> {
  const tries: Record<string, () => Promise<unknown>> = {
    streams: () => connectAs(nats, stolen.controlPlaneUser()),
    accounts: () => connectAs(nats, stolen.claimsUser()),
    agent: () => connectAs(nats, agentOf(stolen, "site")),
  };
  const result: Record<string, string> = {};
  for (const [what, attempt] of Object.entries(tries)) {
    result[what] = await attempt().then(
      () => "let in",
      (err: { code?: string }) => err.code ?? String(err),
    );
  }
  return result;
}

function agentOf(operator: NatsOperator, environment: string): { jwt: string; seed: string } {
  const key = makeNkey("user");
  const about = { environment, name: "thief", userKey: key.publicKey };
  const jwt = operator.agentJwt({ ...about, issuedAtS: nowS(), expiresAtS: nowS() + 3_600 });
  return { jwt, seed: key.seed };
}

function nowS(): number {
  return Math.floor(systemClock.wallMs() / 1_000);
}

async function connectAs(nats: There, { jwt, seed }: { jwt: string; seed: string }): Promise<void> {
  for (const server of nats.servers) {
    const connection = await connect({
      servers: [server],
      reconnect: false,
      authenticator: jwtAuthenticator(jwt, Buffer.from(seed)),
      ...tlsOf([server], nats.caPem),
    });
    await connection.close();
  }
}

test.each([1, 3] as const)(
  "on %i nodes every key is replaced while a step runs, and what was stolen before opens nothing",
  {
    timeout: LIMIT_MS,
  },
  async (size) => {
    await using nats = await startOwnNats(size);
    const place = placeOf(nats);
    const stolen = (await loadNatsOperator(nats.secrets))!;
    await using plant = new Plant({
      dist: DIST,
      serverFlags: ["--secrets", nats.secrets, "--nats-url", nats.natsUrl, "--stream-replicas", String(size)],
      env: { INSITU_NATS_CA_FILE: nats.caFile },
    });
    expect(rotate(place, "--what", "accounts").stderr).toMatch(/no replica is connected/);
    await plant.startServer();
    const gate = join(plant.directory, "gate");
    await plant.apply(SITE, waiting(gate));
    await plant.startAgent("site", "a");
    const { id } = await plant.start("waiting");
    await plant.until(async () => (await plant.run(id)).steps.some(({ status }) => status === "running"));
    expect(await thiefTries(nats, stolen)).toEqual({
      streams: "let in",
      accounts: "let in",
      agent: "let in",
    });

    expect(rotate(place, "--what", "accounts", "--activate").stderr).toMatch(
      /no rotation of accounts has begun/,
    );
    expect(made(place, "--what", "accounts").rotations[0]).toMatchObject({
      state: "added",
      keys: [1, 2],
      signs: 1,
    });
    // Again, as after a crash: it is made already.
    expect(made(place, "--what", "accounts").rotations[0]).toMatchObject({
      state: "added",
      keys: [1, 2],
      signs: 1,
    });
    expect(rotate(place, "--what", "accounts", "--retire").stderr).toMatch(/does not sign yet/);
    expect(made(place, "--what", "accounts", "--activate").rotations[0]).toMatchObject({
      state: "activated",
      signs: 2,
    });
    // The agent is given what the new key signs while it is connected.
    await plant.until(async () => made(place).holders.length === 0);
    expect(made(place, "--what", "accounts", "--retire").rotations[0]).toMatchObject({
      state: "steady",
      keys: [2],
    });

    expect(made(place, "--what", "operator")).toMatchObject({ behind: nats.nodes.map(({ name }) => name) });
    expect(rotate(place, "--what", "operator", "--activate").stderr).toMatch(
      /another operator than these keys/,
    );
    await renewNodes(nats, "second");
    await plant.until(async () => rotate(place, "--what", "operator", "--activate").code === 0);
    await plant.until(async () => rotate(place, "--what", "operator", "--retire").code === 0);
    await renewNodes(nats, "third");
    await plant.until(async () => {
      const { code, stdout } = rotate(place);
      return code === 0 && (JSON.parse(stdout) as Status).behind.length === 0;
    });

    expect(await thiefTries(nats, stolen)).toEqual({
      streams: "AUTHORIZATION_VIOLATION",
      accounts: "AUTHORIZATION_VIOLATION",
      agent: "AUTHORIZATION_VIOLATION",
    });
    // Also whoever may tell the servers of accounts today has none believed that yesterday's operator has signed.
    const operator = (await loadNatsOperator(nats.secrets))!;
    const system = await connectNats({
      servers: nats.servers,
      caPem: nats.caPem,
      credentials: operator.claimsUser(),
      name: "test",
    });
    await pushAccount(system, stolen.environmentJwt("other", {}, nowS()));
    await system.close();
    await expect(connectAs(nats, agentOf(stolen, "other"))).rejects.toMatchObject({
      code: "AUTHORIZATION_VIOLATION",
    });
    writeFileSync(gate, "");
    await plant.until(async () => (await plant.run(id)).status === "succeeded");
    const events = await plant.events(id, () => false);
    expect(events.filter(({ kind }) => kind === "attempt.offered")).toHaveLength(2);
  },
);

test("on the nats-server that we start too: the server is restarted where others restart nodes", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  const data = join(plant.directory, "server");
  const place = { place: ["--data", data] };
  const secrets = join(data, "secrets");
  await plant.apply(SITE, { ...waiting("/"), steps: [{ id: "one", environment: "site", run: ["true"] }] });
  const agent = await plant.startAgent("site", "a");
  const restart = async (): Promise<void> => {
    const gone = once(plant.server!, "exit");
    plant.server!.kill("SIGTERM");
    await gone;
    await plant.startServer({ gatewayPort: plant.gatewayPort });
  };
  const stolen = (await loadNatsOperator(secrets))!;
  for (const what of ["accounts", "operator"]) {
    made(place, "--what", what);
    if (what === "operator") {
      expect(rotate(place, "--what", what, "--activate").stderr).toMatch(/another operator than these keys/);
      await restart();
    }
    made(place, "--what", what, "--activate");
    await plant.until(async () => rotate(place, "--what", what, "--retire").code === 0);
  }
  await restart();
  expect(made(place)).toMatchObject({ behind: [], replicas: { connected: 1, current: 1 } });
  const { port } = JSON.parse(readFileSync(join(data, "nats", "nats.conf.json"), "utf8")) as { port: number };
  const there = { servers: [`nats://127.0.0.1:${port}`], caPem: "" };
  expect(await thiefTries(there, stolen)).toEqual({
    streams: "AUTHORIZATION_VIOLATION",
    accounts: "AUTHORIZATION_VIOLATION",
    agent: "AUTHORIZATION_VIOLATION",
  });
  const { events } = await plant.follow("waiting");
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(agent.exitCode).toBeNull();
});

test("the authority between nodes is replaced one node after the other, and the former one joins no more", {
  timeout: LIMIT_MS,
}, async () => {
  await using nats = await startOwnNats(3);
  const place = placeOf(nats);
  const former = await loadOrCreatePki({
    clock: systemClock,
    trustDomain: "insitu.local",
    directory: join(nats.secrets, "nats-routes"),
  });
  const thief = await former.issuePeerCertificate({ dns: [], ips: ["127.0.0.1"] });
  const operator = (await loadNatsOperator(nats.secrets))!;
  const { servers, caPem } = nats;
  const connection = await connectNats({
    servers,
    caPem,
    credentials: operator.controlPlaneUser(),
    name: "test",
  });
  const manager = await connection.jetstreamManager({ checkAPI: false });
  await persistent(() => manager.streams.add({ name: "KEPT", subjects: ["kept"], num_replicas: 3 }));
  let [sent, last] = [0, 0];
  /** As many messages as there are nodes go in, and two of the others have them too. */
  const together = async (): Promise<void> => {
    for (const node of nats.nodes) {
      sent += 1;
      const options = { msgID: `${sent}` };
      const { seq } = await persistent(() => connection.jetstream().publish("kept", node.name, options));
      // One whose answer was lost may be there twice: a node that has just started has forgotten its id.
      expect(seq).toBeGreaterThan(last);
      last = seq;
    }
    await persistent(async () => {
      const { cluster } = await manager.streams.info("KEPT");
      expect(cluster?.replicas?.map(({ current }) => current)).toEqual([true, true]);
    });
  };
  await together();
  const tls = (...flags: string[]): ReturnType<typeof rotate> => rotate(place, "--what", "tls", ...flags);
  const state = (...flags: string[]): unknown => JSON.parse(tls(...flags).stdout);

  expect(tls("--activate").stderr).toMatch(/no rotation has begun/);
  expect(state()).toMatchObject({ state: "added", authorities: [1, 2], signs: 1 });
  expect(tls("--activate").stderr).toMatch(/does not trust the new authority yet/);
  await renewNodes(nats, "second");
  await together();
  expect(state("--activate")).toMatchObject({ state: "activated", authorities: [1, 2], signs: 2 });
  expect(tls("--retire").stderr).toMatch(/shows no certificate of the new authority yet/);
  await renewNodes(nats, "third");
  await together();
  expect(await joinRoute(nats, thief)).toBe("INFO");
  expect(state("--retire")).toMatchObject({ state: "steady", authorities: [2], signs: 2 });
  expect(state("--retire")).toMatchObject({ state: "steady", authorities: [2] });
  await renewNodes(nats, "fourth");
  await together();
  expect(await joinRoute(nats, thief)).toBe("refused");
  expect(existsSync(join(nats.secrets, "nats-routes"))).toBe(false);
  await connection.close();
});

/** While a cluster chooses leaders, it answers nobody; the test's time-out is the limit. */
async function persistent<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work();
    } catch {
      await systemClock.sleep(POLL_MS);
    }
  }
}
