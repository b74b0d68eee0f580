/** A disk that is full in earnest: a small file system of its own, which takes root to mount. */
import { spawnSync } from "node:child_process";
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { offerOf, type TestDirectory, testDirectory } from "../agent.fixture.ts";
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
  const filler = join(disk, "filler");
  fill(filler);
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
  return { free: () => rmSync(filler), execution: executor.start(offer, io) };
}

const offer = (step: Partial<ReturnType<typeof stepSpec>>, files: Record<string, string> = {}) =>
  offerOf({ step: stepSpec("fit", step), files });

test.skipIf(!canMount())(
  "a step that starts on a full disk is reported with its true end once there is room",
  async () => {
    const argv = ["sh", "-c", "exit 3"];
    const { free, execution } = start(offer({ executor: { kind: "process", argv } }));
    const early = await Promise.race([execution.done, systemClock.sleep(1_500)]);
    expect(early).toBeUndefined();
    free();
    expect(await execution.done).toMatchObject({ status: "failed", exitCode: 3 });
  },
);

test.skipIf(!canMount())("a step for whose files there is no room is interrupted, not failed", async () => {
  const { execution } = start(
    offer({ executor: { kind: "process", argv: ["true"] }, files: ["big"] }, { big: "x".repeat(100_000) }),
  );
  expect(await execution.done).toMatchObject({ status: "interrupted", error: { code: "disk-full" } });
});
