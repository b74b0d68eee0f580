/** The program as it is run: a process of its own, a real gateway's protocol, a real work queue. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { AckPolicy, connect, headers, type NatsConnection, RetentionPolicy } from "nats";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../shared/system.ts";
import { OFFER_SIGNATURE_HEADER, type Offer, type Outcome } from "../shared/wire/attempt.ts";
import { decodeLogEntries } from "../shared/wire/log-codec.ts";
import { startTestNats, type TestNats } from "../test/support/nats.ts";
import { stepSpec } from "../test/support/specs.ts";
import { leaseKey, offerOf, offerSigner, type TestDirectory, testDirectory } from "./agent.fixture.ts";
import { type Bundle, bundleOf } from "./bundle.fixture.ts";
import { saveIdentity } from "./enrolment/identity.ts";
import { createAuthority, TestGateway } from "./uplink/gateway.fixture.ts";

const signer = offerSigner();
let program: Bundle;
/** The program over an LMDB that kills it. */
let killing: Bundle;
let nats: TestNats;
let centre: NatsConnection;
let gateway: TestGateway;
let directory: TestDirectory;
const children: ChildProcess[] = [];

beforeAll(async () => {
  program = await bundleOf(new URL("./main.ts", import.meta.url), {
    "insitu-supervisor": new URL("./supervisor/main.ts", import.meta.url),
  });
  killing = await bundleOf(
    new URL("./main.ts", import.meta.url),
    { "insitu-supervisor": new URL("./supervisor/main.ts", import.meta.url) },
    { lmdb: new URL("./journal/killing-lmdb.fixture.ts", import.meta.url) },
  );
});
afterAll(() => {
  program?.[Symbol.dispose]();
  killing?.[Symbol.dispose]();
});

beforeEach(async () => {
  const authority = await createAuthority();
  directory = testDirectory();
  nats = await startTestNats();
  centre = await connect({
    servers: nats.url,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
  });
  const manager = await centre.jetstreamManager();
  await manager.streams.add({ name: "WORK", subjects: ["work.>"], retention: RetentionPolicy.Workqueue });
  await manager.consumers.add("WORK", {
    durable_name: "env-dream",
    ack_policy: AckPolicy.Explicit,
    ack_wait: 30_000_000_000,
  });
  gateway = new TestGateway(authority);
  gateway.welcome = {
    nats: {
      servers: [nats.url],
      user: nats.user,
      password: nats.password,
      inboxPrefix: "_INBOX.a1",
      stream: "WORK",
      consumer: "env-dream",
      caPem: Buffer.alloc(0),
    },
    offerPublicKeyPem: signer.publicKeyPem,
  };
  await gateway.start();
  saveIdentity(directory.path, authority.identity(gateway.port, { offerPublicKeyPem: signer.publicKeyPem }));
});
afterEach(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    const gone = once(child, "exit");
    child.kill("SIGKILL");
    await gone;
  }
  // Their steps end with them.
  for (const pid of supervisors()) process.kill(pid, "SIGTERM");
  while (supervisors().some((pid) => exists(String(pid)))) await systemClock.sleep(10);
  gateway.stop();
  await centre.close();
  await nats.stop();
  directory[Symbol.dispose]();
});

/** Most steps here speak with the test through files beside the agent's state, which no boxed one sees. */
const SANDBOX = ["--sandbox", "off"];

function start(options: { program?: string; env?: NodeJS.ProcessEnv; flags?: string[] } = {}): ChildProcess {
  const { env = process.env, flags = [] } = options;
  const args = [
    options.program ?? program.path,
    "run",
    "--state-dir",
    directory.path,
    "--slots",
    "2",
    ...SANDBOX,
    ...flags,
  ];
  const child = spawn(process.execPath, args, { env, stdio: ["ignore", "ignore", "inherit", "ipc"] });
  children.push(child);
  return child;
}

async function publish(offer: Offer): Promise<void> {
  const payload = Buffer.from(JSON.stringify(offer));
  const head = headers();
  head.set(OFFER_SIGNATURE_HEADER, signer.sign(payload));
  await centre.jetstream().publish("work.dream", payload, { headers: head });
}

const shell = (text: string, change: Partial<Offer> = {}): Offer =>
  offerOf({
    step: stepSpec("fit", { executor: { kind: "process", argv: ["sh", "-ec", text] } }),
    ...change,
  });

function outcomes(): Outcome[] {
  return gateway.reports.flatMap(({ payload }) => (payload.kind === "finished" ? [payload.outcome] : []));
}
const ended = (count = 1) => gateway.until.holds(() => outcomes().length >= count);
const hasStarted = (count = 1) =>
  gateway.until.holds(
    () => gateway.reports.filter(({ payload }) => payload.kind === "started").length >= count,
  );
async function fileOf(name: string): Promise<string> {
  const path = join(directory.path, name);
  while (!existsSync(path) || readFileSync(path, "utf8") === "") await systemClock.sleep(10);
  return readFileSync(path, "utf8").trim();
}
const exists = (pid: string): boolean =>
  existsSync(`/proc/${pid}`) && !/ Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));

test("a boxed step outlives its agent: true exit, every line once, and a cancel ends it", async () => {
  const shared = join(directory.path, "shared");
  mkdirSync(shared);
  chmodSync(shared, 0o777);
  const flags = ["--sandbox", "required", "--dataset", `gate=${shared}`];
  const first = start({ flags: [...flags] });
  const step = (text: string) =>
    stepSpec("fit", { executor: { kind: "process", argv: ["sh", "-ec", text] }, writes: ["gate"] });
  const gate = '"$INSITU_DATASET_GATE"';
  const text = `echo before; : >${gate}/up; while [ ! -e ${gate}/open ]; do sleep 0.02; done; echo after; exit 4`;
  const datasets = [{ name: "gate", classification: "secret" as const }];
  await publish(offerOf({ step: step(text), datasets }));
  while (!existsSync(join(shared, "up"))) await systemClock.sleep(10);
  const gone = once(first, "exit");
  first.kill("SIGKILL");
  await gone;
  start({ flags: [...flags] });
  writeFileSync(join(shared, "open"), "");
  await ended();
  expect(outcomes()[0]).toMatchObject({ status: "failed", exitCode: 4, logBytes: 13 });

  const lease = leaseKey({ runId: "run-2" });
  await publish(offerOf({ lease, step: step(`trap "" TERM; : >${gate}/again; sleep 600`), datasets }));
  while (!existsSync(join(shared, "again"))) await systemClock.sleep(10);
  gateway.session?.write({ cancel: { lease, reason: "by ada" } });
  // A report may come again after a restart: only this run's counts.
  const cancelled = () =>
    gateway.reports.flatMap(({ payload }) =>
      payload.kind === "finished" && payload.lease.runId === "run-2" ? [payload.outcome] : [],
    );
  await gateway.until.holds(() => cancelled().length > 0);
  expect(cancelled()[0]).toMatchObject({ status: "cancelled" });
});

test("an offer is run, its log and outcome arrive, and nothing is left on disk", async () => {
  const child = start();
  await publish(shell("echo hello; exit 3"));
  await ended();
  expect(outcomes()[0]).toMatchObject({ status: "failed", exitCode: 3, logBytes: 6 });
  await gateway.until.holds(() => gateway.chunks.length > 0);
  const [chunk] = gateway.chunks;
  const entries = decodeLogEntries(chunk!.encoding as "identity", chunk!.entries);
  expect(Buffer.from(entries[0]!.data).toString()).toBe("hello\n");
  // After the outcome is on record, and not before.
  while (readdirSync(join(directory.path, "work")).length > 0) await systemClock.sleep(10);
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  expect(await exit).toEqual([0, null]);
  expect(gateway.goodbyes).toEqual(["SIGTERM"]);
});

/** Lines of the log that arrived, in order, each entry once as the centre keeps them. */
function logText(): string {
  const entries = gateway.chunks.flatMap((chunk) =>
    decodeLogEntries(chunk.encoding as "identity", chunk.entries),
  );
  const bySeq = new Map(entries.map((entry) => [entry.seq, Buffer.from(entry.data)]));
  return Buffer.concat([...bySeq].sort(([x], [y]) => x - y).map(([, data]) => data)).toString();
}

async function killed(child: ChildProcess): Promise<void> {
  const exit = once(child, "exit");
  child.kill("SIGKILL");
  await exit;
}

function supervisors(): number[] {
  const base = join(directory.path, "supervisors");
  if (!existsSync(base)) return [];
  return readdirSync(base).flatMap((id) => {
    try {
      const about = readFileSync(join(base, id, "about.json"), "utf8");
      return [(JSON.parse(about) as { pid: number }).pid];
    } catch {
      return []; // it has not said so yet, or has just left
    }
  });
}

test("killed in the middle of a step, it takes the step up again: its true end, and every line once", async () => {
  const first = start();
  const gate = join(directory.path, "gate");
  const text = `echo $$ > ${directory.path}/pid; i=0; while [ $i -lt 50 ]; do echo before $i; i=$((i+1)); done; while [ ! -e ${gate} ]; do sleep 0.02; done; i=0; while [ $i -lt 50 ]; do echo after $i; i=$((i+1)); done; exit 3`;
  await publish(shell(text));
  const pid = await fileOf("pid");
  await hasStarted();
  await killed(first);
  expect(exists(pid)).toBe(true);
  start({ flags: ["--on-stop", "interrupt"] });
  await gateway.until.holds(() => gateway.heartbeats.some(({ held }) => held?.length === 1));
  writeFileSync(gate, "");
  await ended();
  expect(outcomes()).toMatchObject([{ status: "failed", exitCode: 3, error: { code: "exit" } }]);
  await gateway.until.holds(() => logText().includes("after 49"));
  const lines = ["before", "after"].flatMap((word) => Array.from({ length: 50 }, (_, i) => `${word} ${i}`));
  expect(logText()).toBe(`${lines.join("\n")}\n`);
  // It takes work again, and leaves nothing of the step.
  await publish(shell("true", { lease: leaseKey({ runId: "run-2" }) }));
  await ended(2);
  expect(outcomes().map(({ status }) => status)).toEqual(["failed", "succeeded"]);
});

test("away while a step ends, it reports the end at its next start", async () => {
  const first = start();
  const gate = join(directory.path, "gate");
  await publish(
    shell(`echo $$ > ${directory.path}/pid; while [ ! -e ${gate} ]; do sleep 0.02; done; echo bye; exit 4`),
  );
  const pid = await fileOf("pid");
  await hasStarted();
  await killed(first);
  writeFileSync(gate, "");
  while (exists(pid)) await systemClock.sleep(10);
  start();
  await ended();
  expect(outcomes()).toMatchObject([{ status: "failed", exitCode: 4, logBytes: 4 }]);
});

test("with its supervisor killed too, the step is reported as interrupted, once, and none of it runs on", async () => {
  const first = start();
  await publish(shell(`setsid sh -c 'echo $$ > ${directory.path}/pid; exec sleep 600' & wait`));
  const pid = await fileOf("pid");
  await hasStarted();
  await killed(first);
  for (const supervisor of supervisors()) process.kill(supervisor, "SIGKILL");
  start();
  await ended();
  expect(outcomes()).toMatchObject([{ status: "interrupted" }]);
  expect(exists(pid)).toBe(false);
  await publish(shell("true", { lease: leaseKey({ runId: "run-2" }) }));
  await ended(2);
  expect(outcomes().map(({ status }) => status)).toEqual(["interrupted", "succeeded"]);
});

test("a supervisor that is halted while the agent restarts is not taken for dead: the step's true end arrives", async () => {
  const first = start();
  const gate = join(directory.path, "gate");
  await publish(
    shell(`echo $$ > ${directory.path}/pid; while [ ! -e ${gate} ]; do sleep 0.02; done; echo bye; exit 4`),
  );
  const pid = await fileOf("pid");
  await hasStarted();
  const [supervisor] = supervisors();
  process.kill(supervisor!, "SIGSTOP");
  await killed(first);
  start();
  await gateway.until.holds(() => gateway.heartbeats.some(({ held }) => held?.length === 1));
  writeFileSync(gate, "");
  while (exists(pid)) await systemClock.sleep(10);
  process.kill(supervisor!, "SIGCONT");
  await ended();
  expect(outcomes()).toMatchObject([{ status: "failed", exitCode: 4, logBytes: 4 }]);
});

test("workspaces that a crash has left between an outcome and their removal go with the next start", async () => {
  const left = join(directory.path, "work", "run-0", "fit.1.1", "work");
  mkdirSync(left, { recursive: true });
  writeFileSync(join(left, "patients.csv"), "data of the site");
  start();
  await gateway.connected();
  expect(readdirSync(join(directory.path, "work"))).toEqual([]);
});

/** Of a long run: \`INSITU_KILLS=200 npm test -- agent/main.test.ts -t "every pair"\`. */
const KILLS = Number(process.env.INSITU_KILLS ?? 16);

test(`killed between every pair of writes of its journal, ${KILLS} times: no outcome lost, none twice, no step run twice`, async () => {
  const manager = await centre.jetstreamManager();
  await manager.consumers.update("WORK", "env-dream", { ack_wait: 1_000_000_000 });
  const effects = join(directory.path, "effects");
  const points = Array.from(
    { length: KILLS },
    (_, i) => `${Math.floor((i % 16) / 2) + 1}:${i % 2 ? "after" : "before"}`,
  );
  let killedOnes = 0;
  for (const [i, point] of points.entries()) {
    const runId = `kill-${i}`;
    const env = { ...process.env, INSITU_TEST_KILL_AT: point };
    const doomed = start({ program: killing.path, env });
    const gone = once(doomed, "exit");
    await publish(shell(`echo ${runId} >> ${effects}; echo line; exit 7`, { lease: leaseKey({ runId }) }));
    const mine = () =>
      gateway.reports.flatMap(({ payload }) =>
        payload.kind === "finished" && payload.lease.runId === runId ? [payload] : [],
      );
    // Killed before its outcome is known here, or a moment after it, or not at all: fewer writes than that.
    await Promise.race([
      gone,
      gateway.until.holds(() => mine().length > 0).then(() => systemClock.sleep(200)),
    ]);
    if (doomed.signalCode === "SIGKILL") killedOnes += 1;
    else await killed(doomed);
    const next = start({ env: process.env });
    await gateway.until.holds(() => mine().length > 0);
    const outcomesOfIt = new Set(mine().map(({ outcome, lease }) => JSON.stringify([lease, outcome])));
    expect(outcomesOfIt.size, point).toBe(1);
    const { status, exitCode } = mine()[0]!.outcome;
    const ran = existsSync(effects) ? readFileSync(effects, "utf8").split("\n") : [];
    // Killed when the lease was on record and nobody had been told to start it: it never ran, and is offered again.
    if (status === "interrupted") expect(ran, point).not.toContain(runId);
    else {
      expect([status, exitCode], point).toEqual(["failed", 7]);
      expect(
        ran.filter((line) => line === runId),
        point,
      ).toHaveLength(1);
    }
    await killed(next);
  }
  // An attempt has some five writes; at the points beyond them the agent is killed after its outcome has come.
  if (process.env.INSITU_KILLS) console.log({ killedAtAWrite: killedOnes });
  expect(killedOnes).toBeGreaterThan(KILLS / 3);
}, 600_000);

/** Of a long run: \`INSITU_FLOOD_MB=1000 npm test -- agent/main.test.ts -t flood\`; it prints what it saw. */
const FLOOD_MB = Number(process.env.INSITU_FLOOD_MB ?? 60);

test(`a flood of ${FLOOD_MB} MB from one step takes little memory, and holds up no other step and no heartbeat`, async () => {
  const child = start();
  const bytes = FLOOD_MB * 1_000_000;
  await publish(shell(`head -c ${bytes} /dev/zero | tr '\\0' x`));
  await gateway.until.holds(() => gateway.chunks.length > 10);
  const beats = gateway.heartbeats.length;
  // While it goes on, another step begins and ends.
  await publish(shell("exit 9", { lease: leaseKey({ runId: "run-2" }) }));
  await gateway.until.holds(() => outcomes().some(({ exitCode }) => exitCode === 9));
  expect(gateway.heartbeats.length).toBeGreaterThan(beats);
  await ended(2);
  const flood = outcomes().find(({ exitCode }) => exitCode === 0)!;
  expect(flood.logBytes).toBe(bytes);
  // What is not given up has arrived, and what was given up is counted.
  await gateway.until.holds(() => received() >= bytes - flood.logDroppedBytes);
  const peaks = [child.pid!, ...supervisors()].map(peakMb);
  if (process.env.INSITU_FLOOD_MB) console.log({ peaks, dropped: flood.logDroppedBytes });
  for (const peak of peaks) expect(peak).toBeLessThan(400);
}, 600_000);

function received(): number {
  return gateway.chunks
    .flatMap((chunk) => decodeLogEntries(chunk.encoding as "identity", chunk.entries))
    .reduce((sum, { data }) => sum + data.length, 0);
}

/** The most memory that the process has had, in MB: \`VmHWM\` of proc_pid_status(5). */
function peakMb(pid: number): number {
  const line = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
  return Number(line?.[1]) / 1_000;
}

test("stopped, it leaves its steps running, and its next start goes on with them", async () => {
  const child = start();
  const gate = join(directory.path, "gate");
  await publish(shell(`echo $$ > ${directory.path}/pid; while [ ! -e ${gate} ]; do sleep 0.02; done`));
  const pid = await fileOf("pid");
  await hasStarted();
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  expect(await exit).toEqual([0, null]);
  expect(exists(pid)).toBe(true);
  expect(outcomes()).toEqual([]);
  start();
  writeFileSync(gate, "");
  await ended();
  expect(outcomes()).toMatchObject([{ status: "succeeded" }]);
});

test("stopped with --on-stop interrupt it ends its steps, delivers so, and exits with 0", async () => {
  const child = start({ flags: ["--on-stop", "interrupt"] });
  await publish(shell(`echo $$ > ${directory.path}/pid; exec sleep 600`));
  const pid = await fileOf("pid");
  const exit = once(child, "exit");
  child.kill("SIGINT");
  expect(await exit).toEqual([0, null]);
  expect(outcomes()).toMatchObject([{ status: "interrupted" }]);
  expect(exists(pid)).toBe(false);
});

test("it ends when the process that started it goes away", async () => {
  const child = start();
  await gateway.connected();
  const exit = once(child, "exit");
  child.disconnect();
  expect(await exit).toEqual([0, null]);
});

test("with the gateway away it takes what is queued, and delivers when the gateway is back", async () => {
  const first = start();
  await gateway.until.holds(() => gateway.heartbeats.length > 0);
  const exit = once(first, "exit");
  first.kill("SIGTERM");
  await exit;
  expect(statSync(join(directory.path, "nats.json")).mode & 0o777).toBe(0o600);
  gateway.stop();
  start();
  await publish(shell(`echo done > ${directory.path}/done`));
  expect(await fileOf("done")).toBe("done");
  await gateway.start();
  await ended();
  expect(outcomes()).toMatchObject([{ status: "succeeded" }]);
});

test("a cancel from the gateway reaches the process", async () => {
  start();
  await publish(shell(`echo $$ > ${directory.path}/pid; exec sleep 600`));
  const pid = await fileOf("pid");
  gateway.session?.write({ cancel: { lease: leaseKey(), reason: "by ada" } });
  await ended();
  expect(outcomes()).toMatchObject([{ status: "cancelled", error: { message: "by ada" } }]);
  expect(exists(pid)).toBe(false);
});

describe("the command line", () => {
  async function run(...args: string[]): Promise<{ code: number | null; out: string; err: string }> {
    const child = spawn(process.execPath, [program.path, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    children.push(child);
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
    const file = join(directory.path, "agent.yaml");
    writeFileSync(file, "stateDir: nothing-here\nname: a1\nslots: 2\n");
    const { code, err } = await run("run", "--config", file);
    expect(err).toContain(`no identity in ${join(directory.path, "nothing-here")}`);
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
