/** The agent's sandbox: what its configuration asks for, what the host can do, and the box of each step. */
import { readdirSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { join } from "node:path";
import { digestOfImage } from "../../shared/model/image.ts";
import type { Classification, StepSpec } from "../../shared/model/spec.ts";
import { CLASSIFICATIONS } from "../../shared/model/spec.ts";
import { parseTarget } from "../../shared/model/target.ts";
import type { BoxRecord } from "../../shared/wire/attempt.ts";
import { matchesTarget, namesAddress } from "../policy/target-rule.ts";
import type { HostFacts } from "./box-host.ts";
import { type Box, type BoxImage, EXPORTABLE, exposed, planBox } from "./box-plan.ts";
import type { GroupFacts } from "./group-host.ts";
import { CONTROLLERS, groupDirectories, planGroup, type StepGroup } from "./group-plan.ts";
import { layImage } from "./image-root.ts";
import { type NetworkPlan, planNetwork } from "./network-plan.ts";
import type { SandboxConfig } from "./sandbox-config.ts";
import { limitsOf } from "./step-limits.ts";

export interface SandboxOptions {
  config: SandboxConfig;
  facts: HostFacts;
  groups: GroupFacts;
  /** Of which a step gets a share when nobody says how much. */
  hostMemoryBytes: number;
  stateDir: string;
  datasets: Readonly<Record<string, string>>;
  /** Files of the agent that no step may see, besides its state. */
  hidden?: readonly string[];
}

/** What a step is to be given. Paths are those of the host. */
export interface BoxWishes {
  step: Pick<StepSpec, "reads" | "writes" | "resources">;
  /** Names the attempt's control group. */
  marker: string;
  argv: readonly string[];
  env: Readonly<Record<string, string>>;
  cwd: string;
  writable: readonly string[];
  readable: readonly string[];
  secrets?: Readonly<Record<string, Buffer>>;
  network?: { plan: NetworkPlan; hosts: string } | undefined;
  /** Missing: the step sees the host's programs. `etc`: made by `writeImageEtc`. */
  image?: { rootfs: string; etc: string } | undefined;
}

export interface SandboxFacts {
  /** Whether every process step is boxed. */
  boxes: boolean;
  /** What in, or why not. */
  summary: string;
  /** Limit, as a step's `resources` call it, to what holds it. Empty without a box. */
  held: Record<string, string>;
  /** Limit to why it is not held. */
  notHeld: Record<string, string>;
  /** Without boxes: the highest class of data that a step may read here all the same; empty for none. */
  unboxedUpTo: string;
  /** Whether a step that is to be let out to some hosts, and to no other, can be. */
  letsOut: boolean;
  /** Whether steps can run a container image. */
  runsContainers: boolean;
}

export type Boxed = { kind: "boxed"; box: Box } | { kind: "plain" } | { kind: "refused"; message: string };

const FACT_MAX_CHARS = 500;
const VERSION_MAX_CHARS = 64;

export class Sandbox {
  readonly #options: SandboxOptions;

  constructor(options: SandboxOptions) {
    this.#options = options;
  }

  /** One line for the log: what steps run in. */
  get summary(): string {
    const { config, facts } = this.#options;
    if (config.mode === "off") return "off: steps are plain processes";
    if (!facts.can) return `none: ${facts.reason}`;
    return `bubblewrap ${facts.host.version} (${facts.host.mode})`;
  }

  /** As the control plane is told. */
  get facts(): SandboxFacts {
    const { boxes } = this;
    // What a program complained of can be long, and the control plane takes no hello with it.
    const summary = this.summary.slice(0, FACT_MAX_CHARS);
    const { host, lacks } = this.#options.groups;
    const held: Record<string, string> = {};
    const notHeld: Record<string, string> = {};
    const { mode, unboxedUpTo: upTo } = this.#options.config;
    const unboxedUpTo = mode === "required" ? "" : upTo;
    const { letsOut, runsContainers } = this;
    if (!boxes) return { boxes, summary, held, notHeld, unboxedUpTo, letsOut, runsContainers };
    held.openFiles = "rlimit";
    held.fileSize = "rlimit";
    for (const controller of CONTROLLERS) {
      const base = host[controller];
      const name = controller === "pids" ? "processes" : controller;
      if (base) held[name] = `cgroup v${base.version}`;
      else if (controller === "pids") held[name] = "rlimit, of all processes of the step's user";
      else notHeld[name] = (lacks[controller] ?? "no control groups").slice(0, FACT_MAX_CHARS);
    }
    return { boxes, summary, held, notHeld, unboxedUpTo, letsOut, runsContainers };
  }

  /** The attempt's control groups, whether they are there or not: for whoever ends what another has left. */
  groupOf(marker: string): Pick<StepGroup, "directories"> {
    return this.boxes ? groupDirectories(this.#options.groups.host, marker) : { directories: [] };
  }

  /** Whether steps are boxed. When they are, every one is: a box that fails is no reason to go without. */
  get boxes(): boolean {
    return this.#options.config.mode !== "off" && this.#options.facts.can;
  }

  /** Of a directory that a boxed step is to write. Undefined: the agent's own user. */
  get owner(): { uid: number; gid: number } | undefined {
    const { config, facts } = this.#options;
    return this.boxes && facts.can && facts.host.mode === "drop" ? config.user : undefined;
  }

  /** Why this agent does not start a step that reads data of that class, or requires a box; undefined when it does. */
  refusal(highest: Classification | null, isRequired = false): string | undefined {
    const { config } = this.#options;
    if (this.boxes) return undefined;
    const why = `this agent has no sandbox (${this.summary})`;
    if (config.mode === "required") return `${why}, and its configuration requires one`;
    if (isRequired) return `${why}, and the step requires one`;
    const level = highest === null ? -1 : CLASSIFICATIONS.indexOf(highest);
    if (level <= CLASSIFICATIONS.indexOf(config.unboxedUpTo)) return undefined;
    return `${why}, and without one it takes no step that reads data classed above ${config.unboxedUpTo} (sandbox.unboxedUpTo)`;
  }

  get letsOut(): boolean {
    return this.boxes && this.noWayOut === undefined;
  }

  /** Why no step can be let out to some hosts alone; undefined when it can. */
  get noWayOut(): string | undefined {
    const { facts } = this.#options;
    return facts.can ? facts.noWayOut : facts.reason;
  }

  get runsContainers(): boolean {
    return this.boxes && this.noImages === undefined;
  }

  /** Why no step can run a container image; undefined when it can. */
  get noImages(): string | undefined {
    const { facts } = this.#options;
    return facts.can ? facts.noImages : facts.reason;
  }

  /** As its outcome tells. */
  recordOf({ executor, network }: Pick<StepSpec, "executor" | "network">): BoxRecord {
    const { facts } = this.#options;
    if (!this.boxes || !facts.can) return { kind: "none", version: "", network: "host", limits: {} };
    return {
      kind: "bubblewrap",
      version: facts.host.version.slice(0, VERSION_MAX_CHARS),
      network: network ? "allow-list" : "none",
      limits: this.facts.held,
      ...(executor.kind === "container" ? { image: digestOfImage(executor.image) } : {}),
    };
  }

  /** Undefined: the step asks for no network. A message: it is not given what it asks for. */
  planNetwork({ network }: Pick<StepSpec, "network">): NetworkPlan | string | undefined {
    if (!network) return undefined;
    const { config, facts } = this.#options;
    if (!this.boxes || !facts.can)
      return `this agent has no sandbox (${this.summary}), and without one it cannot let a step out to some hosts alone`;
    if (facts.noWayOut !== undefined) return `this agent cannot let steps out: ${facts.noWayOut}`;
    const closed = network.allow.filter((text) => {
      const target = parseTarget(text);
      return target === undefined || !config.egress.some((rule) => matchesTarget(rule, target));
    });
    if (closed.length > 0)
      return `this agent lets no step out to ${closed.join(", ")}; its site may allow it (sandbox.egress in the agent's configuration)`;
    const mayBeLocal = (target: Parameters<typeof namesAddress>[1]): boolean =>
      config.egress.some((rule) => namesAddress(rule, target));
    return planNetwork({ allow: network.allow, mayBeLocal, host: facts.host });
  }

  plan({ step, marker, argv, env, cwd, writable, readable, secrets = {}, network, image }: BoxWishes): Boxed {
    const { config, facts, groups, hostMemoryBytes, datasets } = this.#options;
    if (!this.boxes || !facts.can) return { kind: "plain" };
    const bad = Object.keys(env).find((name) => !EXPORTABLE.test(name));
    if (bad !== undefined)
      return {
        kind: "refused",
        message: `a boxed step cannot be given an environment variable named ${bad}`,
      };
    const paths = (names: readonly string[]): string[] =>
      names.map((name) => datasets[name] ?? "").filter(isLocal);
    const writes = paths(step.writes);
    const reads = paths(step.reads).filter((path) => !writes.includes(path));
    // An image brings its own programs along.
    const others = image ? [] : config.paths;
    const missing = [...reads, ...writes, ...others].find((path) => realOf(path) === undefined);
    if (missing !== undefined)
      return {
        kind: "refused",
        message: `there is no ${missing} on this host; create it, or correct the agent's configuration`,
      };
    const limits = limitsOf(step.resources ?? {}, config, hostMemoryBytes);
    if (typeof limits === "string") return { kind: "refused", message: limits };
    const own = [...writable, ...readable];
    const system = image ? [] : facts.host.system.map(({ path }) => path);
    const shown = [...system, ...reads, ...writes, ...others];
    const root = image && this.#imageRoot(image, [...own, ...reads, ...writes]);
    if (typeof root === "string") return { kind: "refused", message: root };
    return {
      kind: "boxed",
      box: planBox(facts.host, {
        argv,
        env,
        cwd,
        writable: [...writable, ...writes],
        readable: [...readable, ...reads, ...others],
        hidden: this.#hidden(shown, [...reads, ...writes], own),
        user: config.user,
        limits: {
          openFiles: limits.openFiles,
          fileSizeBytes: limits.fileSizeBytes,
          tmpBytes: config.limits.tmpBytes,
          processes: groups.host.pids ? undefined : limits.processes,
        },
        group: planGroup(groups.host, marker, limits),
        secrets,
        network,
        image: root,
      }),
    };
  }

  #imageRoot({ rootfs, etc }: { rootfs: string; etc: string }, laid: readonly string[]): BoxImage | string {
    const { facts } = this.#options;
    if (!facts.can || !facts.host.launcher) return `this agent cannot run container images: ${this.noImages}`;
    const entries = layImage(rootfs, laid, {
      list: (directory) => readdirSync(join(rootfs, directory), { withFileTypes: true }),
      targetOf: (link) => readlinkSync(join(rootfs, link)),
    });
    return typeof entries === "string" ? entries : { launcher: facts.host.launcher, entries, etc };
  }

  /** The agent's state and the datasets that the step does not name, where they lie below something that it sees. */
  #hidden(shown: readonly string[], declared: readonly string[], own: readonly string[]) {
    const { stateDir, datasets, hidden: files = [] } = this.#options;
    const reals = (paths: readonly string[]): string[] => paths.map((path) => realOf(path) ?? path);
    const named = new Set(reals(declared));
    const secret = reals([stateDir, ...files, ...Object.values(datasets).filter(isLocal)]).filter(
      (path) => !named.has(path),
    );
    const candidates = [...new Set(secret)].flatMap((path) => {
      const kind = kindOf(path);
      return kind === undefined ? [] : [{ path, kind }];
    });
    const seen = [...new Set(shown)].map((path) => ({ path, real: realOf(path) ?? path }));
    return exposed(seen, candidates).filter(({ path }) => !own.includes(path));
  }
}

function isLocal(path: string): boolean {
  return path.startsWith("/");
}

function realOf(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined; // not there, or behind a link that leads nowhere
  }
}

function kindOf(path: string): "directory" | "file" | undefined {
  try {
    return statSync(path).isDirectory() ? "directory" : "file";
  } catch {
    return undefined; // not there: nothing to hide
  }
}
