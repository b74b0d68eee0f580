/** All the processes of one run of chaos, the network between them, and what breaks them and makes them whole. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadOrCreatePki } from "../../control-plane/access/pki.ts";
import { systemClock } from "../../shared/system.ts";
import { canMount, Disk } from "../support/disk.ts";
import type { Cast, Fault, FaultKind } from "./faults.ts";
import { FAULT_KINDS, isOfNetwork } from "./faults.ts";
import { directoryPrefix, keepDirectory } from "./leftovers.ts";
import { NamespaceNetwork } from "./namespace-network.ts";
import { NATS_PASSWORD, NATS_USER, startNats } from "./nats-nodes.ts";
import type { Network } from "./network.ts";
import { Party } from "./party.ts";
import { ProxyNetwork } from "./proxy-network.ts";
import { Host } from "./site.ts";
import { parseWitness, type WitnessLine } from "./witness.ts";
import { documents, type Plant } from "./workload.ts";

const POLL_MS = 100;
const READY_MAX_MS = 60_000;
const READY_TRIES = 5;
const DISK_KINDS = ["disk full", "disk full replica", "disk full nats"] as const;
const REPLICA_DISK = "128m";
const TRUST_DOMAIN = "insitu.local";
const SERVER_FLAGS = ["--heartbeat", "500", "--lease-ttl", "5000", "--offer-ttl", "15000"];

export interface WorldOptions {
  dist: string;
  natsBinary: string;
  replicas: number;
  nats: number;
  sites: number;
  agentsPerSite: number;
  /** Refuses kinds that this machine cannot do. */
  kinds: readonly FaultKind[];
  plant?: Plant | undefined;
  /** libfaketime's library; undefined: where Debian keeps it. */
  clockLibrary?: string | undefined;
  /** Undefined: a proxy on loopback. */
  namespaces?: NamespacesOptions | undefined;
}

export interface NamespacesOptions {
  /** That all names carry; its router is there, and we run in it. */
  pid: number;
  /** Secrets of replicas with a certificate authority in them, which we trust. */
  authority: string;
}

interface Replica {
  name: string;
  url: string;
  party: Party;
}

export class World implements AsyncDisposable {
  readonly directory = mkdtempSync(directoryPrefix());
  readonly replicas: Replica[] = [];
  /** Kinds of faults that this machine cannot do, with the reason. */
  readonly skipped = new Map<FaultKind, string>();
  token = "";
  /** Whether its directory stays, with everyone's logs in it. */
  keep = false;
  readonly #options: WorldOptions;
  readonly network: Network;
  readonly #hosts = new Map<string, Host>();
  readonly #nats = new Map<string, Party>();
  /** Of replicas and NATS servers. */
  readonly #disks = new Map<string, Disk>();
  readonly #clockLibrary: string | undefined;
  readonly cast: Cast;

  private constructor(options: WorldOptions) {
    this.#options = options;
    this.#clockLibrary = options.clockLibrary ?? debianClockLibrary();
    this.network = options.namespaces
      ? new NamespaceNetwork(options.namespaces.pid)
      : new ProxyNetwork(() => this.#pids());
    for (const [kind, reason] of this.network.cannot) this.skipped.set(kind, reason);
    const count = (letter: string, size: number) =>
      Array.from({ length: size }, (_, i) => `${letter}${i + 1}`);
    const sites = [..."abcdef"]
      .slice(0, options.sites)
      .map((site) => [site, count(site, options.agentsPerSite)]);
    this.cast = {
      replicas: count("r", options.replicas),
      nats: count("n", options.nats),
      sites: Object.fromEntries(sites) as Record<string, string[]>,
    };
    if (!canMount(join(this.directory, "probe")))
      for (const kind of DISK_KINDS) this.skipped.set(kind, "disks of one's own need root and mount");
    if (!this.#clockLibrary)
      this.skipped.set("clock jump", "libfaketime is not installed (--faketime FILE names its library)");
  }

  /** Resolves when every agent is connected. What was started is ended again when anything fails. */
  static async start(options: WorldOptions): Promise<World> {
    const world = new World(options);
    try {
      await world.#open();
      return world;
    } catch (err) {
      await world[Symbol.asyncDispose]();
      throw err;
    }
  }

  get kinds(): FaultKind[] {
    return FAULT_KINDS.filter((kind) => this.#options.kinds.includes(kind) && !this.skipped.has(kind));
  }

  /** Ends that nobody asked for, by party. */
  get ends(): { name: string; how: string }[] {
    return this.#parties().flatMap(({ name, ends }) => ends.map((how) => ({ name, how })));
  }

  async begin(fault: Fault): Promise<void> {
    const { kind, target, amountMs } = fault;
    if (isOfNetwork(kind)) return this.network.break(fault);
    const host = this.#hosts.get(target);
    const party = this.#party(target);
    switch (kind) {
      case "kill replica":
      case "kill nats":
      case "kill agent":
        return await party.kill();
      case "kill supervisor":
        return host!.killSupervisors();
      case "kill host":
        this.network.powerOff(fault);
        return await host!.powerOff();
      case "stop replica":
      case "stop nats":
      case "stop agent":
        return party.halt();
      case "stop supervisor":
        return host!.haltSupervisors();
      case "disk full":
        return host!.fillDisk();
      case "disk full replica":
      case "disk full nats":
        return this.#disks.get(target)!.fill();
      case "clock jump":
        return this.#setClock(target, amountMs);
    }
  }

  heal(fault: Fault): void {
    const { kind, target } = fault;
    if (isOfNetwork(kind)) return this.network.heal(fault);
    if (kind === "kill host") this.network.heal(fault);
    const host = this.#hosts.get(target);
    if (kind === "stop supervisor") return host!.letSupervisorsGoOn();
    if (kind === "disk full") return host!.freeDisk();
    if (kind === "disk full replica") return this.#disks.get(target)!.free();
    if (kind === "disk full nats") return this.#freeNats(target);
    if (kind === "clock jump") return this.#setClock(target, 0);
    if (kind.startsWith("stop ")) return this.#party(target).goOn();
    if (kind !== "kill supervisor") this.#party(target).start();
  }

  /** A nats-server gives JetStream up when its disk is full, until somebody starts it again. */
  #freeNats(name: string): void {
    this.#disks.get(name)!.free();
    const party = this.#party(name);
    void party.kill().then(() => party.start());
  }

  witness(): WitnessLine[] {
    const directory = join(this.directory, "sites");
    return readdirSync(directory)
      .filter((name) => name.endsWith(".journal"))
      .flatMap((name) => parseWitness(readFileSync(join(directory, name), "utf8")));
  }

  async call(replica: Replica, method: string, path: string, body?: unknown): Promise<unknown> {
    const response = await fetch(replica.url + path, {
      method,
      headers: {
        authorization: `Bearer ${this.token}`,
        ...(body ? { "content-type": "application/json" } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return text === "" ? undefined : JSON.parse(text);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const party of this.#parties()) party.goOn();
    await Promise.all([...this.#hosts.values()].map((host) => host.close()));
    await Promise.all(this.#parties().map((party) => party.kill()));
    for (const disk of this.#disks.values()) disk.close();
    await this.network[Symbol.asyncDispose]();
    if (this.keep) keepDirectory(this.directory);
    else rmSync(this.directory, { recursive: true, force: true });
  }

  async #open(): Promise<void> {
    const { natsBinary: binary, namespaces } = this.#options;
    const { network, cast } = this;
    const directory = namespaces?.authority;
    const authority =
      directory === undefined
        ? undefined
        : await loadOrCreatePki({ directory, trustDomain: TRUST_DOMAIN, clock: systemClock });
    const nodes = await startNats({
      names: cast.nats,
      binary,
      directory: join(this.directory, "nats"),
      network,
      authority,
      ownDisks: this.kinds.includes("disk full nats"),
    });
    for (const party of nodes.parties) this.#nats.set(party.name, party);
    for (const [name, disk] of nodes.disks) this.#disks.set(name, disk);
    await this.#openReplicas(nodes.url);
    const [first] = this.replicas;
    const context = join(this.directory, first!.name, "context.json");
    this.token = (JSON.parse(readFileSync(context, "utf8")) as { token: string }).token;
    const sites = Object.keys(this.cast.sites);
    const text = documents(sites, this.#options.plant)
      .map((one) => JSON.stringify(one))
      .join("\n---\n");
    await this.call(first!, "POST", "/v1/apply", {
      documents: [{ file: "chaos.yaml", text }],
      attachments: {},
    });
    await this.#openSites();
  }

  async #openReplicas(natsUrl: string): Promise<void> {
    const { dist, nats, namespaces } = this.#options;
    const { network } = this;
    for (const name of this.cast.replicas) {
      const host = network.host(name);
      const [port, gatewayPort] = (await network.ports(name, 2)) as [number, number];
      // Agents are told this address, and behind it is the network.
      const publicHost = await network.open(name, gatewayPort);
      const data = join(this.directory, name);
      const ownDisk = this.kinds.includes("disk full replica");
      this.#disks.set(name, new Disk(data, ownDisk ? REPLICA_DISK : undefined));
      const secrets = namespaces?.authority ?? join(this.directory, "secrets");
      const args = [
        join(dist, "insitu.js"),
        "server",
        ...["--data", data, "--secrets", secrets, "--trust-domain", TRUST_DOMAIN],
        ...["--host", host, "--port", String(port)],
        ...["--gateway-host", host, "--gateway-port", String(gatewayPort), "--public-host", publicHost],
        ...["--nats-url", natsUrl, ...(nats > 1 ? ["--stream-replicas", String(nats)] : [])],
        ...SERVER_FLAGS,
      ];
      const party = new Party({
        name,
        ...network.at(name, process.execPath, args),
        env: {
          INSITU_AGENT_NATS_USER: NATS_USER,
          INSITU_AGENT_NATS_PASSWORD: NATS_PASSWORD,
          ...(namespaces && { INSITU_NATS_CA_FILE: join(secrets, "ca.crt.pem") }),
          ...this.#clockEnv(name),
        },
        logFile: join(this.directory, `${name}.log`),
        speaks: true,
      });
      const scheme = network.remote ? "https" : "http";
      this.replicas.push({ name, url: `${scheme}://${host}:${port}`, party });
      party.start();
      await this.#ready(party);
    }
  }

  async #openSites(): Promise<void> {
    const directory = join(this.directory, "sites");
    mkdirSync(directory);
    const names = Object.keys(this.cast.sites);
    const holder = names[1 % names.length];
    for (const [site, agents] of Object.entries(this.cast.sites)) {
      const body = { environment: site, uses: agents.length };
      const { token } = (await this.call(this.replicas[0]!, "POST", "/v1/join-tokens", body)) as {
        token: string;
      };
      for (const name of agents) {
        const host = new Host({
          name,
          site,
          directory,
          dist: this.#options.dist,
          joinToken: token,
          journal: join(directory, `${site}.journal`),
          holdsData: site === holder,
          ownDisk: this.kinds.includes("disk full"),
          clockEnv: this.#clockEnv(name),
          network: this.network,
        });
        this.#hosts.set(name, host);
        host.party.start();
      }
    }
    await this.#until("every agent is connected", async () => {
      const { items } = (await this.call(this.replicas[0]!, "GET", "/v1/agents")) as {
        items: { connected: boolean }[];
      };
      return items.filter(({ connected }) => connected).length === this.#hosts.size;
    });
  }

  /** A cluster that calls itself healthy may not have met all of its servers: a replica that ends then comes back. */
  async #ready(party: Party): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        return await party.ready();
      } catch (err) {
        if (tries === READY_TRIES) throw err;
      }
      await this.#until(`${party.name} runs`, () => Promise.resolve(party.up));
    }
  }

  async #until(what: string, holds: () => Promise<boolean>): Promise<void> {
    const giveUpAtMs = systemClock.monotonicMs() + READY_MAX_MS;
    while (!(await holds().catch(() => false))) {
      if (systemClock.monotonicMs() > giveUpAtMs) throw new Error(`not within ${READY_MAX_MS} ms: ${what}`);
      await systemClock.sleep(POLL_MS);
    }
  }

  #clockEnv(name: string): NodeJS.ProcessEnv {
    if (!this.kinds.includes("clock jump")) return {};
    this.#setClock(name, 0);
    return {
      LD_PRELOAD: this.#clockLibrary,
      FAKETIME_TIMESTAMP_FILE: this.#clockFile(name),
      FAKETIME_CACHE_DURATION: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
    };
  }

  #clockFile(name: string): string {
    return join(this.directory, `${name}.clock`);
  }

  #setClock(name: string, offsetMs: number): void {
    const seconds = (offsetMs / 1_000).toFixed(3);
    writeFileSync(this.#clockFile(name), `${offsetMs < 0 ? "" : "+"}${seconds}\n`);
  }

  #party(name: string): Party {
    const party = this.#parties().find((one) => one.name === name);
    if (!party) throw new Error(`nobody is called ${name}`);
    return party;
  }

  #parties(): Party[] {
    const agents = [...this.#hosts.values()].map(({ party }) => party);
    return [...this.replicas.map(({ party }) => party), ...agents, ...this.#nats.values()];
  }

  *#pids(): Generator<readonly [number, string]> {
    for (const { pid, name } of this.#parties()) if (pid !== undefined) yield [pid, name];
  }
}

/** In `faketime` of the directory that is named for the machine. The one for programs of several threads. */
function debianClockLibrary(): string | undefined {
  for (const entry of readdirSync("/usr/lib", { withFileTypes: true })) {
    if (!entry.isDirectory()) continue;
    const directory = join("/usr/lib", entry.name, "faketime");
    try {
      if (readdirSync(directory).includes("libfaketimeMT.so.1")) return join(directory, "libfaketimeMT.so.1");
    } catch {
      // not there
    }
  }
  return undefined;
}
