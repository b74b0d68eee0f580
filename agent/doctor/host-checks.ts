/** What the agent needs of its own host. */
import { constants } from "node:fs";
import { access, mkdtemp, open, rm, stat, statfs } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Clock } from "../../shared/system.ts";
import type { AgentConfig } from "../config.ts";
import type { HostFacts } from "../sandbox/box-host.ts";
import type { Finding } from "./report.ts";

const SYNCS = 15;
const SYNC_BYTES = 4096;
/** A report is on the disk before it is sent: each costs a sync. */
const SYNC_SLOW_MS = 50;
const MiB = 1024 * 1024;

export async function checkDisk(config: AgentConfig, clock: Clock): Promise<Finding> {
  const check = "disk" as const;
  const place = await existing(config.stateDir);
  let directory: string | undefined;
  try {
    directory = await mkdtemp(join(place, ".doctor-"));
    const { bavail, bsize } = await statfs(place);
    const freeBytes = bavail * bsize;
    const free = `${Math.floor(freeBytes / MiB)} MiB free`;
    if (freeBytes < config.diskFreeMinBytes)
      return {
        check,
        level: "fail",
        seen: `${place}: ${free}; below ${config.diskFreeMinBytes / MiB} MiB (diskFreeMinBytes) no work is taken`,
      };
    const syncMs = await medianSyncMs(join(directory, "sync"), clock);
    const seen = `${place}: ${free}, a sync takes ${syncMs.toFixed(1)} ms`;
    const wantedBytes = config.logSpoolMaxBytes + config.outboxMaxBytes;
    if (freeBytes < wantedBytes)
      return {
        check,
        level: "warn",
        seen: `${seen}; a long cut may fill it: up to ${Math.ceil(wantedBytes / MiB)} MiB of logs and reports wait there`,
      };
    if (syncMs > SYNC_SLOW_MS)
      return { check, level: "warn", seen: `${seen}, which is slow: steps wait for it` };
    return { check, level: "ok", seen };
  } catch (err) {
    const { message } = err as Error;
    return {
      check,
      level: "fail",
      seen: `${place} cannot be written (${message}): run this as the agent's user, and see stateDir`,
    };
  } finally {
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  }
}

/** The directory itself, or the nearest one above it that is there. */
async function existing(directory: string): Promise<string> {
  for (let place = directory; ; place = dirname(place)) {
    const found = await stat(place).catch(() => undefined);
    if (found || place === dirname(place)) return place;
  }
}

async function medianSyncMs(file: string, clock: Clock): Promise<number> {
  const handle = await open(file, "w");
  const took: number[] = [];
  try {
    for (let i = 0; i < SYNCS; i++) {
      const startMs = clock.monotonicMs();
      await handle.write(Buffer.alloc(SYNC_BYTES, i));
      await handle.sync();
      took.push(clock.monotonicMs() - startMs);
    }
  } finally {
    await handle.close();
  }
  return took.sort((a, b) => a - b)[Math.floor(SYNCS / 2)]!;
}

export async function checkSandbox(
  { sandbox }: AgentConfig,
  probe: () => Promise<HostFacts>,
): Promise<Finding> {
  const check = "sandbox" as const;
  if (sandbox.mode === "off")
    return { check, level: "warn", seen: "switched off: steps run as plain processes of the agent's user" };
  const facts = await probe();
  if (facts.can) {
    const seen = `steps are boxed by bubblewrap ${facts.host.version}`;
    if (facts.noWayOut === undefined || sandbox.egress.length === 0) return { check, level: "ok", seen };
    const why = `they cannot be let out to the targets of sandbox.egress: ${facts.noWayOut}`;
    return { check, level: "warn", seen: `${seen}, and ${why}` };
  }
  const required = sandbox.mode === "required";
  const meaning = required
    ? "sandbox.mode is required, so the agent does not start"
    : `steps run without one, and those that read data classed above ${sandbox.unboxedUpTo} are refused`;
  return { check, level: required ? "fail" : "warn", seen: `${facts.reason}: ${meaning}` };
}

export async function checkDatasets({ datasets }: AgentConfig): Promise<Finding> {
  const check = "datasets" as const;
  const local = Object.entries(datasets).filter(([, path]) => !path.includes("://"));
  const troubles: string[] = [];
  for (const [name, path] of local) {
    await access(path, constants.R_OK).catch((err: NodeJS.ErrnoException) => {
      troubles.push(
        `${name}: ${path} ${err.code === "ENOENT" ? "is not there" : `cannot be read (${err.code})`}`,
      );
    });
  }
  if (troubles.length > 0) return { check, level: "fail", seen: troubles.join("; ") };
  if (Object.keys(datasets).length === 0)
    return { check, level: "warn", seen: "none: no step that reads a dataset is offered to this agent" };
  const others = Object.keys(datasets).length - local.length;
  const unseen = others === 0 ? "" : `; ${others} that are no paths were not looked at`;
  return { check, level: "ok", seen: `${local.length} can be read by this user${unseen}` };
}
