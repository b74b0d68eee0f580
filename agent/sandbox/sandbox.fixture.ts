/** A sandbox for the agent's tests: the real one, or none. */

import { systemClock } from "../../shared/system.ts";
import type { AttemptIo } from "../executors/executor.ts";
import { type HostFacts, probeHost } from "./box-host.ts";
import { type GroupFacts, memoryOfHost, probeGroups } from "./group-host.ts";
import { Sandbox } from "./sandbox.ts";
import { SandboxConfig } from "./sandbox-config.ts";

export const NO_SANDBOX = new Sandbox({
  config: SandboxConfig.parse({ mode: "off", unboxedUpTo: "secret" }),
  facts: { can: false, reason: "switched off" },
  groups: { host: {}, lacks: {} },
  hostMemoryBytes: 2 ** 30,
  stateDir: "/nonexistent",
  datasets: {},
});

let facts: Promise<HostFacts> | undefined;

export async function realSandbox(options: {
  stateDir: string;
  datasets?: Record<string, string>;
  config?: object;
  hidden?: string[];
  groups?: GroupFacts;
}): Promise<Sandbox> {
  const config = SandboxConfig.parse({ mode: "required", ...options.config });
  facts ??= probeHost({ path: process.env.PATH ?? "", user: config.user, clock: systemClock });
  return new Sandbox({
    config,
    facts: await facts,
    groups: options.groups ?? (await probeGroups(systemClock)),
    hostMemoryBytes: memoryOfHost(),
    stateDir: options.stateDir,
    datasets: options.datasets ?? {},
    hidden: options.hidden ?? [],
  });
}

/** What a step says, all streams together. */
export class Written implements AttemptIo {
  text = "";
  log(_stream: string, data: Buffer): boolean {
    this.text += data.toString("utf8");
    return true;
  }
  onDrain(): void {}
  readonly storedOffset = 0;
  dropped(): void {}
}
