/** `insitu-agent doctor`, as a person runs it at the site of an agent. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import type { Plant } from "./plant.ts";

export interface Diagnosis {
  code: number;
  ok: boolean;
  seen: Record<string, string>;
  levels: Record<string, string>;
  /** What to ask the network team for. */
  asks: string[];
}

export async function doctor(
  plant: Plant,
  name: string,
  flags: string[] = [],
  within: readonly string[] = [],
): Promise<Diagnosis> {
  const state = join(plant.directory, "sites/site", name);
  const program = [process.execPath, join(plant.dist, "insitu-agent.js"), "doctor"];
  const args = ["--state-dir", state, "--name", name, "-o", "json", ...flags];
  const [command, ...rest] = [...within, ...program, ...args];
  const child = spawn(command!, rest, { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  child.stdout.on("data", (data) => (out += data));
  const [code] = (await once(child, "close")) as [number];
  const { ok, checks } = JSON.parse(out) as {
    ok: boolean;
    checks: { check: string; level: string; seen: string; ask?: string }[];
  };
  return {
    code,
    ok,
    seen: Object.fromEntries(checks.map(({ check, seen }) => [check, seen])),
    levels: Object.fromEntries(checks.map(({ check, level }) => [check, level])),
    asks: checks.flatMap(({ ask }) => ask ?? []),
  };
}
