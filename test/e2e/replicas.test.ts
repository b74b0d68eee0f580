/** Several replicas over one NATS: they share the work, and step in for one that has gone. */
import type { ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import type { ServerView } from "../../control-plane/api/schemas.ts";
import { startTestNats } from "../support/nats.ts";
import { Plant, type Replica } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const LIMIT_MS = 90_000;

async function kill(child: ChildProcess): Promise<void> {
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await gone;
}

async function cluster(count: number) {
  const nats = await startTestNats();
  const plant = new Plant({
    dist: DIST,
    serverFlags: ["--heartbeat", "300", "--lease-ttl", "20000"],
    env: { INSITU_AGENT_NATS_USER: nats.user, INSITU_AGENT_NATS_PASSWORD: nats.password },
  });
  const natsUrl = nats.url.replace("//", `//${nats.user}:${nats.password}@`);
  const env = ["--nats-url", natsUrl, "--secrets", join(plant.directory, "secrets")];
  const replicas: Replica[] = [];
  const add = async (): Promise<Replica> => {
    const replica = await plant.startReplica(`replica-${replicas.length + 1}`, {}, env);
    replicas.push(replica);
    return replica;
  };
  for (let i = 0; i < count; i++) await add();
  const use = (replica: Replica): void => {
    plant.url = replica.url;
    plant.token = replica.token;
  };
  use(replicas[0]!);
  const servers = async (): Promise<ServerView[]> =>
    ((await plant.call("GET", "/v1/servers")) as { items: ServerView[] }).items;
  return {
    plant,
    natsUrl,
    replicas,
    add,
    use,
    servers,
    async [Symbol.asyncDispose]() {
      await plant[Symbol.asyncDispose]();
      await nats.stop();
    },
  };
}

const sizes = (servers: ServerView[]): number[] =>
  servers.map(({ shards }) => shards.length).sort((a, b) => a - b);

/** A step that waits until its gate is opened. */
function gated(plant: Plant) {
  const gates = join(plant.directory, "gates");
  mkdirSync(gates);
  const document = {
    kind: "pipeline",
    name: "gated",
    steps: [
      {
        id: "wait",
        environment: "site",
        run: ["sh", "-c", `while [ ! -e ${gates}/$INSITU_RUN_ID ]; do sleep 0.05; done; echo done`],
      },
      { id: "after", environment: "site", needs: ["wait"], uses: "noop" },
    ],
  };
  const open = (runId: string): void => writeFileSync(join(gates, runId), "");
  return { document, open };
}

test("three replicas share the shards; runs of a killed one go on elsewhere, and its agent moves by itself", {
  timeout: LIMIT_MS,
}, async () => {
  await using here = await cluster(3);
  const { plant, replicas, servers } = here;
  await plant.until(async () => JSON.stringify(sizes(await servers())) === "[21,21,22]");
  const { document, open } = gated(plant);
  await plant.apply(SITE, document);
  // The agent joins over the first replica, which is the one to die.
  const agent = await plant.startAgent("site", "a", ["--slots", "16"]);
  const ids: string[] = [];
  for (let i = 0; i < 9; i++) {
    here.use(replicas[i % 3]!);
    ids.push((await plant.start("gated")).id);
  }
  for (const id of ids)
    await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.started"));
  here.use(replicas[1]!);
  await plant.until(async () => {
    const agent = (await plant.call("GET", "/v1/agents/site/a")) as { connected: boolean; leases: unknown[] };
    return agent.connected && agent.leases.length === 9;
  });
  await kill(replicas[0]!.child);
  await plant.until(async () => {
    const alive = (await servers()).filter((server) => server.alive);
    return JSON.stringify(sizes(alive)) === "[32,32]";
  });
  for (const id of ids) open(id);
  const takenOver = new Set<string>();
  for (const id of ids) {
    const events = await plant.events(id, () => false);
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    expect(events.filter(({ kind }) => kind === "attempt.offered")).toHaveLength(2);
    if (events.some(({ kind }) => kind === "run.taken-over")) takenOver.add(id);
  }
  expect(takenOver.size).toBeGreaterThan(0);
  expect(agent.exitCode).toBeNull();
  expect(existsSync(join(plant.directory, "sites/site/a/gateways.json"))).toBe(true);
});

test("a replica that joins is given its share, and one that is stopped hands over", {
  timeout: LIMIT_MS,
}, async () => {
  await using here = await cluster(1);
  const { plant, replicas, servers, add } = here;
  expect(sizes(await servers())).toEqual([64]);
  const { document, open } = gated(plant);
  await plant.apply(SITE, document);
  await plant.startAgent("site", "a", ["--slots", "16"]);
  const ids: string[] = [];
  for (let i = 0; i < 6; i++) ids.push((await plant.start("gated")).id);
  await add();
  await plant.until(async () => JSON.stringify(sizes(await servers())) === "[32,32]");
  here.use(replicas[1]!);
  await plant.call("POST", `/v1/runs/${ids[0]}/cancel`, { reason: "from the other replica" });
  for (const id of ids) open(id);
  const gone = new Promise((resolve) => replicas[0]!.child.once("exit", resolve));
  replicas[0]!.child.kill("SIGTERM");
  await gone;
  await plant.until(
    async () => JSON.stringify(sizes((await servers()).filter(({ alive }) => alive))) === "[64]",
  );
  for (const id of ids.slice(1)) {
    const events = await plant.events(id, () => false);
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  }
  expect((await plant.events(ids[0]!, () => false)).at(-1)).toMatchObject({ status: "cancelled" });
});

test("a replica with other secrets is refused, and says what to do", { timeout: LIMIT_MS }, async () => {
  await using here = await cluster(1);
  const { plant, natsUrl } = here;
  const stranger = plant.startReplica("stranger", {}, ["--nats-url", natsUrl]);
  await expect(stranger).rejects.toThrow(/another CA or another key.*--secrets/);
});
