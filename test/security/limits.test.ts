/**
 * Steps that take more of their host than they may: the real bubblewrap, supervisor, executor and kernel.
 *
 * What a control group does needs a host that lets the agent make some; those tests say so where it does not.
 */
import { chmodSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { leaseKey, offerOf, type TestDirectory, testDirectory } from "../../agent/agent.fixture.ts";
import type { Execution, ExecutionResult } from "../../agent/executors/executor.ts";
import { ProcessExecutor } from "../../agent/executors/process-executor.ts";
import { probeGroups } from "../../agent/sandbox/group-host.ts";
import { CONTROLLERS } from "../../agent/sandbox/group-plan.ts";
import { realSandbox, Written } from "../../agent/sandbox/sandbox.fixture.ts";
import { TestSupervisors } from "../../agent/supervisor/supervisor.fixture.ts";
import type { ResourcesSpec } from "../../shared/model/spec.ts";
import { systemClock } from "../../shared/system.ts";
import { stepSpec } from "../support/specs.ts";

const MiB = 1024 * 1024;
const facts = await probeGroups(systemClock);
/** Without control groups there is nothing to test here, and the run says so. */
const canGroup = CONTROLLERS.every((controller) => facts.host[controller] !== undefined);
const EAT_MEMORY = ["node", "-e", "const kept = []; for (;;) kept.push(Buffer.alloc(4 << 20, 1));"];
/** Each begins two more, in sessions of their own. */
const FORK_BOMB = "echo 'setsid sh ./bomb & setsid sh ./bomb & wait; sleep 60' >bomb; sh ./bomb; sleep 60";

let directory: TestDirectory;
let supervisors: TestSupervisors;
let stateDir: string;

beforeEach(() => {
  directory = testDirectory();
  chmodSync(directory.path, 0o755);
  stateDir = join(directory.path, "state");
  mkdirSync(stateDir);
  supervisors = new TestSupervisors(stateDir);
});
afterEach(async () => {
  await supervisors.stop();
  directory[Symbol.dispose]();
});

interface Wish {
  argv: string[];
  resources?: ResourcesSpec;
  timeoutMs?: number;
  config?: object;
  groups?: typeof facts;
}

async function start({ argv, resources, timeoutMs = 20_000, config = {}, groups }: Wish) {
  const executor = new ProcessExecutor({
    clock: systemClock,
    stateDir,
    datasets: {},
    stepEnv: { PATH: process.env.PATH ?? "" },
    killGraceMs: 300,
    supervisors,
    sandbox: await realSandbox({ stateDir, config, ...(groups ? { groups } : {}) }),
  });
  const step = stepSpec("fit", {
    executor: { kind: "process", argv },
    timeoutMs,
    ...(resources ? { resources } : {}),
  });
  const written = new Written();
  const offer = offerOf({ step, lease: leaseKey({ epoch: 1 }) });
  const execution: Execution = executor.start(offer, written);
  return { execution, executor, offer, written };
}

async function outcome(wish: Wish): Promise<ExecutionResult & { said: string }> {
  const { execution, written } = await start(wish);
  return { ...(await execution.done), said: written.text };
}

/** The groups of attempts that are there now, of any agent on this host; the test's own is among them while it runs. */
function groupsOf(marker: string): string[] {
  return CONTROLLERS.flatMap((controller) => {
    const path = `${facts.host[controller]?.directory}/insitu-${marker}`;
    return existsSync(path) ? [path] : [];
  });
}

const TELL_MARKER = 'echo "$INSITU_ATTEMPT_TOKEN"; ';

describe.skipIf(!canGroup)("in a control group", () => {
  test("a step that takes too much memory fails as out of memory, with its limit", async () => {
    const result = await outcome({ argv: EAT_MEMORY, resources: { memoryBytes: 128 * MiB } });
    expect(result).toMatchObject({
      status: "failed",
      error: { code: "memory", message: expect.stringMatching(/^out of memory: .*128 MiB/) },
    });
  });

  test("memory that it keeps in /tmp counts", async () => {
    const argv = ["sh", "-c", "cat /dev/zero >/tmp/full"];
    const result = await outcome({ argv, resources: { memoryBytes: 64 * MiB } });
    expect(result.error).toMatchObject({ code: "memory" });
  });

  test("a step that stays within its limits is none the worse", async () => {
    const resources = { memoryBytes: 512 * MiB, cpus: 1, processes: 64, openFiles: 64, fileSizeBytes: MiB };
    const result = await outcome({ argv: ["node", "-e", "console.log(40 + 2)"], resources });
    expect(result).toMatchObject({ status: "succeeded", said: "42\n" });
  });

  test("a fork bomb meets its limit, ends whole with its timeout, and leaves no group", async () => {
    const argv = ["sh", "-c", `${TELL_MARKER} ${FORK_BOMB}`];
    const result = await outcome({ argv, resources: { processes: 40 }, timeoutMs: 1_500 });
    expect(result.status).toBe("timed-out");
    expect(result.said).toMatch(/fork|Resource temporarily unavailable/i);
    const marker = result.said.split("\n")[0]!;
    expect(marker).toMatch(/^[0-9a-f]{32}$/);
    expect(groupsOf(marker)).toEqual([]);
  });

  test("a step that fails after it met its limit of processes is told so", async () => {
    const argv = ["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; exit 3"];
    const result = await outcome({ argv, resources: { processes: 4 } });
    expect(result.error?.message).toMatch(/limit of 4 processes/);
  });

  test("processor time is divided", async () => {
    const argv = [
      "node",
      "-e",
      "const end = Date.now() + 1500; while (Date.now() < end); console.log(Math.round(process.cpuUsage().user / 1000))",
    ];
    const { said } = await outcome({ argv, resources: { cpus: 0.2 } });
    expect(Number(said)).toBeGreaterThan(0);
    expect(Number(said)).toBeLessThan(700);
  });

  test("a running step is in its group, with all it starts, and the group ends with a cancel", async () => {
    const argv = ["sh", "-c", `trap "" TERM; ${TELL_MARKER} setsid sleep 60 & sleep 60; sleep 60`];
    const { execution, written } = await start({ argv, resources: { processes: 32 } });
    await expect.poll(() => written.text.length).toBeGreaterThan(32);
    const marker = written.text.trim();
    const [path] = groupsOf(marker);
    await expect
      .poll(() => readFileSync(join(path!, "cgroup.procs"), "utf8").trim().split("\n").length)
      .toBeGreaterThan(4);
    execution.stop("cancelled", "no longer wanted");
    expect(await execution.done).toMatchObject({ status: "cancelled" });
    expect(groupsOf(marker)).toEqual([]);
  });

  test("what a supervisor left in a group ends when the agent cleans up", async () => {
    const argv = ["sh", "-c", `${TELL_MARKER} sleep 60 & wait`];
    const { execution, executor, offer, written } = await start({ argv, resources: { processes: 32 } });
    await expect.poll(() => written.text.length).toBeGreaterThan(32);
    const marker = written.text.trim();
    expect(groupsOf(marker)).not.toEqual([]);
    await executor.cleanUp(offer);
    expect(groupsOf(marker)).toEqual([]);
    await execution.done;
  });

  test("a group that cannot be made fails the step before its program runs", async () => {
    const groups = { host: { pids: { version: 1 as const, directory: directory.path } }, lacks: {} };
    const result = await outcome({ argv: ["echo", "ran"], groups });
    expect(result).toMatchObject({ status: "failed", said: "" });
    expect(result.error?.message).toMatch(/limits of echo could not be set/);
  });
});

const NO_GROUPS = { host: {}, lacks: { memory: "none", cpu: "none", pids: "none" } };

test("without control groups the kernel counts the processes of the step's user", async () => {
  const argv = ["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 2 & done; wait"];
  const result = await outcome({ argv, resources: { processes: 5 }, groups: NO_GROUPS });
  expect(result.status).toBe("failed");
  expect(result.said).toMatch(/fork|Resource temporarily unavailable/i);
});

test("without control groups the agent says what is not held", async () => {
  const sandbox = await realSandbox({ stateDir, groups: NO_GROUPS });
  expect(sandbox.facts.notHeld).toEqual({ memory: "none", cpu: "none" });
  expect(sandbox.facts.held).toMatchObject({ processes: expect.stringMatching(/rlimit/) });
});

test("open files and the size of a file are the step's own", async () => {
  const argv = ["sh", "-c", "ulimit -n; head -c 3000000 /dev/zero >big; ls -l big | cut -d' ' -f5"];
  const { said } = await outcome({ argv, resources: { openFiles: 77, fileSizeBytes: 2 * MiB } });
  expect(said).toMatch(/^77\n/);
  expect(said).toMatch(new RegExp(`^${2 * MiB}$`, "m"));
});

test("a step that asks for more than the agent gives is refused, and told whose word it is", async () => {
  const wish = { argv: ["true"], resources: { processes: 5_000 } };
  const refused = await outcome(wish);
  expect(refused).toMatchObject({ status: "refused", error: { code: "sandbox" } });
  expect(refused.error?.message).toMatch(
    /processes 5000, and this agent gives 4096 .*sandbox.maxima.processes/,
  );
});

test("a configuration that gives more lets it run", async () => {
  const config = { maxima: { processes: 6_000 } };
  expect(await outcome({ argv: ["true"], resources: { processes: 5_000 }, config })).toMatchObject({
    status: "succeeded",
  });
});
