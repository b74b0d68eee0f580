/** `insitu dev`: everything on this machine, and a demonstration that shows what it is good for. */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { Demo, SiteData } from "../../../examples/demo.ts";
import { InsituError } from "../../../shared/errors.ts";
import { SOFTWARE_VERSION } from "../../../shared/wire/protocol.ts";
import type { AppliedChange } from "../../api/schemas.ts";
import { stopLeftOver } from "../../store/nats-left-over.ts";
import { ApiClient } from "../client.ts";
import { readDocumentSet } from "../documents.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { duration, plural, wrap } from "../text.ts";
import { DataDirectory } from "./data-directory.ts";
import { choosePort } from "./ports.ts";
import { Child } from "./processes.ts";
import { prepareSite, type Site, waitForAgents } from "./sites.ts";
import { StatusLine } from "./status-line.ts";
import { heldLine, tell } from "./story.ts";
import { endSupervisors } from "./supervisors.ts";

export interface DevOptions {
  once?: boolean;
  data: string;
  port?: string;
  gatewayPort?: string;
  example: string;
  fresh?: boolean;
  keep?: boolean;
}

const PORTS = { api: 7070, gateway: 7443, nats: 4222 };
/** Quicker than in production: whoever stops an agent here wants to see what happens next. */
const PACE = ["--heartbeat", "1000", "--lease-ttl", "6000"];
const PORT_TAKEN = /EADDRINUSE|address already in use/i;
const READY_TIMEOUT_MS = 60_000;

/** Exit 0 when the demonstration held and everything was stopped as asked; else the reason is said. */
export async function dev(invocation: Invocation, _args: string[], options: DevOptions): Promise<number> {
  const { world, output } = invocation;
  const root = programRoot();
  const demo = await loadDemo(root, options.example);
  const fixedPorts = {
    api: parsePort(options.port, "--port"),
    gateway: parsePort(options.gatewayPort, "--gateway-port"),
  };
  const title = wrap(demo.title, output.terminal.err.columns() - 1).join("\n");
  await output.note(
    `${output.paintErr("bold", `Insitu ${SOFTWARE_VERSION}`)}  everything on this machine\n\n${title}\n`,
  );
  const directory = await DataDirectory.take(resolve(world.settings.cwd, options.data), {
    clock: world.clock,
    onLeftOver: (names) =>
      void output.note(`Stopping what an earlier start left behind: ${names.join(", ")}`),
  });
  try {
    if (options.fresh) directory.empty();
    const stage = new Stage(invocation, { root, directory, demo, fixedPorts });
    return await stage.play({ once: options.once === true, keep: options.keep === true });
  } finally {
    directory.release();
  }
}

interface StageOptions {
  root: string;
  directory: DataDirectory;
  demo: Demo;
  /** As asked for: these and no others. */
  fixedPorts: { api: number | undefined; gateway: number | undefined };
}

/** Starts the parts, tells the story, and stops the parts in reverse order. */
class Stage {
  readonly #invocation: Invocation;
  readonly #options: StageOptions;
  /** In the order of their start. */
  readonly #children: Child[] = [];
  readonly #crash = new AbortController();
  /** While the story is told, any child that ends ends it. Later only the server does. */
  #strict = true;
  #closed = false;
  #status: StatusLine | null = null;

  constructor(invocation: Invocation, options: StageOptions) {
    this.#invocation = invocation;
    this.#options = options;
  }

  async play({ once, keep }: { once: boolean; keep: boolean }): Promise<number> {
    const { output, world, clock } = this.#invocation;
    const signal = AbortSignal.any([world.signal, this.#crash.signal]);
    const startedMs = clock.monotonicMs();
    let failure: unknown = null;
    try {
      const scene = await this.#setUp(signal);
      try {
        await tell({ ...scene, invocation: this.#invocation, demo: this.#options.demo, signal });
      } catch (thrown) {
        if (!keep || once || signal.aborted) throw thrown;
        failure = thrown;
        await output.note(
          `\n${output.paintErr("red", "The demonstration failed:")} ${InsituError.from(thrown).message}`,
        );
      }
      await output.note(
        `\n${output.paintErr("dim", `All of it took ${duration(clock.monotonicMs() - startedMs)}.`)}`,
      );
      if (once) return EXIT.ok;
      this.#strict = false;
      await this.#stayUp(scene, signal);
    } catch (thrown) {
      // A crash explains the errors that came of it.
      if (this.#crash.signal.aborted) throw this.#crash.signal.reason;
      if (!world.signal.aborted) throw thrown;
      // Ctrl-C before the demonstration was over is an interruption; after it, the way to stop.
      if (this.#strict) throw world.signal.reason;
    } finally {
      await this.#stop();
    }
    if (failure !== null) throw failure;
    return EXIT.ok;
  }

  async #setUp(signal: AbortSignal) {
    const { demo, directory } = this.#options;
    const { clock } = this.#invocation;
    // Awaited below; a failure of the other part must not leave this one unobserved.
    const booted = this.#timed("server", async () => {
      const { url, gatewayPort } = await this.#startServer(signal);
      return { value: url, text: `${url}, gateway for agents at 127.0.0.1:${gatewayPort}` };
    });
    booted.catch(() => undefined);
    const data = await this.#timed<SiteData[]>("data", async () => {
      const value = await demo.setUp(join(directory.path, "sites"));
      return { value, text: heldLine(value) };
    });
    await booted;
    const client = this.#connect();
    await this.#timed("resources", async () => {
      const { cwd } = this.#invocation.world.settings;
      const set = await readDocumentSet(demo.documents, { cwd, readStdin: async () => "" });
      const changes = await client.apply(set, { dryRun: false, signal });
      return { value: null, text: changesText(changes) };
    });
    const sites = await this.#timed("agents", async () => {
      const value = await this.#startAgents(client, signal);
      await waitForAgents(value, { client, clock, signal });
      return { value, text: `connected from ${value.map(({ environment }) => environment).join(", ")}` };
    });
    return { client, data, sites };
  }

  /** On the usual ports; on free ones when somebody else has them, or takes them at this very moment. */
  async #startServer(signal: AbortSignal): Promise<{ url: string; gatewayPort: number }> {
    const { api, gateway } = this.#options.fixedPorts;
    const usual = {
      api: await choosePort({ fixed: api, preferred: PORTS.api, what: "the API" }),
      gateway: await choosePort({ fixed: gateway, preferred: PORTS.gateway, what: "the gateway" }),
      nats: await choosePort({ preferred: PORTS.nats, what: "NATS" }),
    };
    signal.throwIfAborted();
    const first = this.#spawnServer(usual);
    try {
      return await this.#ready(first, signal);
    } catch (thrown) {
      if (signal.aborted || first.running || !first.said(PORT_TAKEN)) throw thrown;
    }
    return this.#ready(this.#spawnServer({ api: api ?? 0, gateway: gateway ?? 0, nats: 0 }), signal);
  }

  #spawnServer(ports: typeof PORTS): Child {
    const { directory, root } = this.#options;
    const flags = {
      data: join(directory.path, "server"),
      context: join(directory.path, "context.json"),
      host: "127.0.0.1",
      port: String(ports.api),
      "gateway-host": "127.0.0.1",
      "gateway-port": String(ports.gateway),
      "nats-port": String(ports.nats),
    };
    const argv = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value]);
    return this.#spawn("server", [join(root, "dist/insitu.js"), "server", ...argv, ...PACE]);
  }

  #ready(server: Child, signal: AbortSignal): Promise<{ url: string; gatewayPort: number }> {
    const late = new AbortController();
    const timer = this.#invocation.clock.after(READY_TIMEOUT_MS, () => {
      const message = `the server is not ready after ${READY_TIMEOUT_MS / 1000} s; its log: ${server.logFile}`;
      late.abort(new InsituError("timeout", message));
    });
    const ready = server.message(
      (message) => {
        const { kind, url, gatewayPort } = message as { kind?: string; url?: string; gatewayPort?: number };
        return kind === "ready" && url !== undefined && gatewayPort !== undefined
          ? { url, gatewayPort }
          : undefined;
      },
      AbortSignal.any([signal, late.signal]),
    );
    return ready
      .then((value) => {
        this.#guard(server);
        return value;
      })
      .finally(() => timer.cancel());
  }

  #connect(): ApiClient {
    const file = join(this.#options.directory.path, "context.json");
    const { server, token } = JSON.parse(readFileSync(file, "utf8")) as { server: string; token: string };
    return new ApiClient(
      { server, servers: [server], token, source: file, ca: null },
      this.#invocation.clock,
    );
  }

  async #startAgents(client: ApiClient, signal: AbortSignal): Promise<Site[]> {
    const { demo, directory, root } = this.#options;
    const knownAgents = new Set((await client.listAgents(signal)).map(({ id }) => id));
    const program = join(root, "dist/insitu-agent.js");
    return Promise.all(
      Object.keys(demo.environments).map(async (environment) => {
        const options = { directory: join(directory.path, "sites"), demo, client, knownAgents, signal };
        const site = await prepareSite(environment, options);
        signal.throwIfAborted();
        this.#guard(
          this.#spawn(`agent-${environment}`, [
            program,
            "run",
            "--on-stop",
            "interrupt",
            "--config",
            site.configFile,
          ]),
        );
        return site;
      }),
    );
  }

  #spawn(name: string, argv: readonly string[]): Child {
    // Another part failed while this one was on its way: nobody would stop it any more.
    if (this.#closed) throw new InsituError("cancelled", "everything is being stopped");
    const { directory } = this.#options;
    const { world } = this.#invocation;
    const child = new Child({
      name,
      argv,
      env: childEnvironment(world.env),
      logDirectory: join(directory.path, "logs"),
      clock: world.clock,
      onSpawn: (pid) => directory.record(name, pid),
    });
    this.#children.push(child);
    return child;
  }

  /** From now on its end is noticed. */
  #guard(child: Child): void {
    const { output } = this.#invocation;
    void child.exited.then(async (exit) => {
      if (child.stopping) return;
      const error = child.crash(exit);
      if (this.#strict || child.name === "server") this.#crash.abort(error);
      else {
        const again = `Start it again: node ${child.argv.map((word) => this.#shown(word)).join(" ")}`;
        const text = `${output.paintErr("yellow", "!")} ${error.message}\n  ${again}\n`;
        await (this.#status?.note(text) ?? output.note(text));
      }
    });
  }

  /** Runs a part of the set-up and says what came of it, and how long it took. */
  async #timed<T>(name: string, work: () => Promise<{ value: T; text: string }>): Promise<T> {
    const { output, clock } = this.#invocation;
    const beganMs = clock.monotonicMs();
    const { value, text } = await work();
    const took = duration(clock.monotonicMs() - beganMs).padStart(7);
    const paint = output.paintErr;
    await output.note(`${paint("green", "✓")} ${name.padEnd(10)}${paint("dim", took)}  ${text}`);
    return value;
  }

  async #stayUp({ client }: { client: ApiClient }, signal: AbortSignal): Promise<void> {
    const { output, clock } = this.#invocation;
    const { server, token } = client.target;
    const { directory, demo } = this.#options;
    await output.note(`\n${output.paintErr("bold", "Next")}\n\n${this.#nextSteps(client).join("\n")}\n`);
    await output.note(`Console  ${server}/#token=${token}`);
    await output.note(`Logs     ${this.#shown(join(directory.path, "logs"))}\n`);
    const sites = Object.keys(demo.environments).length;
    const status = new StatusLine({ output, clock, client, signal, sites });
    this.#status = status;
    try {
      await status.start();
      await new Promise<never>((_, reject) => {
        if (signal.aborted) return reject(signal.reason);
        signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      });
    } finally {
      this.#status = null;
      status[Symbol.dispose]();
    }
  }

  #nextSteps(client: ApiClient): string[] {
    const { root, directory, demo } = this.#options;
    const { cwd } = this.#invocation.world.settings;
    const program = this.#shown(join(root, "bin/insitu.mjs"));
    const command = program.startsWith("/") || program.startsWith(".") ? program : `./${program}`;
    // Whoever stands in the folder of the context needs to say nothing more.
    const elsewhere = directory.path !== join(cwd, ".insitu");
    const { server, token } = client.target;
    const refused =
      demo.refused === null ? [] : [[`plan -f ${this.#shown(demo.refused)}`, "why it is refused"]];
    const rows = [
      ["runs show last", "all about the run"],
      ["runs logs last", "what its steps wrote"],
      [`run ${demo.pipeline} --watch`, "once more"],
      ["agents list", "who is there"],
      ...refused,
    ].map(([words, what]) => [`${command} ${words}`, what]);
    // A long one does not push the others apart.
    const commandWidth = Math.min(44, Math.max(...rows.map(([words = ""]) => words.length)));
    const lines = rows.map(([words = "", what]) => `  ${words.padEnd(commandWidth)}   ${what}`);
    return elsewhere ? [`  export INSITU_SERVER=${server} INSITU_TOKEN=${token}`, ...lines] : lines;
  }

  /** Relative to where the person stands, when it lies below. */
  #shown(path: string): string {
    const short = relative(this.#invocation.world.settings.cwd, path);
    return short === "" || short.startsWith("..") || !path.startsWith("/") ? path : short;
  }

  /** Agents first, so that they can still deliver what they have; then the server. */
  async #stop(): Promise<void> {
    const { insist } = this.#invocation.world;
    const { output, clock } = this.#invocation;
    this.#closed = true;
    if (this.#children.length === 0) return;
    const beganMs = clock.monotonicMs();
    for (const child of this.#children) child.expectEnd();
    // The terminal has shown "^C" on a line that nobody ended.
    if (output.terminal.err.isTty) await output.note("");
    const server = this.#children.filter(({ name }) => name === "server");
    const agents = this.#children.filter(({ name }) => name !== "server");
    await Promise.all(agents.map((child) => child.stop(insist)));
    await endSupervisors(join(this.#options.directory.path, "sites"), this.#invocation.clock);
    await Promise.all(server.map((child) => child.stop(insist)));
    await this.#stopNats();
    const took = duration(clock.monotonicMs() - beganMs);
    await output.note(`${output.paintErr("green", "✓")} stopped, nothing is left running (${took})`);
  }

  /** Of a server that was killed: its nats-server goes on without it. */
  async #stopNats(): Promise<void> {
    const { output, clock } = this.#invocation;
    const directory = join(this.#options.directory.path, "server", "nats");
    try {
      await stopLeftOver({ directory, configFile: join(directory, "nats.conf.json"), clock });
    } catch (thrown) {
      await output.note(`${output.paintErr("yellow", "!")} ${InsituError.from(thrown).message}`);
    }
  }
}

/** The folder with dist/ and examples/, seen from the bundle, from one of its chunks, or from the sources. */
function programRoot(): string {
  const here = dirname(fileURLToPath(import.meta.url));
  for (const up of ["..", "../..", "../../.."]) {
    const root = resolve(here, up);
    if (existsSync(join(root, "examples")) && existsSync(join(root, "dist/insitu-agent.js"))) return root;
  }
  throw new InsituError(
    "not-found",
    "dist/insitu-agent.js and examples/ are not beside this program; run `npm run build`",
  );
}

async function loadDemo(root: string, name: string): Promise<Demo> {
  const file = join(root, "examples", name, "demo.mjs");
  if (!/^[a-z0-9-]+$/.test(name) || !existsSync(file)) {
    throw new InsituError(
      "not-found",
      `there is no example "${name}"; there are penguins, flights and federated`,
    );
  }
  const module = (await import(pathToFileURL(file).href)) as { default: Demo };
  return module.default;
}

function parsePort(text: string | undefined, flag: string): number | undefined {
  if (text === undefined) return undefined;
  const port = Number(text);
  if (Number.isInteger(port) && port >= 0 && port <= 65_535) return port;
  throw new InsituError("request.invalid", `${flag} takes a number from 0 to 65535, not "${text}"`);
}

/** Ours without what is meant for this command: its server and its token are no business of the children. */
function childEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = new Set(["INSITU_NATS_SERVER", "INSITU_LOG_LEVEL"]);
  return Object.fromEntries(
    Object.entries(env).filter(([name]) => !name.startsWith("INSITU_") || kept.has(name)),
  );
}

function changesText(changes: readonly AppliedChange[]): string {
  const kinds = new Map<string, number>();
  for (const { kind } of changes) kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  const all = [...kinds].map(([kind, count]) => plural(count, kind)).join(", ");
  const changed = changes.filter(({ action }) => action !== "unchanged").length;
  return changed === 0 ? `${all}, unchanged` : `${all} applied`;
}
