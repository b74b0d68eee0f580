/** The disk of the nats-server that Insitu starts is full, and has room again. It takes root to mount one. */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { canMount, Disk } from "../support/disk.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const DOCUMENTS = [
  { kind: "environment", name: "site", jurisdiction: "DE" },
  {
    kind: "pipeline",
    name: "slow",
    steps: [
      { id: "one", environment: "site", run: ["sleep", "4"] },
      { id: "other", environment: "site", needs: ["one"], uses: "noop" },
    ],
  },
];
const probe = new Plant({ dist: DIST, env: {} });
const mounts = canMount(join(probe.directory, "probe"));
await probe[Symbol.asyncDispose]();

test.skipIf(!mounts)(
  "while the disk is full nothing is acknowledged, and all that was goes on by itself once there is room, each outcome once",
  { timeout: 150_000 },
  async () => {
    // An offer that the server had taken and not yet written is made again when it expires: the run owes it.
    const env = { INSITU_LOG_LEVEL: "info", INSITU_OFFER_TTL_MS: "20000" };
    await using plant = new Plant({ dist: DIST, env });
    const disk = new Disk(join(plant.directory, "replica-1", "nats"), "160m");
    try {
      const { url, token, child } = await plant.startReplica("replica-1");
      plant.url = url;
      plant.token = token;
      const ready = async () => {
        const response = await fetch(`${url}/readyz?verbose`);
        const { checks } = (await response.json()) as { checks: { storage: boolean } };
        return { status: response.status, storage: checks.storage };
      };
      await plant.apply(...DOCUMENTS);
      await plant.startAgent("site", "a");
      const accepted = [(await plant.start("slow")).id];
      await plant.until(async () => (await plant.run(accepted[0]!)).steps[0]?.status === "running");
      expect(await ready()).toEqual({ status: 200, storage: true });
      disk.fill();
      // What fits into the last page is still accepted.
      for (let refused = false; !refused; )
        await plant.start("slow").then(
          ({ id }) => accepted.push(id),
          (err: Error) => {
            refused = true;
            expect(err.message).toMatch(/ 503 /);
          },
        );
      expect(await ready()).toEqual({ status: 503, storage: false });
      disk.free();
      await expect.poll(async () => (await ready()).storage, { timeout: 60_000 }).toBe(true);
      for (const id of accepted) {
        const statusOf = async () => (await plant.run(id).catch(() => undefined))?.status;
        await expect.poll(statusOf, { timeout: 60_000 }).toBe("succeeded");
        const events = await plant.events(id, () => false);
        expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
        expect(events.filter(({ kind }) => kind === "attempt.finished")).toHaveLength(2);
      }
      expect(readFileSync(join(plant.directory, "replica-1.log"), "utf8")).toContain(
        "the disk of nats-server has room again; starting it again",
      );
      child.kill("SIGTERM");
      await once(child, "exit");
    } finally {
      disk.close();
    }
  },
);
