/** One call of the command line: what every command is given. */
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { ApiClient } from "./client.ts";
import type { Settings } from "./config.ts";
import { Output, parseFormat } from "./output.ts";
import type { Terminal } from "./terminal.ts";

export interface GlobalOptions {
  output: string;
  server?: string;
  token?: string;
  caFile?: string;
  color: boolean;
}

export interface World {
  terminal: Terminal;
  settings: Settings;
  clock: Clock;
  env: NodeJS.ProcessEnv;
  /** Path of the running program, to start it again as a child. */
  program: string;
  /** Aborts with `cancelled` at Ctrl-C. */
  signal: AbortSignal;
  /** Aborts at the second Ctrl-C. */
  insist: AbortSignal;
}

export class Invocation {
  readonly world: World;
  readonly options: GlobalOptions;
  readonly output: Output;
  #client: ApiClient | null = null;

  constructor(world: World, options: GlobalOptions) {
    this.world = world;
    this.options = options;
    const terminal = options.color ? world.terminal : { ...world.terminal, colorAllowed: false };
    this.output = new Output(terminal, parseFormat(options.output));
  }

  get signal(): AbortSignal {
    return this.world.signal;
  }
  get clock(): Clock {
    return this.world.clock;
  }

  /** Opened when it is first wanted; closed with the invocation. */
  async client(): Promise<ApiClient> {
    const { connectApi } = await import("./client.ts");
    this.#client ??= connectApi(this.options, this.world.settings, this.world.clock);
    return this.#client;
  }

  close(): void {
    this.#client?.close();
  }
}

/** A whole number of `unit`, like `30s`, `5m`, `2h`; milliseconds. */
export function parseDuration(text: string, flag: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text);
  if (!match)
    throw new InsituError("request.invalid", `${flag} takes a duration like 30s, 5m or 2h, not "${text}"`);
  const units = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
  return Math.round(Number(match[1]) * units[match[2] as keyof typeof units]);
}

export function parseCount(text: string, flag: string): number {
  const count = Number(text);
  if (Number.isInteger(count) && count > 0) return count;
  throw new InsituError("request.invalid", `${flag} takes a whole number above zero, not "${text}"`);
}
