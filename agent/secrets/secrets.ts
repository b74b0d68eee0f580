/** The secrets of this site: each is fetched anew for each attempt, so that a rotated one needs no restart. */
import { statfsSync } from "node:fs";
import type { SecretSpec } from "../../shared/model/spec.ts";
import type { Clock } from "../../shared/system.ts";
import { coreOf, SECRET_MIN_BYTES } from "./encodings.ts";
import { readFromProgram } from "./exec-source.ts";
import { readPrivateFile } from "./private-file.ts";
import type { SecretSource, SecretsConfig, VaultConfig } from "./secret-config.ts";
import { SECRET_MAX_BYTES, SecretError } from "./secret-error.ts";
import { readFromVault } from "./vault-source.ts";

/** Waits between tries, while where a secret comes from is away. */
const WAITS_MS = [500, 2_000];
/** `f_type` of statfs(2): tmpfs and ramfs. */
const MEMORY_TYPES = new Set([0x01021994, 0x858458f6]);

export interface SecretsOptions {
  clock: Clock;
  sources: SecretsConfig;
  vault?: VaultConfig | undefined;
  /** Of the agent's own process. */
  environment: Readonly<Record<string, string | undefined>>;
  /** Where files of steps without a box may lie, when they lie in memory there. The first that does is taken. */
  memoryDirectories: readonly string[];
}

export interface SecretsWanted {
  /** Variable → secret. */
  wanted: Readonly<Record<string, SecretSpec>>;
  /** Whose step asks. */
  pipeline: string;
}

/** For one step. */
export interface ResolvedSecrets {
  /** Variable → value, of those that are asked for as such. */
  env: Record<string, string>;
  /** Variable → bytes, of those that are asked for as files. */
  files: Record<string, Buffer>;
  /** What is to be masked. */
  values: Buffer[];
}

export class Secrets {
  readonly #options: SecretsOptions;

  constructor(options: SecretsOptions) {
    this.#options = options;
  }

  /** In memory, for secrets of steps without a box. Undefined when there is none. */
  get memoryDirectory(): string | undefined {
    return this.#options.memoryDirectories.find(isMemory);
  }

  /** @throws SecretError with every secret that cannot be had */
  async resolve({ wanted, pipeline }: SecretsWanted, signal: AbortSignal): Promise<ResolvedSecrets> {
    const names = [...new Set(Object.values(wanted).map(({ name }) => name))];
    const settled = await Promise.allSettled(names.map((name) => this.#fetch(name, pipeline, signal)));
    const errors = settled.flatMap((each) =>
      each.status === "rejected" ? [asSecretError(each.reason)] : [],
    );
    if (errors.length > 0) {
      const kind = errors.some((error) => error.kind === "missing") ? "missing" : "unavailable";
      throw new SecretError(kind, errors.map(({ message }) => message).join("; "));
    }
    const byName = new Map(
      settled.flatMap((each, index) =>
        each.status === "fulfilled" ? [[names[index]!, each.value] as const] : [],
      ),
    );
    const resolved: ResolvedSecrets = { env: {}, files: {}, values: [...byName.values()] };
    for (const [variable, { name, as }] of Object.entries(wanted)) {
      const value = byName.get(name)!;
      if (as === "file") resolved.files[variable] = value;
      else resolved.env[variable] = textOf(name, value);
    }
    return resolved;
  }

  async #fetch(name: string, pipeline: string, signal: AbortSignal): Promise<Buffer> {
    const { clock } = this.#options;
    for (const waitMs of [...WAITS_MS, undefined]) {
      try {
        return usable(await this.#read(name, pipeline, signal));
      } catch (thrown) {
        const error = asSecretError(thrown);
        if (error.kind === "missing" || waitMs === undefined || signal.aborted)
          throw new SecretError(error.kind, `secret ${name}: ${error.message}`);
      }
      await clock.sleep(waitMs, signal).catch(() => undefined); // the next try says that it was stopped
    }
    throw new SecretError("unavailable", `secret ${name} could not be fetched`);
  }

  async #read(name: string, pipeline: string, signal: AbortSignal): Promise<Buffer> {
    const { clock, sources, environment, vault } = this.#options;
    const source: SecretSource | undefined = Object.hasOwn(sources, name) ? sources[name] : undefined;
    if (source?.pipelines && !source.pipelines.includes(pipeline))
      throw new SecretError("missing", `this agent gives it to other pipelines than ${pipeline}`);
    switch (source?.from) {
      case "file":
        return await readPrivateFile(source.path);
      case "env": {
        const value = environment[source.variable];
        if (value === undefined)
          throw new SecretError("missing", `the agent's environment has no ${source.variable}`);
        return Buffer.from(value);
      }
      case "exec":
        return await readFromProgram(source, { clock, environment, signal });
      case "vault":
        if (!vault) throw new SecretError("missing", "the agent's configuration names no vault");
        return await readFromVault(source, { clock, vault, signal });
      default:
        throw new SecretError("missing", "not known at this agent; add it to `secrets` in its configuration");
    }
  }
}

function usable(value: Buffer): Buffer {
  if (value.length > SECRET_MAX_BYTES)
    throw new SecretError("missing", `it has ${value.length} bytes; ${SECRET_MAX_BYTES} are allowed`);
  // Its length is not said: it is part of the value.
  if (coreOf(value).length < SECRET_MIN_BYTES)
    throw new SecretError(
      "missing",
      `it is shorter than ${SECRET_MIN_BYTES} bytes, and could not be masked in logs`,
    );
  return value;
}

/** As a shell's `$(…)` does it: without the line ends behind it. */
function textOf(name: string, value: Buffer): string {
  const core = coreOf(value);
  const text = core.toString("utf8");
  if (!core.includes(0) && Buffer.from(text).equals(core)) return text;
  const why = "it holds bytes that no environment variable can; ask for it with `as: file`";
  throw new SecretError("missing", `secret ${name}: ${why}`);
}

/** What was not expected is not shown: nobody knows what its message quotes. */
function asSecretError(thrown: unknown): SecretError {
  if (thrown instanceof SecretError) return thrown;
  const { code, name } = thrown as NodeJS.ErrnoException;
  return new SecretError("unavailable", `it could not be fetched (${code ?? name})`);
}

function isMemory(directory: string): boolean {
  try {
    return MEMORY_TYPES.has(statfsSync(directory).type);
  } catch {
    return false; // not there
  }
}
