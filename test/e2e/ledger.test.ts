/** The evidence, with the programs as users run them: a leaf for each attempt, a proof that verifies, a ledger that fits. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type {
  LedgerProofView,
  ReconcileFinding,
  ReconcileSummary,
} from "../../control-plane/api/ledger-schemas.ts";
import type { AgentView } from "../../control-plane/api/schemas.ts";
import { loadConfig, type ServerConfig } from "../../control-plane/config.ts";
import { connectNats } from "../../control-plane/store/jetstream.ts";
import { runningTarget } from "../../control-plane/store/nats-target.ts";
import { canonicalJson } from "../../shared/model/canonical.ts";
import { checkStepProof } from "../../shared/provenance/step-proof.ts";
import { BUCKETS, STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 90_000;

type Reconciled = ReconcileSummary & { findings: ReconcileFinding[]; trouble: string };

async function insitu(
  plant: Plant,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const env = { ...process.env, INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token };
  const run = promisify(execFile)(process.execPath, [join(DIST, "insitu.js"), ...args], { env });
  return await run.then(
    (done) => ({ code: 0, ...done }),
    (err: { code: number; stdout: string; stderr: string }) => err,
  );
}

async function reconciled(plant: Plant): Promise<{ code: number; found: Reconciled }> {
  const { code, stdout } = await insitu(plant, "audit", "reconcile", "-o", "json");
  return { code, found: JSON.parse(stdout) as Reconciled };
}

const site = { kind: "environment", name: "site", jurisdiction: "DE" };
const patients = {
  kind: "dataset",
  name: "patients",
  owner: "clinic",
  classification: "internal",
  residency: "DE",
  environments: ["site"],
};
const step = (id: string, run: string[], change: object = {}) => ({
  id,
  environment: "site",
  run,
  reads: ["patients"],
  ...change,
});
const study = {
  kind: "pipeline",
  name: "study",
  steps: [
    step("good", ["sh", "-c", 'echo 4 > "$INSITU_OUTPUT_DIR/mean"'], {
      outputs: { mean: { type: "json" } },
    }),
    step("bad", ["sh", "-c", "exit 3"], { retries: { max: 1, backoff: "10ms" } }),
    { id: "tidy", environment: "site", run: ["true"] },
  ],
};

async function opened(env: NodeJS.ProcessEnv = {}): Promise<Plant> {
  const plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "error", ...env } });
  await plant.startServer();
  await plant.apply(site, patients, study);
  const file = join(plant.directory, "patients.csv");
  writeFileSync(file, "1,2\n");
  await plant.startAgent("site", "only", ["--dataset", `patients=${file}`]);
  return plant;
}

/** The account of the control plane itself: nobody can do more in NATS. */
async function asControlPlane(plant: Plant) {
  const config = loadConfig(["--data", join(plant.directory, "server")], {}) as ServerConfig;
  const connection = await connectNats({ ...(await runningTarget(config)), name: "test" });
  return Object.assign(connection, { [Symbol.asyncDispose]: () => connection.close() });
}

async function restart(plant: Plant): Promise<void> {
  const ports = { port: Number(new URL(plant.url).port), gatewayPort: plant.gatewayPort };
  const exited = once(plant.server!, "exit");
  plant.server!.kill("SIGTERM");
  await exited;
  await plant.startServer(ports);
}

test("each attempt of a data-bound step is in the ledger with its receipt, and a proof verifies without the server", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await opened();
  const { id } = await plant.start("study");
  await plant.until(async () => (await plant.run(id)).status === "failed");

  const shown = await insitu(plant, "audit", "prove", `${id}/bad`);
  expect(shown).toMatchObject({ code: 0 });
  expect(shown.stdout.match(/receipt, signed by its agent/g)).toHaveLength(2);
  expect(shown.stdout).toMatch(/failed, .* by the agent's clock/);
  const { stdout } = await insitu(plant, "audit", "prove", `${id}/good`, "-o", "json");
  const proof = JSON.parse(stdout) as LedgerProofView;
  const trust = { ...proof.key };
  const checked = checkStepProof(proof, trust);
  if (checked.kind === "refused") throw new Error(checked.reason);
  const [receipt] = checked.leaves.flatMap((leaf) => (leaf.receipt ? [leaf.receipt.receipt] : []));
  expect(receipt).toMatchObject({
    attempt: { runId: id, stepId: "good", attempt: 1 },
    agent: { environment: "site", name: "only" },
    reads: [{ dataset: "patients", classification: "internal" }],
    outputs: [{ name: "mean", bytes: 2 }],
    time: { connected: true },
    result: { status: "succeeded", exitCode: 0 },
  });
  // Under another root, and with one hash of the way changed, it does not.
  const otherLeaf = {
    ...proof,
    leaves: proof.leaves.map((leaf) => ({ ...leaf, leaf: Buffer.from("{}").toString("base64") })),
  };
  expect(checkStepProof(otherLeaf, trust)).toMatchObject({ kind: "refused" });

  expect((await insitu(plant, "audit", "prove", `${id}/tidy`)).code).toBe(4);
  const { code, found } = await reconciled(plant);
  expect(found).toMatchObject({ receipts: 3, ended: 3, findings: [], trouble: "" });
  expect(code).toBe(0);
});

test("a server that is killed again and again leaves neither gap nor double", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await opened();
  const ports = { port: Number(new URL(plant.url).port), gatewayPort: plant.gatewayPort };
  const ids: string[] = [];
  for (let i = 0; i < 2; i++) {
    for (let n = 0; n < 3; n++) ids.push((await plant.start("study")).id);
    const exited = once(plant.server!, "exit");
    plant.server!.kill("SIGKILL");
    await exited;
    await plant.startServer(ports);
  }
  await plant.until(async () =>
    (await Promise.all(ids.map((id) => plant.run(id)))).every((run) => run.status === "failed"),
  );
  const { code, found } = await reconciled(plant);
  expect(found.findings).toEqual([]);
  expect(found.receipts).toBe(found.ended);
  expect(found.ended).toBeGreaterThanOrEqual(ids.length * 3);
  expect(code).toBe(0);
});

test("whoever runs NATS and changes run events or leaves is found out", { timeout: LIMIT_MS }, async () => {
  await using plant = await opened();
  const { id } = await plant.start("study");
  await plant.until(async () => (await plant.run(id)).status === "failed");
  expect((await reconciled(plant)).code).toBe(0);
  await using connection = await asControlPlane(plant);
  // A leaf that nothing stands behind: as large a lie as there is without the key of an agent.
  const forged = {
    v: 1,
    kind: "opaque",
    source: { stream: "RUNS", seq: 1, part: 0 },
    reason: "unreadable",
    digest: `sha256:${"0".repeat(64)}`,
  };
  await connection.jetstream().publish(subjects.ledger("RUNS"), canonicalJson(forged));
  const doubled = await reconciled(plant);
  expect(doubled.code).toBe(1);
  expect(doubled.found.findings.map(({ kind }) => kind)).toContain("double");

  // The ledger is removed, and written anew without a step that somebody would not have in it.
  const manager = await connection.jetstreamManager();
  const { config: stream } = await manager.streams.info(STREAMS.ledger);
  await manager.streams.delete(STREAMS.ledger);
  await manager.streams.add(stream);
  await connection.jetstream().publish(subjects.ledger("RUNS"), "{}");
  await restart(plant);
  await expect
    .poll(async () => (await insitu(plant, "audit", "checkpoint")).stderr, { timeout: 20_000 })
    .toMatch(/fewer leaves than|are not those of its checkpoint/);
});

test("a ledger that was rewritten whole, with its checkpoint, is found by the sites", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = await opened();
  const { id } = await plant.start("study");
  await plant.until(async () => (await plant.run(id)).status === "failed");
  const memory = join(plant.directory, "sites", "site", "only", "ledger.json");
  const held = () => (JSON.parse(readFileSync(memory, "utf8")) as { held: { note: string } }).held.note;
  const agent = async () => (await plant.call("GET", "/v1/agents/site/only")) as AgentView;
  const { stdout } = await insitu(plant, "audit", "checkpoint", "-o", "json");
  const { note, size } = JSON.parse(stdout) as { note: string; size: number };
  // It asks when it connects: from then on it remembers the ledger of the run.
  await restart(plant);
  await plant.until(async () => existsSync(memory) && held() === note);
  expect((await agent()).ledgerTrouble).toBe("");

  // Whoever runs NATS and has the server's disk, but not the sites.
  await using connection = await asControlPlane(plant);
  const manager = await connection.jetstreamManager();
  const { config } = await manager.streams.info(STREAMS.ledger);
  await manager.streams.delete(STREAMS.ledger);
  await manager.streams.delete(`KV_${BUCKETS.checkpoint}`);
  await manager.streams.add(config);
  for (let i = 0; i < size + 3; i++)
    await connection.jetstream().publish(subjects.ledger("RUNS"), `{"another":${i}}`);
  await restart(plant);
  await plant.until(async () => (await agent()).ledgerTrouble !== "");
  expect((await agent()).ledgerTrouble).toMatch(/does not begin with the \d+ that were there/);
  expect(held()).toBe(note);
  expect((await insitu(plant, "agents", "show", "site/only")).stdout).toMatch(/CHANGED/);
});
