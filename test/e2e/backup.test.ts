/** A backup of a control plane that works, and what goes on from it on an empty machine. */
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { connect } from "nats";
import { expect, test } from "vitest";
import { ClusterRecord, emptyRecord } from "../../control-plane/shards/shard-book.ts";
import { ensureStreams } from "../../control-plane/store/jetstream.ts";
import { openKv } from "../../control-plane/store/kv.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { systemClock } from "../../shared/system.ts";
import { BUCKETS, subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../support/nats.ts";
import { Plant, type Replica } from "../support/plant.ts";

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

async function newPlant(leaseTtlMs = 20_000): Promise<Plant> {
  const flags = ["--heartbeat", "200", "--lease-ttl", String(leaseTtlMs)];
  const plant = new Plant({ dist: DIST, serverFlags: flags, env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  return plant;
}

/** Steps, one after the other, that write down what they do, and then wait until they are let through. */
function chain(plant: Plant, ...steps: (string | { id: string; once: true })[]) {
  const effects = join(plant.directory, "effects");
  const gateOf = (id: string): string => join(plant.directory, `gate-${id}`);
  const script = `echo "$STEP" >> "$EFFECTS"; while [ ! -e "$GATE" ]; do sleep 0.02; done`;
  const said = steps.map((step) => (typeof step === "string" ? { id: step } : step));
  return {
    document: {
      kind: "pipeline",
      name: "chain",
      steps: said.map((step, at) => ({
        ...step,
        environment: "site",
        needs: said.slice(Math.max(0, at - 1), at).map(({ id }) => id),
        env: { EFFECTS: effects, GATE: gateOf(step.id), STEP: step.id },
        run: ["sh", "-ec", script],
      })),
    },
    open: (...ids: string[]) => {
      for (const id of ids) writeFileSync(gateOf(id), "");
    },
    effects: () => (existsSync(effects) ? readFileSync(effects, "utf8").trim().split("\n") : []),
  };
}

const startOf = (id: string) => (events: RunEvent[]) =>
  events.some((event) => event.kind === "attempt.started" && event.step === id);

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
  const { document, open, effects } = chain(plant, "first", "second", "third");
  await plant.apply(SITE, document);
  await plant.startAgent("site", "a");
  const { id } = await plant.start("chain");
  await plant.events(id, startOf("first"));
  await plant.until(async () => effects().length === 1);

  const data = join(plant.directory, "server");
  await insitu(plant, "create", "--data", data, "--out", "a.tar");
  expect(await insitu(plant, "verify", "a.tar")).toContain("the passphrase opens its secrets");
  const { gatewayPort, token } = plant;
  await burnDown(plant);
  expect(await insitu(plant, "restore", "a.tar", "--data", data)).toContain(`insitu server --data ${data}`);
  await plant.startServer({ gatewayPort });
  expect(plant.token).toBe(token);

  open("first", "second", "third");
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(effects()).toEqual(["first", "second", "third"]);
  // The step that ran over it all ended under the grant that it had.
  expect(events.filter(({ kind }) => kind === "attempt.finished")).toMatchObject([
    { step: "first", attempt: 1, epoch: 1 },
    { step: "second", attempt: 1 },
    { step: "third", attempt: 1 },
  ]);
});

test("what went on after the backup is fenced off: the run ends once, under grants of the new time", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant(1_500);
  const { document, open, effects } = chain(plant, "first", "second", "third");
  await plant.apply(SITE, document);
  await plant.startAgent("site", "a");
  const { id } = await plant.start("chain");
  await plant.events(id, startOf("first"));
  const data = join(plant.directory, "server");
  await insitu(plant, "create", "--data", data, "--out", "a.tar");
  // The backup knows nothing of this: the first step ended, and the agent is at the second one, under epoch 1.
  open("first");
  await plant.events(id, startOf("second"));
  await plant.until(async () => effects().length === 2);
  const { gatewayPort } = plant;
  await burnDown(plant);
  await insitu(plant, "restore", "a.tar", "--data", data);
  await plant.startServer({ gatewayPort });

  await plant.events(id, startOf("second"));
  open("second", "third");
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  const ended = events.filter((event) => event.kind === "attempt.finished");
  expect(ended.map(({ step }) => step)).toEqual(["first", "second", "third"]);
  for (const { epoch } of ended) expect(epoch).toBeGreaterThan(1_700_000_000);
  expect(effects()).toEqual(["first", "second", "first", "second", "third"]);
});

test("a once step that may have run after the backup waits for an operator", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await newPlant();
  const { document, open, effects } = chain(plant, "first", { id: "load", once: true });
  await plant.apply(SITE, document);
  await plant.startAgent("site", "a");
  const { id } = await plant.start("chain");
  await plant.events(id, startOf("first"));
  const data = join(plant.directory, "server");
  await insitu(plant, "create", "--data", data, "--out", "a.tar");
  const { gatewayPort } = plant;
  await burnDown(plant);
  await insitu(plant, "restore", "a.tar", "--data", data);
  await plant.startServer({ gatewayPort });
  open("first", "load");
  await plant.until(async () => (await plant.run(id)).steps[1]?.waiting?.reason === "restored");
  expect(effects()).toEqual(["first"]);
  const decision = { as: "reassign", reason: "the table is empty", evenIfItRan: true };
  await plant.call("POST", `/v1/runs/${id}/steps/load/resolve`, decision);
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(effects()).toEqual(["first", "load"]);
});

test("two backups of one NATS with two replicas are two moments; each comes back on another NATS", {
  timeout: LIMIT_MS,
}, async () => {
  const urlOf = ({ url, user, password }: TestNats): string => url.replace("//", `//${user}:${password}@`);
  await using nats = await startTestNats();
  const agentAccess = { INSITU_AGENT_NATS_USER: nats.user, INSITU_AGENT_NATS_PASSWORD: nats.password };
  const env = { INSITU_LOG_LEVEL: "warn", ...agentAccess };
  await using plant = new Plant({ dist: DIST, serverFlags: ["--heartbeat", "200"], env });
  const secrets = join(plant.directory, "secrets");
  const flags = ["--nats-url", urlOf(nats), "--secrets", secrets];
  const use = (replica: Replica): void =>
    void Object.assign(plant, { url: replica.url, token: replica.token });
  use(await plant.startReplica("one", {}, flags));
  await plant.startReplica("two", {}, flags);
  const noop = { kind: "pipeline", name: "noop", steps: [{ id: "s", environment: "site", uses: "noop" }] };
  await plant.apply(SITE, noop);
  await plant.startAgent("site", "a");
  const ids: string[] = [];
  for (const name of ["first.tar", "second.tar"]) {
    const { id } = await plant.start("noop");
    ids.push(id);
    await plant.events(id, () => false);
    await insitu(plant, "create", ...flags, "--out", name);
  }
  await expect(insitu(plant, "create", ...flags, "--out", "first.tar")).rejects.toMatchObject({
    code: 7,
    stderr: expect.stringContaining("exists already"),
  });
  await expect(insitu(plant, "restore", "first.tar", ...flags)).rejects.toMatchObject({
    code: 7,
    stderr: expect.stringContaining("a server still runs on this NATS"),
  });
  for (const [at, name] of ["first.tar", "second.tar"].entries()) {
    await using other = await startTestNats();
    const there = ["--nats-url", urlOf(other), "--secrets", secrets];
    await insitu(plant, "restore", name, ...there);
    await expect(insitu(plant, "restore", name, ...there)).rejects.toMatchObject({
      code: 7,
      stderr: expect.stringMatching(/holds streams of Insitu already.*RUNS/),
    });
    const replica = await plant.startReplica(`back-${at}`, {}, there);
    use(replica);
    const { items } = (await plant.call("GET", "/v1/runs")) as { items: { id: string; status: string }[] };
    expect(items.map(({ id }) => id).sort()).toEqual(ids.slice(0, at + 1).sort());
    const gone = once(replica.child, "exit");
    replica.child.kill("SIGTERM");
    await gone;
  }
});

test("logs of 160 MB take no more memory than ten messages", { timeout: LIMIT_MS }, async () => {
  const directory = mkdtempSync(join(tmpdir(), "insitu-backup-size-"));
  const peakFile = join(directory, "peak");
  const print = `process.on("exit",()=>require("node:fs").writeFileSync(${JSON.stringify(peakFile)},String(process.resourceUsage().maxRSS)))`;
  const watcher = join(directory, "watch.cjs");
  writeFileSync(watcher, print);
  const peakMb = async (...args: string[]): Promise<number> => {
    const env = {
      ...process.env,
      NODE_OPTIONS: `--require ${watcher}`,
      INSITU_DATA: join(directory, "data"),
    };
    await run(process.execPath, [join(DIST, "insitu.js"), "backup", ...args, "--without-secrets"], { env });
    return Number(readFileSync(peakFile, "utf8")) / 1_024;
  };
  const peaks: number[] = [];
  for (const messages of [10, 1_600]) {
    await using nats = await startTestNats();
    await using other = await startTestNats();
    const urls = [nats, other].map(({ url, user, password }) => url.replace("//", `//${user}:${password}@`));
    const connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
    await ensureStreams(await connection.jetstreamManager(), 1);
    const kv = await openKv(connection, {
      clock: systemClock,
      bucket: BUCKETS.cluster,
      schema: ClusterRecord,
    });
    await kv.create("shards", emptyRecord("f"));
    for (let at = 0; at < messages; at += 10) {
      const chunks = Array.from({ length: 10 }, () => randomBytes(100_000));
      await Promise.all(
        chunks.map((chunk) => connection.jetstream().publish(subjects.log("r", "s", 1), chunk)),
      );
    }
    await connection.close();
    const file = join(directory, `${messages}.tar`);
    const taking = await peakMb("create", "--nats-url", urls[0]!, "--out", file);
    if (messages > 1_000) expect(statSync(file).size).toBeGreaterThan(150_000_000);
    peaks.push(taking, await peakMb("restore", file, "--nats-url", urls[1]!));
  }
  const [little, littleBack, much, muchBack] = peaks as [number, number, number, number];
  // Read whole it would be 160 MB more; what is on its way between two collections of garbage is 50 to 90.
  expect(much - little).toBeLessThan(120);
  expect(muchBack - littleBack).toBeLessThan(120);
  rmSync(directory, { recursive: true });
});
