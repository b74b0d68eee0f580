/**
 * Kills the process that loads it with SIGKILL right before the n-th write to disk, counted over the journal's
 * transactions and all calls that change files, or in the middle of that write.
 *
 * Which one is in `kill-at.json` of the agent's state directory, for the agent and its supervisor have no environment
 * in common. At its end a process says there how many writes it made.
 */
import fs from "node:fs";
import { createRequire, syncBuiltinESMExports } from "node:module";
import { dirname, join } from "node:path";
import type { RootDatabase, RootDatabaseOptionsWithPath } from "lmdb";
import { z } from "zod";

export const KillAt = z.object({
  program: z.enum(["agent", "supervisor"]),
  write: z.number(),
  /** Half of its bytes are written. */
  torn: z.boolean(),
});
export type KillAt = z.infer<typeof KillAt>;

const flag = process.argv.indexOf("--state-dir");
const program = flag >= 0 ? "agent" : "supervisor";
/** A supervisor is given `STATE-DIR/supervisors/ID`. */
const stateDir = flag >= 0 ? process.argv[flag + 1]! : dirname(dirname(process.argv[2]!));
const real = { ...fs, promises: { ...fs.promises } };
const killAt = read();
let count = 0;

function read(): KillAt | undefined {
  try {
    const parsed = KillAt.parse(JSON.parse(real.readFileSync(join(stateDir, "kill-at.json"), "utf8")));
    return parsed.program === program ? parsed : undefined;
  } catch {
    return undefined;
  }
}

/** `tear` does half of the write. */
function point(tear?: () => void): void {
  count += 1;
  if (killAt?.write !== count) return;
  if (killAt.torn) tear?.();
  real.writeFileSync(join(stateDir, "killed"), "");
  process.kill(process.pid, "SIGKILL");
}

process.on("exit", () => {
  const written = { program, writes: count };
  try {
    real.writeFileSync(join(stateDir, `writes-${program}.json`), JSON.stringify(written));
  } catch {
    // the site has gone
  }
});

// biome-ignore lint/suspicious/noExplicitAny: whatever the function takes, it is handed on
type Call = (...args: any[]) => unknown;

function before(
  target: Record<string, unknown>,
  name: string,
  tearing?: (args: unknown[]) => () => void,
): void {
  const call = target[name] as Call;
  target[name] = (...args: unknown[]) => {
    // Not what goes to the terminal, and not a file that is only read.
    const counts = typeof args[0] === "number" ? args[0] > 2 : !name.startsWith("open") || isWriting(args[1]);
    if (counts) point(tearing?.(args));
    return call(...args);
  };
}

function isWriting(flags: unknown): boolean {
  if (typeof flags === "string") return /[wa+]/.test(flags);
  return typeof flags === "number" && (flags & (fs.constants.O_WRONLY | fs.constants.O_RDWR)) !== 0;
}

const half = (data: unknown): Buffer => {
  const bytes = Buffer.from(data as string);
  return bytes.subarray(0, bytes.length / 2);
};
const tearWrite = ([fd, data, at, , position]: unknown[]) => {
  return () => {
    const bytes = typeof at === "number" ? (data as Buffer).subarray(at) : data;
    real.writeSync(fd as number, half(bytes), 0, undefined, typeof position === "number" ? position : null);
  };
};
const tearFile = ([path, data]: unknown[]) => {
  return () => real.writeFileSync(path as string, half(data));
};

const functions = fs as unknown as Record<string, unknown>;
for (const name of ["mkdirSync", "renameSync", "rmSync", "openSync", "ftruncateSync", "truncateSync", "open"])
  before(functions, name);
for (const name of ["writeSync", "write"]) before(functions, name, tearWrite);
before(functions, "writeFileSync", tearFile);
const promises = fs.promises as unknown as Record<string, unknown>;
for (const name of ["mkdir", "rename", "rm", "rmdir", "open"]) before(promises, name);
before(promises, "writeFile", tearFile);
syncBuiltinESMExports();

/** In LMDB's place. A transaction has no half: that is its own promise, and its tests hold it. */
export function open(options: RootDatabaseOptionsWithPath): RootDatabase {
  const lmdb = createRequire(import.meta.url)("lmdb") as typeof import("lmdb");
  const root = lmdb.open(options);
  const commit = root.transactionSync.bind(root) as RootDatabase["transactionSync"];
  root.transactionSync = ((run: () => unknown) => {
    point();
    return commit(run);
  }) as RootDatabase["transactionSync"];
  return root;
}
