/**
 * Each party has a host: a network namespace with one link to a router in the middle, which is a namespace too, and
 * from which we ourselves watch. Packets between hosts pass the router, and there they are lost.
 *
 * Unlike a proxy it loses what is under way: connections stay half open, and nobody is told.
 */
import { type Fault, type FaultKind, waysOf } from "./faults.ts";
import { addNamespace, entering, namespaceName, run, runIn } from "./namespaces.ts";
import type { Network } from "./network.ts";

const PORT_FIRST = 7_000;
const BURST = "16kb";
/** Of the queue before a slow link; what does not fit is lost, as a router loses it. */
const QUEUE = "500ms";
/** What a link passes whose fault has an amount of one millisecond. */
const SLOW_KBIT = 32_000;

interface HostAt {
  namespace: string;
  /** Its end of the link at the router. */
  link: string;
  address: string;
  portNext: number;
}

export class NamespaceNetwork implements Network {
  readonly name = "namespaces";
  readonly remote = true;
  readonly cannot = new Map<FaultKind, string>();
  readonly #pid: number;
  readonly #hub: string;
  readonly #hosts = new Map<string, HostAt>();
  readonly #faults = new Map<number, Fault>();
  /** Hosts whose link is down, with the faults that want it so. */
  readonly #down = new Map<string, Set<number>>();
  readonly #rates = new Map<string, number>();

  /** @param pid of the process that all names carry; its router is there: `openRouter` */
  constructor(pid: number) {
    this.#pid = pid;
    this.#hub = routerOf(pid);
  }

  host(party: string): string {
    const known = this.#hosts.get(party);
    if (known) return known.address;
    const index = this.#hosts.size + 1;
    const namespace = namespaceName(this.#pid, party);
    const at: HostAt = { namespace, link: `to-${party}`, address: `10.213.${index}.2`, portNext: PORT_FIRST };
    const router = `10.213.${index}.1`;
    const hub = (...args: string[]): string => run("ip", ["-n", this.#hub, ...args]);
    const own = (...args: string[]): string => run("ip", ["-n", namespace, ...args]);
    addNamespace(namespace);
    hub("link", "add", at.link, "type", "veth", "peer", "name", "eth0", "netns", namespace);
    hub("addr", "add", `${router}/30`, "dev", at.link);
    hub("link", "set", at.link, "up");
    own("addr", "add", `${at.address}/30`, "dev", "eth0");
    own("link", "set", "eth0", "up");
    own("route", "add", "default", "via", router);
    this.#hosts.set(party, at);
    return at.address;
  }

  ports(party: string, count: number): Promise<number[]> {
    const host = this.#host(party);
    return Promise.resolve(Array.from({ length: count }, () => host.portNext++));
  }

  open(party: string): Promise<string> {
    return Promise.resolve(this.#host(party).address);
  }

  at(party: string, command: string, args: readonly string[]) {
    const [first, ...rest] = entering(this.#host(party).namespace);
    return { command: first!, args: [...rest, command, ...args] };
  }

  break(fault: Fault): void {
    if (fault.kind === "unplug") return this.powerOff(fault);
    this.#faults.set(fault.id, fault);
    this.#apply();
  }

  heal(fault: Fault): void {
    const down = this.#down.get(fault.target);
    if (down?.delete(fault.id) && down.size === 0) this.#setLink(fault.target, "up");
    if (this.#faults.delete(fault.id)) this.#apply();
  }

  powerOff(fault: Fault): void {
    const down = this.#down.get(fault.target) ?? new Set();
    this.#down.set(fault.target, down.add(fault.id));
    this.#setLink(fault.target, "down");
  }

  [Symbol.asyncDispose](): Promise<void> {
    for (const { namespace } of this.#hosts.values()) run("ip", ["netns", "del", namespace]);
    this.#hosts.clear();
    return Promise.resolve();
  }

  /** At once for all pairs: the rules are one transaction of the kernel's. */
  #apply(): void {
    const faults = [...this.#faults.values()];
    const rules = faults
      .filter(({ kind }) => kind !== "slow")
      .sort((a, b) => rank(a.kind) - rank(b.kind))
      .map((fault) => `add rule inet chaos between ${this.#match(fault)} ${verdict(fault)}`);
    runIn(this.#hub, "nft", ["-f", "-"], ["flush chain inet chaos between", ...rules, ""].join("\n"));
    this.#limit(faults.filter(({ kind }) => kind === "slow"));
  }

  #match(fault: Fault): string {
    const elements = waysOf(fault).map(([from, to]) => `${this.host(from)} . ${this.host(to)}`);
    return `ip saddr . ip daddr { ${elements.join(", ")} }`;
  }

  /** Both ends of the links of those on the first side. */
  #limit(slow: readonly Fault[]): void {
    const wanted = new Map<string, number>();
    for (const { pairs, amountMs } of slow)
      for (const [party] of pairs) {
        const kbit = slowKbit(amountMs);
        wanted.set(party, Math.min(kbit, wanted.get(party) ?? kbit));
      }
    for (const party of new Set([...this.#rates.keys(), ...wanted.keys()])) {
      const kbit = wanted.get(party);
      if (kbit === this.#rates.get(party)) continue;
      const { namespace, link } = this.#host(party);
      const change =
        kbit === undefined
          ? ["root"]
          : ["root", "tbf", "rate", `${kbit}kbit`, "burst", BURST, "latency", QUEUE];
      const verb = kbit === undefined ? "del" : "replace";
      run("tc", ["-n", this.#hub, "qdisc", verb, "dev", link, ...change]);
      run("tc", ["-n", namespace, "qdisc", verb, "dev", "eth0", ...change]);
      if (kbit === undefined) this.#rates.delete(party);
      else this.#rates.set(party, kbit);
    }
  }

  #setLink(party: string, state: "up" | "down"): void {
    run("ip", ["-n", this.#hub, "link", "set", this.#host(party).link, state]);
  }

  #host(party: string): HostAt {
    const host = this.#hosts.get(party);
    if (!host) throw new Error(`${party} has no host`);
    return host;
  }
}

/** The namespace in the middle. Whoever talks to the hosts without being one of them runs in it. */
export function openRouter(pid: number): string {
  const hub = routerOf(pid);
  addNamespace(hub);
  runIn(hub, "sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
  const chain = "chain between { type filter hook forward priority 0; policy accept; }";
  runIn(hub, "nft", ["-f", "-"], `table inet chaos {\n${chain}\n}\n`);
  return hub;
}

/** Kilobits a second that a link passes while it is slow. */
export function slowKbit(amountMs: number): number {
  return Math.round(SLOW_KBIT / Math.max(1, amountMs));
}

function routerOf(pid: number): string {
  return namespaceName(pid, "router");
}

/** The worst comes first: the first rule that fits decides. */
function rank(kind: FaultKind): number {
  return ["cut", "silence", "one-way", "loss"].indexOf(kind);
}

function verdict({ kind, lossPercent }: Fault): string {
  if (kind === "cut") return "meta l4proto tcp reject with tcp reset";
  return kind === "loss" ? `numgen random mod 100 < ${lossPercent} drop` : "drop";
}
