/** Records histories with the programs as they ship: `node scripts/record-histories.mjs`. */
import { type ChildProcess, execFile } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import type { RunEvent, RunEventBatch } from "../../shared/engine/events.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import { Plant } from "../support/plant.ts";
import { endOf, eventsOf, statesOf, writeHistory } from "./history.ts";

const LEASE_MS = 1_000;
const run = promisify(execFile);

/** What the recordings are made of: a step that waits for its gate, on a site with one agent or two. */
interface Stage {
  plant: Plant;
  agent: ChildProcess;
  dist: string;
  wait: Record<string, unknown>;
  open(): void;
}

interface Recording {
  about: string;
  pipeline(stage: Stage): Record<string, unknown>[];
  /** From the start of the run until nothing holds it up any more. */
  play(stage: Stage, runId: string): Promise<void>;
}

const has = (kind: RunEvent["kind"], step?: string) => (events: RunEvent[]) =>
  events.some((event) => event.kind === kind && (!step || ("step" in event && event.step === step)));

const resolveAs = (stage: Stage, runId: string, as: string) =>
  stage.plant.call("POST", `/v1/runs/${runId}/steps/wait/resolve`, {
    as,
    reason: "looked at the site",
    evenIfItRan: true,
  });

async function kill(child: ChildProcess): Promise<void> {
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

const RECORDINGS: Record<string, Recording> = {
  retried: {
    about: "a step fails once and then succeeds, another fails for good, and what needs that is skipped",
    pipeline: ({ plant }) => [
      {
        id: "flaky",
        environment: "site",
        retries: 1,
        env: { MARK: join(plant.directory, "mark") },
        run: ["sh", "-c", 'test -e "$MARK" || { touch "$MARK"; exit 3; }'],
      },
      { id: "bad", environment: "site", needs: ["flaky"], run: ["false"] },
      { id: "after", environment: "site", needs: ["bad"], run: ["true"] },
    ],
    play: async () => {},
  },
  cancelled: {
    about: "a run is cancelled while its first step runs",
    pipeline: ({ wait }) => [wait, { id: "after", environment: "site", needs: ["wait"], run: ["true"] }],
    play: async ({ plant }, runId) => {
      await plant.events(runId, has("attempt.started"));
      await plant.call("POST", `/v1/runs/${runId}/cancel`, { reason: "no longer wanted" });
    },
  },
  "once-resolved": {
    about: "the agent of a once step is lost, and an operator says that the step has succeeded",
    pipeline: ({ wait }) => [{ ...wait, once: true }],
    play: async (stage, runId) => {
      await stage.plant.events(runId, has("attempt.started"));
      await kill(stage.agent);
      await stage.plant.events(runId, has("attempt.disconnected"));
      await resolveAs(stage, runId, "succeeded");
    },
  },
  kept: {
    about:
      "an attempt is kept over a pause of its agent and over a new owner, and ends under its first epoch",
    pipeline: ({ wait }) => [{ ...wait, disconnect: { keep: "10m", then: "fail" } }],
    play: async ({ plant, agent, open }, runId) => {
      await plant.events(runId, has("attempt.started"));
      agent.kill("SIGSTOP");
      await plant.events(runId, has("attempt.disconnected"));
      const { gatewayPort, server } = plant;
      await kill(server!);
      await plant.startServer({ gatewayPort });
      await plant.events(runId, has("run.taken-over"));
      agent.kill("SIGCONT");
      await plant.events(runId, has("attempt.reconnected"));
      open();
    },
  },
  fenced: {
    about:
      "an agent pauses past its lease, another one gets the attempt, and the first one's outcome is evidence",
    pipeline: ({ wait }) => [wait],
    play: async ({ plant, agent, open }, runId) => {
      await plant.events(runId, has("attempt.started"));
      await plant.startAgent("site", "b");
      agent.kill("SIGSTOP");
      await plant.events(
        runId,
        (events) => events.filter((event) => event.kind === "attempt.started").length > 1,
      );
      agent.kill("SIGCONT");
      await plant.events(runId, has("attempt.fenced"));
      open();
    },
  },
  together: {
    about: "steps that start and end together, whose reports go up in batches under one signature",
    pipeline: () =>
      Array.from({ length: 20 }, (_, i) => ({ id: `s${i}`, environment: "site", uses: "noop" })),
    play: async () => {},
  },
  restored: {
    about:
      "a run goes on from a backup; its once step may have run since, until an operator says that it may run",
    pipeline: ({ wait }) => [
      { ...wait, id: "first" },
      { id: "wait", environment: "site", needs: ["first"], once: true, run: ["true"] },
    ],
    play: async (stage, runId) => {
      const { plant, dist, open } = stage;
      await plant.events(runId, has("attempt.started"));
      const data = join(plant.directory, "server");
      const backup = async (...args: string[]): Promise<void> => {
        const env = { ...process.env, INSITU_BACKUP_PASSPHRASE: "correct horse battery staple" };
        await run(process.execPath, [join(dist, "insitu.js"), "backup", ...args], {
          env,
          cwd: plant.directory,
        });
      };
      await backup("create", "--data", data, "--out", "a.tar");
      const { gatewayPort, server } = plant;
      const natsPid = Number(readFileSync(join(data, "nats/nats.pid"), "utf8"));
      await kill(server!);
      process.kill(natsPid, "SIGKILL");
      rmSync(data, { recursive: true });
      await backup("restore", "a.tar", "--data", data);
      await plant.startServer({ gatewayPort });
      open();
      await plant.events(runId, has("step.held", "wait"));
      await resolveAs(stage, runId, "reassign");
    },
  },
};

/** Writes `test/compat/histories/<version>/*.jsonl` under the root of the repository; of `names` alone, if there are any. */
export async function record(root: string, names: readonly string[] = []): Promise<void> {
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  const directory = join(root, "test/compat/histories", version);
  mkdirSync(directory, { recursive: true });
  for (const [name, recording] of Object.entries(RECORDINGS)) {
    if (names.length > 0 && !names.includes(name)) continue;
    const file = join(directory, `${name}.jsonl`);
    writeFileSync(file, await play(join(root, "dist"), name, recording));
    console.log(`recorded test/compat/histories/${version}/${name}.jsonl`);
  }
}

async function play(dist: string, name: string, { about, pipeline, play: go }: Recording): Promise<string> {
  const serverFlags = ["--heartbeat", "200", "--lease-ttl", String(LEASE_MS)];
  await using plant = new Plant({ dist, serverFlags, env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  const gate = join(plant.directory, "gate");
  const wait = {
    id: "wait",
    environment: "site",
    run: ["sh", "-c", 'while [ ! -e "$GATE" ]; do sleep 0.02; done'],
    env: { GATE: gate },
  };
  await plant.apply({ kind: "environment", name: "site", jurisdiction: "DE" });
  const agent = await plant.startAgent("site", "a");
  const stage = { plant, agent, dist, wait, open: () => writeFileSync(gate, "") };
  await plant.apply({ kind: "pipeline", name, steps: pipeline(stage) });
  const { id } = await plant.start(name);
  await go(stage, id);
  const batches = await batchesOf(plant, id);
  const created = eventsOf({ batches }).find((event) => event.kind === "run.created")!;
  const path = `/v1/pipelines/${name}/versions/${created.version}`;
  const { spec } = (await plant.call("GET", path)) as { spec: PipelineSpec };
  const end = endOf(statesOf({ spec, batches }).at(-1)!);
  // Where it was recorded is nobody's business: the directory, and the replica's name, which is the host's.
  return writeHistory({ about, spec, batches, end })
    .replaceAll(plant.directory, "/recorded")
    .replaceAll(/"replica":"[^"]*"/g, '"replica":"replica"');
}

/** To the end of the run, batch by batch, as they are stored. */
async function batchesOf(plant: Plant, runId: string): Promise<RunEventBatch[]> {
  const headers = { authorization: `Bearer ${plant.token}`, "accept-encoding": "gzip" };
  const response = await fetch(`${plant.url}/v1/runs/${runId}/events`, { headers });
  const lines = (await response.text()).split("\n").filter((line) => line.startsWith("data: {"));
  return lines.flatMap((line) => {
    const { events } = JSON.parse(line.slice(6)) as Partial<RunEventBatch>;
    return events ? [{ v: 1, events }] : [];
  });
}
