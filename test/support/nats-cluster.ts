/** Three real nats-servers that form a cluster: `await using cluster = await startTestNatsCluster()`. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { systemClock } from "../../shared/system.ts";

const USER = "test";
const PASSWORD = "test";
const POLL_MS = 50;
const HEALTH_TIMEOUT_MS = 2_000;

/** One server of the cluster, on ports and data that stay its own. */
export interface TestNatsNode {
  readonly name: string;
  readonly url: string;
  readonly running: boolean;
  /** Takes the server away as a crash would, and resolves when it is gone. */
  kill(): Promise<void>;
  /** Resolves when it listens; `whole` tells when it has caught up. */
  start(): Promise<void>;
}

export interface TestNatsCluster extends AsyncDisposable {
  readonly nodes: readonly TestNatsNode[];
  readonly user: string;
  readonly password: string;
  /** All nodes with user and password, as `--nats-url` takes them. */
  readonly natsUrl: string;
  /** Resolves when every server that runs calls itself healthy: its streams and consumers are there and current. */
  whole(): Promise<void>;
  stop(): Promise<void>;
}

/** Free ports of loopback. They are let go before the servers take them, so another process could come between. */
export async function freePorts(count: number): Promise<number[]> {
  const holders = Array.from({ length: count }, () => createServer().listen(0, "127.0.0.1"));
  await Promise.all(holders.map((holder) => once(holder, "listening")));
  const ports = holders.map((holder) => (holder.address() as { port: number }).port);
  await Promise.all(holders.map((holder) => once(holder.close(), "close")));
  return ports;
}

/** A nats-server with a configuration that is written already. */
export class NatsProcess implements TestNatsNode {
  readonly name: string;
  readonly url: string;
  readonly #binary: string;
  readonly #configFile: string;
  readonly #monitorUrl: string | undefined;
  #child: ChildProcess | undefined;

  /** @param options.monitorPort on loopback; without it nobody can ask whether it is healthy */
  constructor(options: {
    name: string;
    url: string;
    binary: string;
    configFile: string;
    monitorPort?: number;
  }) {
    const { name, url, binary, configFile, monitorPort } = options;
    this.name = name;
    this.url = url;
    this.#binary = binary;
    this.#configFile = configFile;
    this.#monitorUrl = monitorPort === undefined ? undefined : `http://127.0.0.1:${monitorPort}`;
  }

  get running(): boolean {
    return this.#child !== undefined;
  }

  async start(): Promise<void> {
    const child = spawn(this.#binary, ["-c", this.#configFile], {
      stdio: ["ignore", "ignore", "pipe"],
      detached: true,
    });
    this.#child = child;
    const lastWords: string[] = [];
    const lines = createInterface({ input: child.stderr });
    await new Promise<void>((resolve, reject) => {
      lines.on("line", (line) => {
        lastWords.push(line);
        if (lastWords.length > 8) lastWords.shift();
        if (/Listening for client connections/.test(line)) resolve();
      });
      child.once("error", reject);
      child.once("exit", () => reject(new Error(`${this.name} ended: ${lastWords.join(" | ")}`)));
    });
  }

  async kill(): Promise<void> {
    const child = this.#child;
    if (!child) return;
    this.#child = undefined;
    const gone = once(child, "exit");
    child.kill("SIGKILL");
    await gone;
  }

  async isHealthy(): Promise<boolean> {
    try {
      // A server can hang and hold the connection: 2.9.10 was seen to, after its two fellows had been killed.
      const signal = AbortSignal.timeout(HEALTH_TIMEOUT_MS);
      return (await fetch(`${this.#monitorUrl}/healthz`, { signal })).ok;
    } catch {
      return false;
    }
  }
}

function clusterNode(options: {
  name: string;
  binary: string;
  directory: string;
  ports: { client: number; route: number; monitor: number };
  routes: readonly number[];
}): NatsProcess {
  const { name, binary, directory, ports, routes } = options;
  const configFile = join(directory, `${name}.conf.json`);
  const config = {
    server_name: name,
    listen: `127.0.0.1:${ports.client}`,
    http: `127.0.0.1:${ports.monitor}`,
    max_payload: 8 * 1024 * 1024,
    jetstream: { store_dir: join(directory, name) },
    cluster: {
      name: "test",
      listen: `127.0.0.1:${ports.route}`,
      routes: routes.map((port) => `nats://127.0.0.1:${port}`),
    },
    authorization: { users: [{ user: USER, password: PASSWORD }] },
  };
  writeFileSync(configFile, JSON.stringify(config));
  const url = `nats://127.0.0.1:${ports.client}`;
  return new NatsProcess({ name, url, binary, configFile, monitorPort: ports.monitor });
}

/** On free ports of loopback. Resolves when the cluster takes streams. */
export async function startTestNatsCluster(size = 3): Promise<TestNatsCluster> {
  const directory = mkdtempSync(join(tmpdir(), "insitu-nats-cluster-"));
  const { path: binary } = await findNatsServer();
  const ports = await freePorts(size * 3);
  const routes = ports.slice(size, 2 * size);
  const nodes = Array.from({ length: size }, (_, i) => {
    const own = { client: ports[i]!, route: routes[i]!, monitor: ports[2 * size + i]! };
    return clusterNode({ name: `n${i + 1}`, binary, directory, ports: own, routes });
  });
  const onExit = (): void => void Promise.all(nodes.map((node) => node.kill()));
  process.on("exit", onExit);
  const whole = async (): Promise<void> => {
    for (const node of nodes)
      while (node.running && !(await node.isHealthy())) await systemClock.sleep(POLL_MS);
  };
  const stop = async (): Promise<void> => {
    process.off("exit", onExit);
    await Promise.all(nodes.map((node) => node.kill()));
    rmSync(directory, { recursive: true, force: true });
  };
  await Promise.all(nodes.map((node) => node.start()));
  await whole();
  return {
    nodes,
    user: USER,
    password: PASSWORD,
    natsUrl: nodes.map(({ url }) => url.replace("//", `//${USER}:${PASSWORD}@`)).join(","),
    whole,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
