/**
 * Network namespaces by name. A name carries the process that made it, so that what one left behind that was killed
 * is found and removed by the next.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { trySignal } from "./party.ts";

const DIRECTORY = "/run/netns";
const NAME = /^insitu-chaos-(\d+)-/;
const PROBE = `table inet probe {
  chain c {
    type filter hook forward priority 0
    ip saddr . ip daddr { 10.0.0.1 . 10.0.0.2 } meta l4proto tcp reject with tcp reset
    ip saddr . ip daddr { 10.0.0.1 . 10.0.0.2 } numgen random mod 100 < 20 drop
  }
}`;

export function namespaceName(pid: number, party: string): string {
  return `insitu-chaos-${pid}-${party}`;
}

/** @throws Error with what the command said when it fails */
export function run(command: string, args: readonly string[], input?: string): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { input, encoding: "utf8" });
  if (status === 0) return stdout;
  const said = error?.message ?? stderr.trim();
  throw new Error(`${command} ${args.join(" ")}: ${said === "" ? `exit status ${status}` : said}`);
}

/** The words before a command that has it run in a namespace, as the same process. */
export function entering(namespace: string): readonly string[] {
  return ["nsenter", `--net=${DIRECTORY}/${namespace}`, "--"];
}

export function runIn(namespace: string, command: string, args: readonly string[], input?: string): string {
  const [first, ...rest] = entering(namespace);
  return run(first!, [...rest, command, ...args], input);
}

export function addNamespace(namespace: string): void {
  run("ip", ["netns", "add", namespace]);
  run("ip", ["-n", namespace, "link", "set", "lo", "up"]);
}

/** Undefined when all that is needed is there and allowed. */
export function whyNoNamespaces(): string | undefined {
  if (process.getuid?.() !== 0) return "network namespaces need root";
  const tools = { ip: "iproute2", tc: "iproute2", nft: "nftables", nsenter: "util-linux" };
  for (const [tool, pkg] of Object.entries(tools))
    if (spawnSync(tool, ["-V"], { stdio: "ignore" }).error)
      return `network namespaces need ${tool}: apt-get install ${pkg}`;
  const probe = namespaceName(process.pid, "probe");
  try {
    addNamespace(probe);
    run("ip", ["-n", probe, "link", "add", "one", "type", "veth", "peer", "name", "other"]);
    runIn(probe, "nft", ["-f", "-"], PROBE);
    return undefined;
  } catch (err) {
    return `network namespaces do not work here: ${err instanceof Error ? err.message : String(err)}`;
  } finally {
    removeNamespaces(process.pid);
  }
}

/** Ends what still runs in the namespaces that `pid` made, and removes them. */
export function removeNamespaces(pid: number): void {
  for (const name of names().filter((one) => NAME.exec(one)?.[1] === String(pid))) {
    for (const inside of pidsIn(name)) if (inside !== process.pid) trySignal(inside, "SIGKILL");
    spawnSync("ip", ["netns", "del", name], { stdio: "ignore" });
  }
}

/** Of processes that are gone. Gives the names of those it removed. */
export function sweepNamespaces(): string[] {
  const left = names().filter((name) => {
    const pid = NAME.exec(name)?.[1];
    return pid !== undefined && !existsSync(`/proc/${pid}`);
  });
  for (const pid of new Set(left.map((name) => Number(NAME.exec(name)![1])))) removeNamespaces(pid);
  return left;
}

function names(): string[] {
  return existsSync(DIRECTORY) ? readdirSync(DIRECTORY) : [];
}

function pidsIn(namespace: string): number[] {
  const { stdout } = spawnSync("ip", ["netns", "pids", namespace], { encoding: "utf8" });
  return (stdout ?? "")
    .split("\n")
    .filter((line) => line !== "")
    .map(Number);
}
