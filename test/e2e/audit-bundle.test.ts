/** An auditor's bundle, with the programs as users run them: exported, carried away, verified by one file alone. */
import { execFile } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { VerifiedBundle } from "../../control-plane/evidence/bundle/verify-bundle.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 90_000;

interface Verification {
  verified: boolean;
  attempts: number;
  leaves: VerifiedBundle["leaves"];
  counts: Record<string, number>;
  findings: { level: string; check: string; where: string; detail: string }[];
}

type Ran = { code: number; stdout: string; stderr: string };

async function run(program: string, args: string[], env: NodeJS.ProcessEnv = {}): Promise<Ran> {
  const done = promisify(execFile)(process.execPath, [program, ...args], {
    env: { ...process.env, ...env },
    maxBuffer: 64 * 1024 * 1024,
  });
  return await done.then(
    (ok) => ({ code: 0, ...ok }),
    (err: Ran) => err,
  );
}

const documents = [
  { kind: "environment", name: "site", jurisdiction: "DE" },
  {
    kind: "dataset",
    name: "absent",
    owner: "clinic",
    classification: "internal",
    residency: "DE",
    environments: ["site"],
  },
  {
    kind: "dataset",
    name: "patients",
    owner: "clinic",
    classification: "internal",
    residency: "DE",
    environments: ["site"],
  },
  {
    kind: "pipeline",
    name: "study",
    steps: [
      {
        id: "mean",
        environment: "site",
        run: ["sh", "-c", 'echo 4 > "$INSITU_OUTPUT_DIR/mean"'],
        reads: ["patients"],
        outputs: { mean: { type: "json" } },
      },
      {
        id: "fails",
        environment: "site",
        run: ["sh", "-c", "exit 3"],
        reads: ["patients"],
        retries: { max: 1, backoff: "10ms" },
      },
      // No agent has it: refused, with a receipt of that.
      { id: "refused", environment: "site", run: ["true"], reads: ["patients", "absent"] },
    ],
  },
];

test("what is exported verifies with one file, the root and the key alone; one that was changed does not", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "error" } });
  await plant.startServer();
  await plant.apply(...documents);
  const data = join(plant.directory, "patients.csv");
  writeFileSync(data, "1,2\n");
  await plant.startAgent("site", "only", ["--dataset", `patients=${data}`]);
  const insitu = (...args: string[]) =>
    run(join(DIST, "insitu.js"), args, { INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token });
  const first = await plant.start("study");
  await plant.until(async () => (await plant.run(first.id)).status === "failed");
  const { stdout: kept } = await insitu("audit", "checkpoint");
  const second = await plant.start("study");
  await plant.until(async () => (await plant.run(second.id)).status === "failed");

  // The auditor's own machine: the program, the bundle, and what was written down earlier.
  const away = join(plant.directory, "auditor");
  mkdirSync(away);
  const at = (name: string): string => join(away, name);
  copyFileSync(join(DIST, "insitu-verify.js"), at("insitu-verify.js"));
  writeFileSync(at("package.json"), '{"type":"module"}');
  copyFileSync(join(plant.directory, "server", "secrets", "ca.crt.pem"), at("root.pem"));
  writeFileSync(at("kept.txt"), `${kept.trimEnd()}\n`);
  const { stdout: keyJson } = await insitu("audit", "checkpoint", "-o", "json");
  writeFileSync(at("ledger.key"), (JSON.parse(keyJson) as { key: string }).key);
  const bundle = at("patients.bundle");
  expect(await insitu("audit", "export", "--dataset", "patients", "--file", bundle)).toMatchObject({
    code: 0,
  });

  const trusted = ["--root", at("root.pem"), "--log-key", at("ledger.key"), "--checkpoint", at("kept.txt")];
  const verify = (file: string, ...more: string[]) =>
    run(at("insitu-verify.js"), [file, ...trusted, ...more]);
  const text = await verify(bundle, "--strict");
  expect(text.stdout).toMatch(/Verified: no failure; 0 open, 1 not checked\./);
  expect(text.code).toBe(0);
  const found = JSON.parse((await verify(bundle, "-o", "json")).stdout) as Verification;
  expect(found).toMatchObject({ verified: true, attempts: 8, counts: { failed: 0, open: 0, unchecked: 1 } });
  // The same as a command.
  expect((await insitu("audit", "verify", bundle, ...trusted)).stdout).toBe(text.stdout);

  const page = at("patients.html");
  const told = await insitu("audit", "report", bundle, ...trusted, "--html", page, "-o", "json");
  expect(JSON.parse(told.stdout)).toMatchObject({
    verified: true,
    coverage: { ended: 8, withReceipt: 8, percent: 100 },
    statement: { environments: [{ name: "site", attempts: 8, receipts: 8 }] },
  });
  expect(readFileSync(page, "utf8")).toContain("no step that reads or writes patients ran outside site");
  const asked = await insitu("audit", "report", "--dataset", "patients", "-o", "json");
  expect(JSON.parse(asked.stdout)).toMatchObject({ verified: true, coverage: { ended: 8, percent: 100 } });

  const lines = readFileSync(bundle, "utf8").split("\n");
  const dropped = at("dropped.bundle");
  writeFileSync(dropped, lines.toSpliced(5, 1).join("\n"));
  const refused = await verify(dropped);
  expect(refused.stdout).toMatch(/NOT verified/);
  expect(refused.code).toBe(1);
  expect((await verify(at("nothing.bundle"))).code).toBe(2);

  // A part of the time: the rest is hashes, and that is said.
  const before = await plant.run(second.id);
  const part = at("part.bundle");
  const from = new Date(before.createdAtMs).toISOString();
  await insitu("audit", "export", "--dataset", "patients", "--from", from, "--file", part);
  const partly = JSON.parse((await verify(part, "-o", "json")).stdout) as Verification;
  expect(partly).toMatchObject({ verified: true, attempts: 4 });
  expect(partly.leaves.before).toBeGreaterThan(5);
  expect(partly.findings.map(({ where }) => where)).toContain("leaves that were left out");
});
