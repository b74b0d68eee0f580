/** A single nats-server of others, which leaves it to the kernel when it writes, loses the power of its host. */
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { test } from "vitest";
import { Chance } from "../simulation/chance.ts";
import { acknowledge, expectAcknowledged } from "../support/acknowledged.ts";
import { type OwnNats, startOwnNats } from "../support/own-nats.ts";
import { Plant } from "../support/plant.ts";
import { restoreImage } from "../support/sync-record.mjs";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const RECORDER = new URL("../support/sync-record.mjs", import.meta.url);
const LIMIT_MS = 90_000;

/** A NATS on a host of its own, and a replica on another one whose syncs are recorded. */
class Centre implements AsyncDisposable {
  readonly plant: Plant;
  readonly gate: string;
  readonly nats: OwnNats;
  readonly #copy: string;
  readonly #record = mkdtempSync(join(tmpdir(), "insitu-record-"));

  constructor(nats: OwnNats) {
    this.nats = nats;
    const env: NodeJS.ProcessEnv = { INSITU_LOG_LEVEL: "info", INSITU_NATS_CA_FILE: nats.caFile };
    const flags = ["--secrets", nats.secrets, "--nats-url", nats.natsUrl];
    flags.push("--heartbeat", "200", "--lease-ttl", "20000");
    this.plant = new Plant({ dist: DIST, serverFlags: flags, env });
    this.gate = join(this.plant.directory, "gate");
    this.#copy = join(this.plant.directory, "server/nats-tail");
    env.SYNC_ROOT = this.#copy;
    env.SYNC_RECORD = this.#record;
    env.NODE_OPTIONS = `--import=${pathToFileURL(fileURLToPath(RECORDER)).href}`;
  }

  /** @param luck whether the kernel had written by itself what a file held in the end; nothing was synced */
  async cutNats(luck: () => boolean, meanwhile?: () => Promise<void>): Promise<void> {
    const [node] = this.nats.nodes;
    await node!.kill();
    await meanwhile?.();
    const data = join(this.nats.directory, "data");
    this.#cut(data, join(this.nats.directory, "nothing-synced"), luck);
    await node!.start();
  }

  /** Both hosts at once. */
  async cutAll(luck: () => boolean): Promise<void> {
    const { plant } = this;
    const { gatewayPort } = plant;
    await this.cutNats(luck, async () => {
      const gone = once(plant.server!, "exit");
      plant.server!.kill("SIGKILL");
      await gone;
      this.#cut(this.#copy, this.#record, () => false);
    });
    rmSync(this.#record, { recursive: true });
    await plant.startServer({ gatewayPort });
  }

  #cut(directory: string, record: string, luck: () => boolean): void {
    if (!existsSync(directory)) mkdirSync(directory);
    const before = `${directory}.before`;
    renameSync(directory, before);
    restoreImage(record, before, directory, luck);
    rmSync(before, { recursive: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.plant[Symbol.asyncDispose]();
    await this.nats[Symbol.asyncDispose]();
    rmSync(this.#record, { recursive: true, force: true });
  }
}

test.each([
  { host: "NATS", of: "nothing", share: 0 },
  { host: "NATS", of: "half of its files", share: 0.5 },
  { host: "NATS and the one of the replica", of: "nothing", share: 0 },
  { host: "NATS and the one of the replica", of: "half of its files", share: 0.5 },
])(
  "a power cut of the host of $host that leaves NATS $of: all that was acknowledged is there, and goes on",
  { timeout: LIMIT_MS },
  async ({ host, share }) => {
    await using centre = new Centre(await startOwnNats(1));
    const { plant, gate } = centre;
    await plant.startServer();
    const before = await acknowledge(plant, gate);
    const chance = new Chance(33);
    const luck = (): boolean => chance.happens(share);
    if (host === "NATS") await centre.cutNats(luck);
    else await centre.cutAll(luck);
    await expectAcknowledged(plant, gate, before);
  },
);
