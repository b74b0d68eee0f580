/** Sites whose network is not a plain one: behind an HTTP proxy, and without IPv4. With the programs as they ship. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { PROXY_PASSWORD, PROXY_USER, startConnectProxy } from "../support/connect-proxy.ts";
import { doctor } from "../support/doctor.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = {
  kind: "pipeline",
  name: "hello",
  steps: [{ id: "say", environment: "site", run: ["sh", "-c", "echo hello"] }],
};
const LIMIT_MS = 60_000;

async function newPlant(serverFlags: string[] = []): Promise<Plant> {
  const plant = new Plant({ dist: DIST, serverFlags, env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  await plant.apply(SITE, PIPELINE);
  return plant;
}

/** Where the agent was told to pull its work. */
function natsServers(plant: Plant, name: string): string[] {
  const text = readFileSync(join(plant.directory, "sites/site", name, "nats.json"), "utf8");
  return (JSON.parse(text) as { servers: string[] }).servers;
}

test("behind a proxy with a password an agent enrols, connects and runs a step, all through the proxy", {
  timeout: LIMIT_MS,
}, async () => {
  await using proxy = await startConnectProxy();
  await using plant = await newPlant();
  const config = (name: string, password: string): string => {
    const file = join(plant.directory, `${name}.json`);
    writeFileSync(join(plant.directory, `${name}.password`), `${password}\n`, { mode: 0o600 });
    const { url } = proxy;
    const keys = { proxy: { url, username: PROXY_USER, passwordFile: `${name}.password` } };
    writeFileSync(file, JSON.stringify(keys));
    return file;
  };

  const { token } = (await plant.call("POST", "/v1/join-tokens", { environment: "site" })) as {
    token: string;
  };
  const flags = ["--config", config("wrong", "guess"), "--join-token", token];
  const wrong = plant.spawnAgent("site", "wrong", flags);
  const code = await new Promise((resolve) => wrong.once("exit", resolve));
  expect(code).toBe(6);
  const said = plant.logOf("site-wrong");
  expect(said).toMatch(/does not accept the password of user "site-7".*wrong\.password/);
  expect(said).not.toContain("guess");
  expect(proxy.opened).toEqual([]);

  await plant.startAgent("site", "right", ["--config", config("right", PROXY_PASSWORD)]);
  const events = (await plant.follow("hello")).events;
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  const nats = natsServers(plant, "right")[0]!.replace(/^[a-z]+:\/\//, "");
  expect(new Set(proxy.opened)).toEqual(new Set([`127.0.0.1:${plant.gatewayPort}`, nats]));
});

test("with IPv6 addresses alone an agent enrols, connects and runs a step", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant(["--gateway-host", "::1", "--nats-host", "::1"]);
  await plant.startAgent("site", "six");
  const identity = readFileSync(join(plant.directory, "sites/site/six/identity/identity.json"), "utf8");
  expect((JSON.parse(identity) as { gateway: string }).gateway).toBe(`[::1]:${plant.gatewayPort}`);
  const events = (await plant.follow("hello")).events;
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(natsServers(plant, "six")[0]).toMatch(/\[::1\]:\d+$/);
});

test("the doctor finds nothing in the way before an agent enrols and while it runs, spends no token and disturbs nothing", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const { token } = (await plant.call("POST", "/v1/join-tokens", { environment: "site" })) as {
    token: string;
  };
  const before = await doctor(plant, "a", ["--join-token", token]);
  expect(before.levels).toMatchObject({ tls: "ok", clock: "ok", grpc: "ok", identity: "ok", nats: "skip" });
  expect(before).toMatchObject({ code: 0, ok: true });
  // The token has a single use, which is still there.
  plant.spawnAgent("site", "a", ["--join-token", token]);
  const connected = async () => {
    const { items } = (await plant.call("GET", "/v1/agents")) as {
      items: { id: string; connected: boolean }[];
    };
    return items.some(({ id, connected }) => id === "site/a" && connected);
  };
  await plant.until(connected);
  await plant.until(async () => natsServers(plant, "a").length > 0);
  const during = await doctor(plant, "a");
  const good = { name: "ok", proxy: "ok", tcp: "ok", tls: "ok", clock: "ok", nats: "ok", grpc: "ok" };
  expect(during.levels).toMatchObject({ ...good, identity: "ok" });
  expect(during.seen.grpc).toMatch(/accepts this agent's certificate/);
  expect(during.code).toBe(0);
  expect(plant.logOf("site-a")).not.toMatch(/connecting again/);
});
