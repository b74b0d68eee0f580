/** The queues in NATS are full, and get room again: nothing that was acknowledged is lost, and runs go on by themselves. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import type { ServerView } from "../../control-plane/api/schemas.ts";
import { connectNats } from "../../control-plane/store/jetstream.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { STREAMS, shardOf } from "../../shared/wire/subjects.ts";
import { startTestNats } from "../support/nats.ts";
import { Plant, type Replica } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 90_000;
const DOCUMENTS = [
  { kind: "environment", name: "site", jurisdiction: "DE" },
  {
    kind: "pipeline",
    name: "two",
    steps: [
      { id: "one", environment: "site", uses: "noop" },
      { id: "other", environment: "site", needs: ["one"], uses: "noop" },
    ],
  },
];

async function world(replicas: number) {
  const nats = await startTestNats();
  const { user, password } = nats;
  const plant = new Plant({
    dist: DIST,
    env: { INSITU_AGENT_NATS_USER: user, INSITU_AGENT_NATS_PASSWORD: password, INSITU_LOG_LEVEL: "warn" },
  });
  const natsUrl = nats.url.replace("//", `//${user}:${password}@`);
  const flags = ["--nats-url", natsUrl, "--secrets", join(plant.directory, "secrets")];
  const started: Replica[] = [];
  for (let number = 1; number <= replicas; number++)
    started.push(await plant.startReplica(`replica-${number}`, {}, flags));
  const use = (index: number): void => {
    plant.url = started[index]!.url;
    plant.token = started[index]!.token;
  };
  use(0);
  const connection = await connectNats({ servers: [nats.url], user, password, name: "test" });
  const { streams } = await connection.jetstreamManager();
  return {
    plant,
    use,
    servers: async () => ((await plant.call("GET", "/v1/servers")) as { items: ServerView[] }).items,
    /** -1: none. As an operator sets it with the `nats` command line. */
    limit: async (name: string, maxBytes: number) =>
      void (await streams.update(name, { max_bytes: maxBytes })),
    messagesOf: async (name: string) => (await streams.info(name)).state.messages,
    async [Symbol.asyncDispose]() {
      await connection.close();
      await plant[Symbol.asyncDispose]();
      await nats.stop();
    },
  };
}

const countOf = (events: readonly RunEvent[], kind: RunEvent["kind"]): number =>
  events.filter((event) => event.kind === kind).length;

test("with WORK full a run waits for its offers to fit, and goes on by itself", {
  timeout: LIMIT_MS,
}, async () => {
  await using here = await world(1);
  const { plant, limit, messagesOf } = here;
  await plant.apply(...DOCUMENTS);
  await plant.startAgent("site", "a");
  await limit(STREAMS.work, 1);
  const { id } = await plant.start("two");
  await plant.until(async () => plant.logOf("replica-1").includes("offer not published yet"));
  expect(plant.logOf("replica-1")).toContain("the stream is full (maximum bytes exceeded)");
  expect(await messagesOf(STREAMS.work)).toBe(0);
  await limit(STREAMS.work, -1);
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(countOf(events, "attempt.offered")).toBe(2);
  expect(countOf(events, "attempt.lost")).toBe(0);
});

test("with INBOX full an agent keeps its reports for the runs of another replica, and sends them later", {
  timeout: LIMIT_MS,
}, async () => {
  await using here = await world(2);
  const { plant, limit, servers, messagesOf } = here;
  await plant.until(async () => (await servers()).every(({ shards }) => shards.length === 32));
  await plant.apply(...DOCUMENTS);
  await plant.startAgent("site", "a");
  await limit(STREAMS.inbox, 1);
  // A replica gives its runs to its own shards. Wherever the agent turns to, some are decided elsewhere.
  const ids: string[] = [];
  for (let i = 0; i < 4; i++) {
    here.use(i % 2);
    ids.push((await plant.start("two")).id);
  }
  const listed = await servers();
  const owners = ids.map((id) => listed.find(({ shards }) => shards.includes(shardOf(id)))!.id);
  expect(new Set(owners).size).toBe(2);
  const log = () => plant.logOf("replica-1") + plant.logOf("replica-2");
  await plant.until(async () => log().includes("the stream is full (maximum bytes exceeded)"));
  expect(await messagesOf(STREAMS.inbox)).toBe(0);
  await limit(STREAMS.inbox, -1);
  for (const id of ids) {
    const events = await plant.events(id, () => false);
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    expect(countOf(events, "attempt.finished")).toBe(2);
    expect(countOf(events, "attempt.lost")).toBe(0);
  }
  await plant.until(async () => (await messagesOf(STREAMS.inbox)) === 0);
});
