/** What a box with its control group adds to a process that does nothing, without the rest of the product. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { probeHost } from "../../agent/sandbox/box-host.ts";
import { spawnBoxed } from "../../agent/sandbox/boxed-process.ts";
import { memoryOfHost, probeGroups } from "../../agent/sandbox/group-host.ts";
import { Sandbox } from "../../agent/sandbox/sandbox.ts";
import { SandboxConfig } from "../../agent/sandbox/sandbox-config.ts";
import { makeGroup, removeGroup } from "../../agent/sandbox/step-group.ts";
import { systemClock } from "../../shared/system.ts";
import { median } from "./statistics.ts";

export interface BoxCost {
  /** Medians, from the spawn to the end. */
  plainMs: number;
  boxedMs: number;
  /** What held its limits, like "cgroup v2". */
  memory: string;
}

/** A reason where this host cannot box. */
export async function measureBoxes(rounds: number): Promise<BoxCost | string> {
  const config = SandboxConfig.parse({});
  const facts = await probeHost({ path: process.env.PATH ?? "", user: config.user, clock: systemClock });
  if (!facts.can) return facts.reason;
  const stateDir = mkdtempSync(join(tmpdir(), "insitu-bench-"));
  const groups = await probeGroups(systemClock);
  const sandbox = new Sandbox({
    ...{ config, facts, groups, stateDir },
    hostMemoryBytes: memoryOfHost(),
    datasets: {},
  });
  const plain: number[] = [];
  const boxed: number[] = [];
  try {
    for (let i = 0; i < rounds; i++) {
      plain.push(await timed(runPlain));
      boxed.push(await timed(() => runBoxed(sandbox, `bench-${process.pid}-${i}`)));
    }
  } finally {
    rmSync(stateDir, { recursive: true, force: true });
  }
  return {
    plainMs: median(plain),
    boxedMs: median(boxed),
    memory: sandbox.facts.held.memory ?? "no control group",
  };
}

async function timed(run: () => Promise<void>): Promise<number> {
  const start = systemClock.monotonicMs();
  await run();
  return systemClock.monotonicMs() - start;
}

async function runPlain(): Promise<void> {
  await once(spawn("true", [], { stdio: ["ignore", "pipe", "pipe"], detached: true }), "close");
}

async function runBoxed(sandbox: Sandbox, marker: string): Promise<void> {
  const step = { reads: [], writes: [] };
  const planned = sandbox.plan({
    step,
    marker,
    argv: ["true"],
    env: {},
    cwd: "/",
    writable: [],
    readable: [],
  });
  if (planned.kind !== "boxed") throw new Error(`the process was not boxed: ${planned.kind}`);
  const { group } = planned.box;
  if (group) makeGroup(group);
  const boxed = spawnBoxed(planned.box, systemClock);
  boxed.child.stdout?.resume();
  boxed.child.stderr?.resume();
  const [code] = (await once(boxed.child, "close")) as [number | null];
  if (group) await removeGroup(group, systemClock);
  if (code !== 0 || boxed.trouble()) throw new Error(`the boxed process ended with ${code}`);
}
