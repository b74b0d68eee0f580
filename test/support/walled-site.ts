/**
 * A host of a site behind a firewall, as a network namespace: from it one TCP port of the control plane can be reached, and
 * whatever else is tried is counted and dropped. Needs root.
 */
import { spawnSync } from "node:child_process";
import { addNamespace, entering, namespaceName, removeNamespaces, run, runIn } from "../chaos/namespaces.ts";

export { whyNoNamespaces } from "../chaos/namespaces.ts";

export class WalledSite implements Disposable {
  /** Of the control plane, as the site sees it. */
  readonly centre: string;
  /** Words before a command that runs there. */
  readonly within: readonly string[];
  readonly #namespace: string;
  readonly #link: string;

  constructor() {
    const { pid } = process;
    // Of 10.214.0.0/16 a /30 for each process, so that suites do not meet.
    const [high, low] = [pid % 256, (pid >> 8) % 64];
    this.centre = `10.214.${high}.${low * 4 + 1}`;
    const host = `10.214.${high}.${low * 4 + 2}`;
    this.#namespace = namespaceName(pid, "walled");
    this.#link = `walled${pid}`;
    this.within = entering(this.#namespace);
    addNamespace(this.#namespace);
    run("ip", ["link", "add", this.#link, "type", "veth", "peer", "name", "eth0", "netns", this.#namespace]);
    run("ip", ["addr", "add", `${this.centre}/30`, "dev", this.#link]);
    run("ip", ["link", "set", this.#link, "up"]);
    const own = (...args: string[]): string => run("ip", ["-n", this.#namespace, ...args]);
    own("addr", "add", `${host}/30`, "dev", "eth0");
    own("link", "set", "eth0", "up");
    own("route", "add", "default", "via", this.centre);
  }

  /** From now on. */
  wall(open: { port: number }): void {
    const rules = [
      "table inet wall {",
      "  counter dropped {}",
      "  chain in { type filter hook input priority 0; policy drop;",
      "    iif lo accept",
      `    ip saddr ${this.centre} tcp sport ${open.port} accept`,
      "  }",
      "  chain out { type filter hook output priority 0; policy drop;",
      "    oif lo accept",
      "    meta l4proto ipv6-icmp drop", // the kernel's own greetings
      "    ip protocol igmp drop",
      `    ip daddr ${this.centre} tcp dport ${open.port} accept`,
      "    counter name dropped drop",
      "  }",
      "}",
    ];
    runIn(this.#namespace, "nft", ["-f", "-"], `${rules.join("\n")}\n`);
  }

  /** Packets that were meant for anything but the one port. */
  get dropped(): number {
    const said = runIn(this.#namespace, "nft", ["-j", "list", "counter", "inet", "wall", "dropped"]);
    const { nftables } = JSON.parse(said) as { nftables: { counter?: { packets: number } }[] };
    return nftables.find(({ counter }) => counter)!.counter!.packets;
  }

  /** From there, on a port of the control plane. False when nothing came of it. */
  knock(port: number): boolean {
    const program = `require("net").connect(${port}, "${this.centre}").once("connect", () => process.exit(0)).once("error", () => process.exit(1)); setTimeout(() => process.exit(1), 500)`;
    const [command, ...rest] = this.within;
    return spawnSync(command!, [...rest, process.execPath, "-e", program]).status === 0;
  }

  [Symbol.dispose](): void {
    removeNamespaces(process.pid);
  }
}
