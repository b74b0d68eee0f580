/**
 * LMDB as the program has it, in whose place a test bundles this one: the process kills itself with SIGKILL before or
 * after the transaction that `INSITU_TEST_KILL_AT` names, like `3:before`.
 */
import { createRequire } from "node:module";
import type { RootDatabase, RootDatabaseOptionsWithPath } from "lmdb";

const real = createRequire(import.meta.url)("lmdb") as typeof import("lmdb");
const [number = "0", moment = "before"] = (process.env.INSITU_TEST_KILL_AT ?? "").split(":");
let count = 0;

export function open(options: RootDatabaseOptionsWithPath): RootDatabase {
  const root = real.open(options);
  const commit = root.transactionSync.bind(root) as RootDatabase["transactionSync"];
  root.transactionSync = ((run: () => unknown) => {
    count += 1;
    const now = count === Number(number);
    if (now && moment === "before") process.kill(process.pid, "SIGKILL");
    const result = commit(run);
    if (now && moment === "after") process.kill(process.pid, "SIGKILL");
    return result;
  }) as RootDatabase["transactionSync"];
  return root;
}
