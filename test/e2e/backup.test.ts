/** A backup of a control plane that works, and what goes on from it on an empty machine. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { RunEvent } from "../../shared/engine/events.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PASSPHRASE = "correct horse battery staple";
const LIMIT_MS = 90_000;

const run = promisify(execFile);

/** The command as it ships. Rejects with its exit code and what it wrote. */
async function insitu(plant: Plant, ...args: string[]): Promise<string> {
  const env = { ...process.env, INSITU_BACKUP_PASSPHRASE: PASSPHRASE, NO_COLOR: "1" };
  const words = [join(DIST, "insitu.js"), "backup", ...args];
  return (await run(process.execPath, words, { env, cwd: plant.directory })).stdout;
}

async function newPlant(): Promise<Plant> {
  const flags = ["--heartbeat", "200", "--lease-ttl", "20000"];
  const plant = new Plant({ dist: DIST, serverFlags: flags, env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  return plant;
}

/** Three steps, one after the other, that write down what they do; the first one waits for its gate. */
function pipeline(plant: Plant) {
  const effects = join(plant.directory, "effects");
  const gate = join(plant.directory, "gate");
  const env = { EFFECTS: effects, GATE: gate };
  const step = (id: string, script: string, needs: string[]) => ({
    id,
    environment: "site",
    needs,
    env,
    run: ["sh", "-ec", script],
  });
  const wait = `echo first >> "$EFFECTS"; while [ ! -e "$GATE" ]; do sleep 0.02; done`;
  const steps = [
    step("first", wait, []),
    step("second", `echo second >> "$EFFECTS"`, ["first"]),
    step("third", `echo third >> "$EFFECTS"`, ["second"]),
  ];
  return {
    document: { kind: "pipeline", name: "effects", steps },
    open: () => writeFileSync(gate, ""),
    effects: () => readFileSync(effects, "utf8"),
    began: () => existsSync(effects),
  };
}

/** Takes the whole centre away, as a fire would: its processes, and the directory with everything in it. */
async function burnDown(plant: Plant): Promise<void> {
  const natsPid = Number(readFileSync(join(plant.directory, "server/nats/nats.pid"), "utf8"));
  const gone = once(plant.server!, "exit");
  plant.server!.kill("SIGKILL");
  await gone;
  process.kill(natsPid, "SIGKILL");
  rmSync(join(plant.directory, "server"), { recursive: true });
}

test("a run that was in flight goes on after a restore on an empty machine, each step's effect once", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const { document, open, effects, began } = pipeline(plant);
  await plant.apply(SITE, document);
  await plant.startAgent("site", "a");
  const { id } = await plant.start("effects");
  const isStarted = (event: RunEvent): boolean => event.kind === "attempt.started";
  await plant.events(id, (events) => events.some(isStarted));
  await plant.until(async () => began());

  const data = join(plant.directory, "server");
  await insitu(plant, "create", "--data", data, "--out", "a.tar");
  await insitu(plant, "verify", "a.tar");
  const { gatewayPort, token } = plant;
  await burnDown(plant);
  expect(await insitu(plant, "restore", "a.tar", "--data", data)).toContain(`insitu server --data ${data}`);
  await plant.startServer({ gatewayPort });
  expect(plant.token).toBe(token);

  open();
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(effects()).toBe("first\nsecond\nthird\n");
  // The step that ran over it all ended under the grant that it had.
  expect(events.filter(({ kind }) => kind === "attempt.finished")).toMatchObject([
    { step: "first", attempt: 1, epoch: 1 },
    { step: "second", attempt: 1 },
    { step: "third", attempt: 1 },
  ]);
});
