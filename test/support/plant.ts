/** The product as users run it: a server process with its own nats-server, and agent processes, on loopback. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { RunDetail, RunSummary } from "../../control-plane/api/schemas.ts";
import type { RunEventBatch } from "../../shared/engine/events.ts";
import { systemClock } from "../../shared/system.ts";

export interface PlantOptions {
  /** Directory with insitu.js and insitu-agent.js. */
  dist: string;
  serverFlags?: string[];
  env?: NodeJS.ProcessEnv;
}

export interface Replica {
  name: string;
  child: ChildProcess;
  gatewayPort: number;
  /** 0: it has none. */
  onePort: number;
  url: string;
  token: string;
}

interface Ready {
  gatewayPort: number;
  onePort?: number;
}

/** False when it has gone. */
function tryKill(pid: number): boolean {
  try {
    return process.kill(pid, "SIGTERM");
  } catch {
    return false;
  }
}

/** Events of one run, as they were followed. */
export interface Followed {
  events: RunEventBatch["events"];
  wallMs: number;
}

export class Plant {
  readonly directory = mkdtempSync(join(tmpdir(), "insitu-plant-"));
  readonly #options: PlantOptions;
  readonly #children: ChildProcess[] = [];
  server: ChildProcess | undefined;
  url = "";
  token = "";
  gatewayPort = 0;
  onePort = 0;

  constructor(options: PlantOptions) {
    this.#options = options;
  }

  get dist(): string {
    return this.#options.dist;
  }

  /** Starts the control plane; again on the same data after it has gone. */
  async startServer(
    ports: { port?: number; gatewayPort?: number; natsPort?: number } = {},
    flags: string[] = [],
  ): Promise<void> {
    const replica = await this.startReplica("server", ports, flags);
    this.server = replica.child;
    this.gatewayPort = replica.gatewayPort;
    this.onePort = replica.onePort;
    this.url = replica.url;
    this.token = replica.token;
  }

  /** One replica of several; `name` is its data directory. Without a NATS in `flags` it has one of its own. */
  async startReplica(
    name: string,
    ports: { port?: number; gatewayPort?: number; natsPort?: number } = {},
    flags: string[] = [],
  ): Promise<Replica> {
    const { dist, serverFlags = [] } = this.#options;
    const all = ["--data", join(this.directory, name), "--port", String(ports.port ?? 0)];
    all.push("--gateway-port", String(ports.gatewayPort ?? 0), "--nats-port", String(ports.natsPort ?? 0));
    const child = this.#spawn(name, [join(dist, "insitu.js"), "server", ...all, ...serverFlags, ...flags]);
    const { gatewayPort, onePort = 0 } = await new Promise<Ready>((resolve, reject) => {
      child.once("message", (ready: Ready) => resolve(ready));
      child.once("exit", (code) => reject(new Error(`${name} ended with ${code}: ${this.logOf(name)}`)));
    });
    const context = JSON.parse(readFileSync(join(this.directory, name, "context.json"), "utf8")) as {
      server: string;
      token: string;
    };
    return { name, child, gatewayPort, onePort, url: context.server, token: context.token };
  }

  /**
   * Enrols on the first start. Resolves with the process once the control plane sees the agent.
   *
   * @param within words before the command, which have it run somewhere else
   */
  async startAgent(
    environment: string,
    name: string,
    flags: string[] = [],
    within: readonly string[] = [],
  ): Promise<ChildProcess> {
    const { token } = (await this.call("POST", "/v1/join-tokens", { environment })) as { token: string };
    const child = this.spawnAgent(environment, name, ["--join-token", token, ...flags], within);
    await this.until(async () => {
      const { items } = (await this.call("GET", "/v1/agents")) as {
        items: { id: string; connected: boolean }[];
      };
      return items.some((agent) => agent.id === `${environment}/${name}` && agent.connected);
    });
    return child;
  }

  spawnAgent(
    environment: string,
    name: string,
    flags: string[] = [],
    within: readonly string[] = [],
  ): ChildProcess {
    const state = join(this.directory, "sites", environment, name);
    const log = `${environment}-${name}`;
    const args = [
      join(this.#options.dist, "insitu-agent.js"),
      "run",
      // Steps of these tests speak with them through files that no boxed one sees.
      "--sandbox",
      "off",
      "--state-dir",
      state,
      "--name",
      name,
      "--on-stop",
      "interrupt",
      ...flags,
    ];
    return this.#spawn(log, args, within);
  }

  async call(method: string, path: string, body?: unknown): Promise<unknown> {
    const response = await fetch(this.url + path, {
      method,
      headers: {
        authorization: `Bearer ${this.token}`,
        "accept-encoding": "gzip",
        ...(body ? { "content-type": "application/json" } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return text === "" ? undefined : JSON.parse(text);
  }

  async apply(...documents: unknown[]): Promise<void> {
    const text = documents.map((document) => JSON.stringify(document)).join("\n---\n");
    await this.call("POST", "/v1/apply", { documents: [{ file: "plant.yaml", text }], attachments: {} });
  }

  async start(pipeline: string): Promise<RunSummary> {
    return (await this.call("POST", "/v1/runs", { pipeline })) as RunSummary;
  }

  async run(runId: string): Promise<RunDetail> {
    return (await this.call("GET", `/v1/runs/${runId}`)) as RunDetail;
  }

  /** Starts a run and follows it to its end. Wall time from the request to the last event. */
  async follow(pipeline: string): Promise<Followed> {
    const startMs = systemClock.monotonicMs();
    const { id } = await this.start(pipeline);
    const events = await this.events(id, () => false);
    return { events, wallMs: systemClock.monotonicMs() - startMs };
  }

  /** Events until the run has ended, or `enough` says so. */
  async events(
    runId: string,
    enough: (events: RunEventBatch["events"]) => boolean,
  ): Promise<RunEventBatch["events"]> {
    const stop = new AbortController();
    const headers = { authorization: `Bearer ${this.token}`, "accept-encoding": "gzip" };
    const response = await fetch(`${this.url}/v1/runs/${runId}/events`, { headers, signal: stop.signal });
    if (!response.ok) throw new Error(`events of ${runId}: ${response.status} ${await response.text()}`);
    const events: RunEventBatch["events"] = [];
    const decoder = new TextDecoder();
    let rest = "";
    for await (const bytes of response.body!) {
      const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        // What comes after the end is evidence, for those who ask for more than the run.
        if (!line.startsWith("data: {") || events.at(-1)?.kind === "run.finished") continue;
        events.push(...((JSON.parse(line.slice(6)) as Partial<RunEventBatch>).events ?? []));
      }
      if (enough(events) || events.some((event) => event.kind === "run.finished")) break;
    }
    stop.abort();
    return events;
  }

  /** Asks again and again, without a limit of its own: the test's time-out is the limit. */
  async until(condition: () => Promise<boolean>): Promise<void> {
    while (!(await condition().catch(() => false))) await new Promise((resolve) => setImmediate(resolve));
  }

  logOf(name: string): string {
    return readFileSync(join(this.directory, `${name}.log`), "utf8")
      .split("\n")
      .slice(-15)
      .join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const running = this.#children.filter((child) => child.exitCode === null && child.signalCode === null);
    const isServer = (child: ChildProcess): boolean => child.spawnargs.includes("server");
    for (const group of [running.filter((child) => !isServer(child)), running.filter(isServer)]) {
      await Promise.all(
        group.map((child) => {
          const gone = new Promise((resolve) => child.once("exit", resolve));
          child.kill("SIGTERM");
          return gone;
        }),
      );
    }
    await this.#endSupervisors();
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** Of agents that were killed: with them end the steps that they run. */
  async #endSupervisors(): Promise<void> {
    const sites = join(this.directory, "sites");
    if (!existsSync(sites)) return;
    for (const file of readdirSync(sites, { recursive: true, encoding: "utf8" })) {
      if (!/supervisors\/[^/]+\/about\.json$/.test(file)) continue;
      const { pid } = JSON.parse(readFileSync(join(sites, file), "utf8")) as { pid: number };
      while (tryKill(pid)) await systemClock.sleep(20);
    }
  }

  #spawn(log: string, args: string[], within: readonly string[] = []): ChildProcess {
    const file = openSync(join(this.directory, `${log}.log`), "a");
    const [command, ...rest] = [...within, process.execPath, ...args];
    const child = spawn(command!, rest, {
      stdio: ["ignore", file, file, "ipc"],
      env: { ...process.env, ...this.#options.env },
      detached: true,
    });
    this.#children.push(child);
    return child;
  }
}
