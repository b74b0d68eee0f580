/** A disk that is full in earnest: a small file system of its own, which takes root to mount. */
import { spawnSync } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { leaseKey, offerOf, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { NO_SANDBOX } from "../sandbox/sandbox.fixture.ts";
import { TestSupervisors } from "../supervisor/supervisor.fixture.ts";
import { ProcessExecutor } from "./process-executor.ts";

let directory: TestDirectory;
let disk: string;
let supervisors: TestSupervisors;

const run = (command: string, ...args: string[]): boolean =>
  spawnSync(command, args, { stdio: "ignore" }).status === 0;

function canMount(): boolean {
  using probe = testDirectory();
  return run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", probe.path) && run("umount", probe.path);
}

beforeEach(() => {
  directory = testDirectory();
  disk = join(directory.path, "disk");
  mkdirSync(disk);
  run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk);
  supervisors = new TestSupervisors(directory.path);
});
afterEach(async () => {
  await supervisors.stop();
  run("umount", "-l", disk);
  directory[Symbol.dispose]();
});

/** To the last byte. */
function fill(file: string): void {
  const fd = openSync(file, "w");
  const piece = Buffer.alloc(4096, 1);
  try {
    for (;;) writeSync(fd, piece);
  } catch (thrown) {
    expect((thrown as NodeJS.ErrnoException).code).toBe("ENOSPC");
  } finally {
    closeSync(fd);
  }
}

function start(offer: ReturnType<typeof offerOf>) {
  const executor = new ProcessExecutor({
    clock: systemClock,
    stateDir: disk,
    datasets: {},
    stepEnv: { PATH: process.env.PATH ?? "" },
    sandbox: NO_SANDBOX,
    killGraceMs: 300,
    supervisors,
  });
  const io = { log: () => true, onDrain: () => undefined, storedOffset: 0, dropped: () => undefined };
  return executor.start(offer, io);
}

const offer = (step: Partial<ReturnType<typeof stepSpec>>, files: Record<string, string> = {}) =>
  offerOf({ step: stepSpec("fit", step), files });

test.skipIf(!canMount())(
  "a disk that fills up while a step runs costs it nothing of its true end",
  async () => {
    const [began, go] = [join(directory.path, "began"), join(directory.path, "go")];
    const text = `echo > ${began}; while [ ! -e ${go} ]; do sleep 0.02; done; echo no room; exit 3`;
    const execution = start(offer({ executor: { kind: "process", argv: ["sh", "-c", text] } }));
    while (!existsSync(began)) await systemClock.sleep(5);
    fill(join(disk, "filler"));
    writeFileSync(go, "");
    expect(await execution.done).toMatchObject({ status: "failed", exitCode: 3 });
  },
);

test.skipIf(!canMount())(
  "a step that a full disk has no room for does not begin, and is given back",
  async () => {
    const ran = join(directory.path, "ran");
    fill(join(disk, "filler"));
    const execution = start(offer({ executor: { kind: "process", argv: ["sh", "-c", `echo > ${ran}`] } }));
    expect(await execution.done).toMatchObject({ status: "interrupted", error: { code: "disk-full" } });
    expect(existsSync(ran)).toBe(false);
    // The supervisor lives, and runs the next one when there is room.
    rmSync(join(disk, "filler"));
    const lease = leaseKey({ runId: "run-2" });
    const next = start({ ...offer({ executor: { kind: "process", argv: ["sh", "-c", "exit 4"] } }), lease });
    expect(await next.done).toMatchObject({ status: "failed", exitCode: 4 });
  },
);

test.skipIf(!canMount())("a step for whose files there is no room is interrupted, not failed", async () => {
  fill(join(disk, "filler"));
  const files = { big: "x".repeat(100_000) };
  const execution = start(offer({ executor: { kind: "process", argv: ["true"] }, files: ["big"] }, files));
  expect(await execution.done).toMatchObject({ status: "interrupted", error: { code: "disk-full" } });
});
