/** The program as it is run: a process of its own, a real gateway's protocol, a real work queue. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../shared/system.ts";
import { decodeLogEntries } from "../shared/wire/log-codec.ts";
import { stepSpec } from "../test/support/specs.ts";
import { leaseKey, offerOf } from "./agent.fixture.ts";
import type { Bundle } from "./bundle.fixture.ts";
import { bundleProgram, exists, kill, shell, TestSite } from "./program.fixture.ts";

let program: Bundle;
let site: TestSite;

beforeAll(async () => {
  program = await bundleProgram();
});
afterAll(() => program?.[Symbol.dispose]());
beforeEach(async () => {
  site = await TestSite.open(program);
});
afterEach(() => site?.[Symbol.asyncDispose]());

test("a boxed step outlives its agent: true exit, every line once, and a cancel ends it", async () => {
  const shared = join(site.path, "shared");
  mkdirSync(shared);
  chmodSync(shared, 0o777);
  const flags = ["--sandbox", "required", "--dataset", `gate=${shared}`];
  const first = site.start({ flags: [...flags] });
  const step = (text: string) =>
    stepSpec("fit", { executor: { kind: "process", argv: ["sh", "-ec", text] }, writes: ["gate"] });
  const gate = '"$INSITU_DATASET_GATE"';
  const text = `echo before; : >${gate}/up; while [ ! -e ${gate}/open ]; do sleep 0.02; done; echo after; exit 4`;
  const datasets = [{ name: "gate", classification: "secret" as const }];
  await site.publish(offerOf({ step: step(text), datasets }));
  while (!existsSync(join(shared, "up"))) await systemClock.sleep(10);
  await kill(first);
  site.start({ flags: [...flags] });
  writeFileSync(join(shared, "open"), "");
  await site.ended();
  expect(site.outcomes()[0]).toMatchObject({ status: "failed", exitCode: 4, logBytes: 13 });

  const lease = leaseKey({ runId: "run-2" });
  await site.publish(offerOf({ lease, step: step(`trap "" TERM; : >${gate}/again; sleep 600`), datasets }));
  while (!existsSync(join(shared, "again"))) await systemClock.sleep(10);
  site.gateway.session?.write({ cancel: { lease, reason: "by ada" } });
  // A report may come again after a restart: only this run's counts.
  const cancelled = () =>
    site.gateway.reports.flatMap(({ payload }) =>
      payload.kind === "finished" && payload.lease.runId === "run-2" ? [payload.outcome] : [],
    );
  await site.gateway.until.holds(() => cancelled().length > 0);
  expect(cancelled()[0]).toMatchObject({ status: "cancelled" });
});

test("an offer is run, its log and outcome arrive, and nothing is left on disk", async () => {
  const child = site.start();
  await site.publish(shell("echo hello; exit 3"));
  await site.ended();
  expect(site.outcomes()[0]).toMatchObject({ status: "failed", exitCode: 3, logBytes: 6 });
  await site.gateway.until.holds(() => site.gateway.chunks.length > 0);
  const [chunk] = site.gateway.chunks;
  const entries = decodeLogEntries(chunk!.encoding as "identity", chunk!.entries);
  expect(Buffer.from(entries[0]!.data).toString()).toBe("hello\n");
  // After the outcome is on record, and not before.
  while (readdirSync(join(site.path, "work")).length > 0) await systemClock.sleep(10);
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  expect(await exit).toEqual([0, null]);
  expect(site.gateway.goodbyes).toEqual(["SIGTERM"]);
});

test("killed in the middle of a step, it takes the step up again: its true end, and every line once", async () => {
  const first = site.start();
  const gate = join(site.path, "gate");
  const text = `echo $$ > ${site.path}/pid; i=0; while [ $i -lt 50 ]; do echo before $i; i=$((i+1)); done; while [ ! -e ${gate} ]; do sleep 0.02; done; i=0; while [ $i -lt 50 ]; do echo after $i; i=$((i+1)); done; exit 3`;
  await site.publish(shell(text));
  const pid = await site.fileOf("pid");
  await site.hasStarted();
  await kill(first);
  expect(exists(pid)).toBe(true);
  site.start({ flags: ["--on-stop", "interrupt"] });
  await site.gateway.until.holds(() => site.gateway.heartbeats.some(({ held }) => held?.length === 1));
  writeFileSync(gate, "");
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "failed", exitCode: 3, error: { code: "exit" } }]);
  await site.gateway.until.holds(() => site.logText().includes("after 49"));
  const lines = ["before", "after"].flatMap((word) => Array.from({ length: 50 }, (_, i) => `${word} ${i}`));
  expect(site.logText()).toBe(`${lines.join("\n")}\n`);
  // It takes work again, and leaves nothing of the step.
  await site.publish(shell("true", { lease: leaseKey({ runId: "run-2" }) }));
  await site.ended(2);
  expect(site.outcomes().map(({ status }) => status)).toEqual(["failed", "succeeded"]);
});

test("away while a step ends, it reports the end at its next start", async () => {
  const first = site.start();
  const gate = join(site.path, "gate");
  await site.publish(
    shell(`echo $$ > ${site.path}/pid; while [ ! -e ${gate} ]; do sleep 0.02; done; echo bye; exit 4`),
  );
  const pid = await site.fileOf("pid");
  await site.hasStarted();
  await kill(first);
  writeFileSync(gate, "");
  while (exists(pid)) await systemClock.sleep(10);
  site.start();
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "failed", exitCode: 4, logBytes: 4 }]);
});

test("with its supervisor killed too, the step is reported as interrupted, once, and none of it runs on", async () => {
  const first = site.start();
  await site.publish(shell(`setsid sh -c 'echo $$ > ${site.path}/pid; exec sleep 600' & wait`));
  const pid = await site.fileOf("pid");
  await site.hasStarted();
  await kill(first);
  for (const supervisor of site.supervisors()) process.kill(supervisor, "SIGKILL");
  site.start();
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "interrupted" }]);
  expect(exists(pid)).toBe(false);
  await site.publish(shell("true", { lease: leaseKey({ runId: "run-2" }) }));
  await site.ended(2);
  expect(site.outcomes().map(({ status }) => status)).toEqual(["interrupted", "succeeded"]);
});

test("a supervisor that is halted while the agent restarts is not taken for dead: the step's true end arrives", async () => {
  const first = site.start();
  const gate = join(site.path, "gate");
  await site.publish(
    shell(`echo $$ > ${site.path}/pid; while [ ! -e ${gate} ]; do sleep 0.02; done; echo bye; exit 4`),
  );
  const pid = await site.fileOf("pid");
  await site.hasStarted();
  const [supervisor] = site.supervisors();
  process.kill(supervisor!, "SIGSTOP");
  await kill(first);
  site.start();
  await site.gateway.until.holds(() => site.gateway.heartbeats.some(({ held }) => held?.length === 1));
  writeFileSync(gate, "");
  while (exists(pid)) await systemClock.sleep(10);
  process.kill(supervisor!, "SIGCONT");
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "failed", exitCode: 4, logBytes: 4 }]);
});

test("a cancel ends the processes of a step whose supervisor is halted, and is its end when that one goes on", async () => {
  site.start({ flags: ["--config", site.configOf({ killGraceMs: 100 })] });
  await site.publish(shell(`echo $$ > ${site.path}/pid; exec sleep 600`));
  const pid = await site.fileOf("pid");
  await site.hasStarted();
  const [supervisor] = site.supervisors();
  process.kill(supervisor!, "SIGSTOP");
  site.gateway.session?.write({ cancel: { lease: leaseKey(), reason: "by ada" } });
  while (exists(pid)) await systemClock.sleep(50);
  process.kill(supervisor!, "SIGCONT");
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "cancelled", error: { message: "by ada" } }]);
}, 40_000);

test("workspaces that a crash has left between an outcome and their removal go with the next start", async () => {
  const left = join(site.path, "work", "run-0", "fit.1.1", "work");
  mkdirSync(left, { recursive: true });
  writeFileSync(join(left, "patients.csv"), "data of the site");
  site.start();
  await site.gateway.connected();
  expect(readdirSync(join(site.path, "work"))).toEqual([]);
});

test("stopped, it leaves its steps running, and its next start goes on with them", async () => {
  const child = site.start();
  const gate = join(site.path, "gate");
  await site.publish(shell(`echo $$ > ${site.path}/pid; while [ ! -e ${gate} ]; do sleep 0.02; done`));
  const pid = await site.fileOf("pid");
  await site.hasStarted();
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  expect(await exit).toEqual([0, null]);
  expect(exists(pid)).toBe(true);
  expect(site.outcomes()).toEqual([]);
  site.start();
  writeFileSync(gate, "");
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "succeeded" }]);
});

test("stopped with --on-stop interrupt it ends its steps, delivers so, and exits with 0", async () => {
  const child = site.start({ flags: ["--on-stop", "interrupt"] });
  await site.publish(shell(`echo $$ > ${site.path}/pid; exec sleep 600`));
  const pid = await site.fileOf("pid");
  const exit = once(child, "exit");
  child.kill("SIGINT");
  expect(await exit).toEqual([0, null]);
  expect(site.outcomes()).toMatchObject([{ status: "interrupted" }]);
  expect(exists(pid)).toBe(false);
});

test("it ends when the process that started it goes away", async () => {
  const child = site.start();
  await site.gateway.connected();
  const exit = once(child, "exit");
  child.disconnect();
  expect(await exit).toEqual([0, null]);
});

test("with the gateway away it takes what is queued, and delivers when the gateway is back", async () => {
  const first = site.start();
  await site.gateway.until.holds(() => site.gateway.heartbeats.length > 0);
  const exit = once(first, "exit");
  first.kill("SIGTERM");
  await exit;
  expect(statSync(join(site.path, "nats.json")).mode & 0o777).toBe(0o600);
  site.gateway.stop();
  site.start();
  await site.publish(shell(`echo done > ${site.path}/done`));
  expect(await site.fileOf("done")).toBe("done");
  await site.gateway.start();
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "succeeded" }]);
});

test("a cancel from the gateway reaches the process", async () => {
  site.start();
  await site.publish(shell(`echo $$ > ${site.path}/pid; exec sleep 600`));
  const pid = await site.fileOf("pid");
  site.gateway.session?.write({ cancel: { lease: leaseKey(), reason: "by ada" } });
  await site.ended();
  expect(site.outcomes()).toMatchObject([{ status: "cancelled", error: { message: "by ada" } }]);
  expect(exists(pid)).toBe(false);
});

describe("the command line", () => {
  async function run(...args: string[]): Promise<{ code: number | null; out: string; err: string }> {
    const child = spawn(process.execPath, [program.path, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    site.keep(child);
    let [out, err] = ["", ""];
    child.stdout.on("data", (data) => (out += data));
    child.stderr.on("data", (data) => (err += data));
    const [code] = (await once(child, "close")) as [number | null];
    return { code, out, err };
  }

  test.each<[string[], number, RegExp]>([
    [["--help"], 0, /Usage[\s\S]*Examples/],
    [["version"], 0, /^insitu-agent \d+\.\d+\.\d+ \(node /],
    [[], 2, /Usage/],
  ])("%j prints what it should", async (args, code, expected) => {
    const result = await run(...args);
    expect(result.code).toBe(code);
    expect(result.out).toMatch(expected);
  });

  test("a configuration file is read by the program as it is shipped", async () => {
    const file = join(site.path, "agent.yaml");
    writeFileSync(file, "stateDir: nothing-here\nname: a1\nslots: 2\n");
    const { code, err } = await run("run", "--config", file);
    expect(err).toContain(`no identity in ${join(site.path, "nothing-here")}`);
    expect(code).toBe(6);
  });

  test.each<[string[], number, RegExp]>([
    [["fly"], 2, /no command "fly"/],
    [["run", "--colour"], 2, /--colour.*--help/],
    [["run"], 2, /stateDir/],
    [["run", "--state-dir", "/tmp/insitu-none", "--name", "a1"], 6, /no identity.*join token/],
    [
      ["enrol", "--state-dir", "/tmp/insitu-none", "--name", "a1", "--join-token", "x"],
      6,
      /begins with "insitu1\."/,
    ],
  ])("%j fails with its reason on stderr", async (args, code, expected) => {
    const result = await run(...args);
    expect(result.err).toMatch(expected);
    expect(result.code).toBe(code);
    expect(result.err).not.toMatch(/\n\s+at /); // a mistake of the caller shows no stack
  });
});
