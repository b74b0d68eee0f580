/** What a step may take of its host: what it asks for, within what the agent's configuration gives. Pure. */
import type { ResourcesSpec } from "../../shared/model/spec.ts";
import { formatSize } from "../../shared/model/units.ts";
import type { SandboxConfig } from "./sandbox-config.ts";

export interface StepLimits {
  memoryBytes: number;
  /** Undefined: all that the others leave. */
  cpus: number | undefined;
  processes: number;
  openFiles: number;
  fileSizeBytes: number;
}

/** Of the memory that the agent itself may have; the rest is for the agent, its supervisor and the system. */
const MEMORY_SHARE = 0.8;
const BYTES = new Set(["memoryBytes", "fileSizeBytes"]);
/** As a document and as the configuration call them. */
const WORDS = {
  memoryBytes: "memory",
  cpus: "cpu",
  processes: "processes",
  openFiles: "openFiles",
  fileSizeBytes: "fileSize",
} as const;

/** A message when the step asks for more than the agent gives. */
export function limitsOf(
  asked: ResourcesSpec,
  { limits, maxima }: Pick<SandboxConfig, "limits" | "maxima">,
  hostMemoryBytes: number,
): StepLimits | string {
  const defaults: StepLimits = {
    memoryBytes: limits.memoryBytes ?? Math.floor(hostMemoryBytes * MEMORY_SHARE),
    cpus: limits.cpus,
    processes: limits.processes,
    openFiles: limits.openFiles,
    fileSizeBytes: limits.fileSizeBytes,
  };
  for (const name of Object.keys(WORDS) as (keyof typeof WORDS)[]) {
    const [wanted, usual, most] = [asked[name], defaults[name], maxima[name]];
    const ceiling = usual === undefined ? most : Math.max(usual, most ?? usual);
    if (wanted === undefined || ceiling === undefined || wanted <= ceiling) continue;
    const show = (value: number): string => (BYTES.has(name) ? formatSize(value) : String(value));
    return `the step asks for ${WORDS[name]} ${show(wanted)}, and this agent gives ${show(ceiling)} at most; ask for less, or raise sandbox.maxima.${name} in the agent's configuration`;
  }
  return {
    memoryBytes: asked.memoryBytes ?? defaults.memoryBytes,
    cpus: asked.cpus ?? defaults.cpus,
    processes: asked.processes ?? defaults.processes,
    openFiles: asked.openFiles ?? defaults.openFiles,
    fileSizeBytes: asked.fileSizeBytes ?? defaults.fileSizeBytes,
  };
}
