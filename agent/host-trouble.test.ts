/** What is wrong with the host and not with a step: a program that has gone, a disk that is full. */
import { spawnSync } from "node:child_process";
import { copyFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Outcome } from "../shared/wire/attempt.ts";
import { leaseKey, type TestDirectory, testDirectory } from "./agent.fixture.ts";
import type { Bundle } from "./bundle.fixture.ts";
import { bundleProgram, shell, TestSite } from "./program.fixture.ts";

let program: Bundle;
let site: TestSite;

beforeAll(async () => {
  program = await bundleProgram();
});
afterAll(() => program?.[Symbol.dispose]());

const run = (command: string, ...args: string[]): boolean =>
  spawnSync(command, args, { stdio: "ignore" }).status === 0;
const said = (reason: RegExp) =>
  site.gateway.until.holds(() => reason.test(site.gateway.heartbeats.at(-1)?.notTakingWork ?? ""));
const takesWork = () => site.gateway.until.holds(() => site.gateway.heartbeats.at(-1)?.notTakingWork === "");
const runOf = (n: number) => ({ lease: leaseKey({ runId: `run-${n}` }) });

test("when its Node has gone, an agent gives steps back, says why it takes no more, and lives", async () => {
  await using own = await TestSite.open(program);
  site = own;
  const node = join(site.path, "node");
  copyFileSync(process.execPath, node);
  const child = site.start({ node });
  await site.gateway.until.holds(() => site.gateway.heartbeats.length > 0);
  rmSync(node); // as an upgrade of Node does
  await site.publish(shell("true"));
  await site.ended();
  expect(site.outcomes()).toMatchObject([
    {
      status: "interrupted",
      error: { code: "supervisor", message: expect.stringMatching(/ENOENT.*restart/) },
    },
  ]);
  await said(/supervisor of steps does not start: .*ENOENT/);
  expect(child.exitCode ?? child.signalCode).toBeNull();
  // Put back, it takes work again by itself.
  copyFileSync(process.execPath, node);
  await takesWork();
  await site.publish(shell("exit 3", runOf(2)));
  await site.ended(2);
  expect(site.outcomes()[1]).toMatchObject({ status: "failed", exitCode: 3 });
}, 60_000);

/** A small file system of its own, to be filled. Undefined for who may not mount one. */
function smallDisk(): TestDirectory | undefined {
  const directory = testDirectory();
  if (!run("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", directory.path)) {
    directory[Symbol.dispose]();
    return undefined;
  }
  return {
    path: directory.path,
    [Symbol.dispose]() {
      run("umount", "-l", directory.path);
      directory[Symbol.dispose]();
    },
  };
}

test("with its disk full an agent finishes what it holds, takes no more, says so, and takes work again when there is room", async ({
  skip,
}) => {
  using elsewhere = testDirectory();
  const disk = smallDisk();
  if (!disk) return skip("only root may mount a disk that is small enough to be filled");
  await using full = await TestSite.open(program, { directory: disk });
  site = full;
  site.start();
  const gate = join(elsewhere.path, "gate");
  await site.publish(shell(`echo begun; while [ ! -e ${gate} ]; do sleep 0.02; done; echo ended; exit 5`));
  await site.gateway.until.holds(() => site.logText() === "begun\n");
  const filler = join(site.path, "filler");
  run("sh", "-c", `cat /dev/zero > ${filler}`); // to the last byte
  await said(/disk is nearly full/);
  await site.publish(shell("exit 6", runOf(2)));
  writeFileSync(gate, "");
  // Whether there is room for its outcome or not: it is not lost, and nothing else is begun.
  const beats = site.gateway.heartbeats.length;
  await site.gateway.until.holds(() => site.gateway.heartbeats.length > beats + 10);
  expect(site.outcomes().every(({ exitCode }) => exitCode === 5)).toBe(true);
  rmSync(filler);
  await takesWork();
  await site.ended(2);
  expect(site.outcomes().map(({ exitCode }) => exitCode)).toEqual([5, 6]);
  const [{ logDroppedBytes, logBytes }] = site.outcomes() as [Outcome, Outcome];
  await site.gateway.until.holds(() => site.logText().length === logBytes - logDroppedBytes);
}, 60_000);
