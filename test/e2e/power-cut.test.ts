/** The host of the centre loses its power, with a nats-server that leaves it to the kernel when it writes. */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { test } from "vitest";
import { canSyncAlways } from "../../control-plane/store/power-cut.ts";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { Chance } from "../simulation/chance.ts";
import { acknowledge, expectAcknowledged } from "../support/acknowledged.ts";
import { Plant } from "../support/plant.ts";
import { restoreImage } from "../support/sync-record.mjs";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const RECORDER = new URL("../support/sync-record.mjs", import.meta.url);
const FLAGS = ["--heartbeat", "200", "--lease-ttl", "20000"];

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
    const before = await acknowledge(plant, gate);
    const chance = new Chance(20);
    await host.powerCut(() => chance.happens(share));
    await expectAcknowledged(plant, gate, before);
  },
);
