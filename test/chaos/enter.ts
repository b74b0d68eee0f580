/**
 * With network namespaces we run in the router ourselves, in a process of our own: from nowhere else can its hosts be
 * reached, and nothing is changed in the network of this machine.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { loadOrCreatePki } from "../../control-plane/access/pki.ts";
import { systemClock } from "../../shared/system.ts";
import { directoryPrefix } from "./leftovers.ts";
import { openRouter } from "./namespace-network.ts";
import { entering, removeNamespaces } from "./namespaces.ts";

/** Runs this program again with the same arguments in a router of its own. Resolves with its exit status. */
export async function runInRouter(args: readonly string[]): Promise<number> {
  const authority = mkdtempSync(directoryPrefix("authority-"));
  try {
    await loadOrCreatePki({ directory: authority, trustDomain: "insitu.local", clock: systemClock });
    const router = openRouter(process.pid);
    const [first, ...rest] = entering(router);
    const inside = ["--inside", `${process.pid}`, "--authority", authority];
    const child = spawn(first!, [...rest, process.execPath, ...args, ...inside], {
      stdio: ["inherit", "inherit", "inherit", "ipc"],
      env: { ...process.env, NODE_EXTRA_CA_CERTS: join(authority, "ca.crt.pem") },
    });
    // It hears of an interrupt by itself and puts all away; our own end waits for that.
    for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => child.kill("SIGTERM"));
    const [code] = (await once(child, "exit")) as [number | null];
    return code ?? 1;
  } finally {
    closeRouter(process.pid, authority);
  }
}

/** With all hosts that are left, and the secrets of the plant. */
export function closeRouter(pid: number, authority: string): void {
  removeNamespaces(pid);
  rmSync(authority, { recursive: true, force: true });
}
