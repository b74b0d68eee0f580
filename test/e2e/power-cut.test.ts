/** The host of the centre loses its power, with a nats-server that leaves it to the kernel when it writes. */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { expect, test } from "vitest";
import type { LogLine, RunSummary } from "../../control-plane/api/schemas.ts";
import { canSyncAlways } from "../../control-plane/store/power-cut.ts";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { Chance } from "../simulation/chance.ts";
import { Plant } from "../support/plant.ts";
import { restoreImage } from "../support/sync-record.mjs";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const RECORDER = new URL("../support/sync-record.mjs", import.meta.url);
const FLAGS = ["--heartbeat", "200", "--lease-ttl", "20000"];
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const LINES = 50;

/** A newer one syncs by itself, out of sight of the record. */
const { version } = await findNatsServer();

/** A control plane whose syncs are recorded, and which loses its power. */
class Host implements AsyncDisposable {
  readonly plant: Plant;
  readonly gate: string;
  readonly #nats: string;
  readonly #record: string;

  constructor() {
    const env: NodeJS.ProcessEnv = { INSITU_LOG_LEVEL: "warn" };
    this.plant = new Plant({ dist: DIST, serverFlags: FLAGS, env });
    this.gate = join(this.plant.directory, "gate");
    this.#nats = join(this.plant.directory, "server/nats");
    this.#record = join(this.plant.directory, "record");
    env.SYNC_ROOT = this.#nats;
    env.SYNC_RECORD = this.#record;
    env.NODE_OPTIONS = `--import=${pathToFileURL(fileURLToPath(RECORDER)).href}`;
  }

  /** @param luck whether the kernel had written by itself what a file held in the end */
  async powerCut(luck: () => boolean): Promise<void> {
    const { plant } = this;
    const { gatewayPort } = plant;
    await kill(plant.server!);
    process.kill(Number(readFileSync(join(this.#nats, "nats.pid"), "utf8")), "SIGKILL");
    const before = `${this.#nats}.before`;
    renameSync(this.#nats, before);
    restoreImage(this.#record, before, this.#nats, luck);
    rmSync(before, { recursive: true });
    rmSync(this.#record, { recursive: true });
    await plant.startServer({ gatewayPort });
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

async function startWithKey(plant: Plant, key: string): Promise<string> {
  const response = await fetch(`${plant.url}/v1/runs`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${plant.token}`,
      "content-type": "application/json",
      "idempotency-key": key,
    },
    body: JSON.stringify({ pipeline: "quick" }),
  });
  expect(response.ok).toBe(true);
  return ((await response.json()) as RunSummary).id;
}

async function logOf(plant: Plant, runId: string): Promise<string> {
  const response = await fetch(`${plant.url}/v1/runs/${runId}/logs?follow=true`, {
    headers: { authorization: `Bearer ${plant.token}`, "accept-encoding": "gzip" },
  });
  const lines = (await response.text()).split("\n").filter((line) => line !== "");
  return Buffer.concat(
    lines.map((line) => Buffer.from((JSON.parse(line) as LogLine).data, "base64")),
  ).toString();
}

test.skipIf(canSyncAlways(version)).each([
  { of: "nothing that was not synced", share: 0 },
  { of: "half of the files that were not synced", share: 0.5 },
])(
  "a power cut that leaves $of: all that was acknowledged is there, and goes on",
  {
    timeout: 120_000,
  },
  async ({ share }) => {
    await using host = new Host();
    const { plant, gate } = host;
    await plant.startServer();
    const talk = `i=0; while [ $i -lt ${LINES} ]; do echo "line $i"; i=$((i+1)); done`;
    const wait = `while [ ! -e "$GATE" ]; do sleep 0.02; done`;
    const step = { environment: "site", env: { GATE: gate } };
    await plant.apply(
      SITE,
      { kind: "pipeline", name: "quick", steps: [{ id: "talk", ...step, run: ["sh", "-ec", talk] }] },
      {
        kind: "pipeline",
        name: "slow",
        steps: [
          { id: "wait", ...step, run: ["sh", "-ec", `${talk}; ${wait}`] },
          { id: "after", ...step, needs: ["wait"], run: ["true"] },
        ],
      },
    );
    const { token } = (await plant.call("POST", "/v1/join-tokens", { environment: "site" })) as {
      token: string;
    };
    plant.spawnAgent("site", "a", ["--join-token", token, "--slots", "4"]);
    const slow = await Promise.all([plant.start("slow"), plant.start("slow")]);
    for (const { id } of slow)
      await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.started"));
    const ended = await Promise.all(["k1", "k2", "k3"].map((key) => startWithKey(plant, key)));
    for (const id of ended) await plant.events(id, () => false);
    const waiting = await startWithKey(plant, "k4");

    const chance = new Chance(20);
    await host.powerCut(() => chance.happens(share));

    // The agent is known, and its steps have gone on; nothing is started or told twice.
    expect(await startWithKey(plant, "k1")).toBe(ended[0]);
    writeFileSync(gate, "");
    for (const { id } of [...slow, ...[...ended, waiting].map((id) => ({ id }))]) {
      const events = await plant.events(id, () => false);
      expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
      const outcomes = events.filter(({ kind }) => kind === "attempt.finished").length;
      expect(outcomes).toBe(slow.some((run) => run.id === id) ? 2 : 1);
      expect(await logOf(plant, id)).toBe(Array.from({ length: LINES }, (_, i) => `line ${i}\n`).join(""));
    }
    // A token that was used up stays so.
    const second = plant.spawnAgent("site", "b", ["--join-token", token]);
    expect(await once(second, "exit")).not.toEqual([0, null]);
  },
);
