import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { afterEach, expect, test } from "vitest";
import { signalGroup } from "../executors/process-tree.ts";
import { identityOf, isAlive, isOfAnotherBoot } from "./process-identity.ts";

const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

async function living(): Promise<ChildProcess> {
  const child = spawn("sleep", ["600"], { stdio: "ignore", detached: true });
  children.push(child);
  await once(child, "spawn");
  return child;
}

test("a process is itself for as long as it lives, and nobody afterwards", async () => {
  const child = await living();
  const identity = identityOf(child.pid!);
  expect(isAlive(identity)).toBe(true);
  child.kill("SIGKILL");
  await once(child, "exit");
  expect(isAlive(identity)).toBe(false);
});

test("one that got the number later, or after a restart of the host, is another", async () => {
  const identity = identityOf((await living()).pid!);
  expect(isAlive({ ...identity, startTicks: identity.startTicks! - 1 })).toBe(false);
  const before = { ...identity, bootId: "00000000-0000-0000-0000-000000000000" };
  expect([isOfAnotherBoot(before), isAlive(before)]).toEqual([true, false]);
});

test("a group is signalled under the number of its own leader alone", async () => {
  const child = await living();
  const leader = identityOf(child.pid!);
  expect(signalGroup({ ...leader, startTicks: leader.startTicks! - 1 }, "SIGKILL")).toBe(false);
  expect(child.exitCode ?? child.signalCode).toBeNull();
  expect(signalGroup(leader, "SIGKILL")).toBe(true);
  expect((await once(child, "exit"))[1]).toBe("SIGKILL");
});
