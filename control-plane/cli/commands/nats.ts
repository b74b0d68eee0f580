/** `insitu nats init` and `config`: keys, certificates and configuration for a NATS of one's own. */
import { isIP } from "node:net";
import { isAbsolute, join, relative, resolve } from "node:path";
import { InsituError } from "../../../shared/errors.ts";
import { natsUrlOf } from "../../nats-setup/node-config.ts";
import { loadSetup } from "../../nats-setup/saved-setup.ts";
import { type Setup, type SetupOrder, writeSetup } from "../../nats-setup/setup-files.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseCount } from "../invocation.ts";

interface Options {
  out: string;
  nodes?: string;
  host: string[];
  secrets?: string;
  port: string;
  routePort: string;
  monitorPort: string;
  installDir: string;
  dataDir: string;
  sync: "always" | "interval";
  certificate?: string;
  key?: string;
  trustDomain: string;
}

const HOST = /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/i;

export async function init(invocation: Invocation, _args: string[], options: Options): Promise<number> {
  const { clock, world } = invocation;
  const { cwd } = world.settings;
  const order: SetupOrder = {
    out: resolve(cwd, options.out),
    secrets: options.secrets === undefined ? undefined : resolve(cwd, options.secrets),
    hosts: hostsOf(options),
    ports: portsOf(options),
    installDir: onNode(options.installDir, "--install-dir"),
    dataDir: onNode(options.dataDir, "--data-dir"),
    sync: options.sync,
    certificate: certificateOf(options),
    trustDomain: options.trustDomain,
    clock,
  };
  return await write(invocation, order);
}

/** Those of `init`, where they are not as they were. */
type Changes = Omit<Partial<Options>, "out" | "secrets"> & { out: string; secrets: string };

export async function config(invocation: Invocation, _args: string[], changes: Changes): Promise<number> {
  const { cwd } = invocation.world.settings;
  const secrets = resolve(cwd, changes.secrets);
  const saved = await loadSetup(secrets);
  const host = changes.host ?? [...saved.hosts];
  const options = {
    ...changes,
    host,
    port: changes.port ?? String(saved.ports.client),
    routePort: changes.routePort ?? String(saved.ports.route),
    monitorPort: changes.monitorPort ?? String(saved.ports.monitor),
  };
  const order: SetupOrder = {
    out: resolve(cwd, changes.out),
    secrets,
    hosts: hostsOf(options),
    ports: portsOf(options),
    installDir: onNode(changes.installDir ?? saved.installDir, "--install-dir"),
    dataDir: onNode(changes.dataDir ?? saved.dataDir, "--data-dir"),
    sync: changes.sync ?? saved.sync,
    certificate: certificateOf(changes) ?? saved.certificate,
    trustDomain: saved.trustDomain,
    clock: invocation.clock,
  };
  return await write(invocation, order);
}

async function write({ output, world }: Invocation, order: SetupOrder): Promise<number> {
  const { cwd } = world.settings;
  const setup = await writeSetup(order);
  const url = natsUrlOf(setup.nodes, order.ports.client);
  const replicas = setup.nodes.length > 1 ? ` --stream-replicas ${setup.nodes.length}` : "";
  // Nobody can ask a nats-server whether it syncs each write: this one was told to.
  const copy = setup.nodes.length === 1 && order.sync === "always" ? " --nats-copy off" : "";
  const authority = order.certificate
    ? "THE-CA-OF-YOUR-CERTIFICATE.pem"
    : quoted(join(setup.secrets, setup.caFile));
  const start = `INSITU_NATS_CA_FILE=${authority} insitu server --secrets ${quoted(setup.secrets)} --nats-url ${url}${replicas}${copy}`;
  if (!output.people) {
    const nodes = setup.nodes.map((node) => ({ ...node, directory: join(order.out, node.name) }));
    await output.data({ ...setup, nodes, natsUrl: url, start });
    return EXIT.ok;
  }
  for (const line of whatToDo(order, setup, start, cwd)) await output.line(line);
  return EXIT.ok;
}

function whatToDo(order: SetupOrder, setup: Setup, start: string, cwd: string): string[] {
  const lines = ["1. Copy to each host, readable by the user of nats-server alone, and start it there:"];
  for (const { name, host } of setup.nodes) {
    const there = join(order.installDir, name);
    lines.push(
      `     ${shown(join(order.out, name), cwd)}/ to ${host}:${there}/`,
      `       nats-server -c ${join(there, "nats.conf")}     keeps its data in ${join(order.dataDir, name)}`,
    );
  }
  lines.push(
    `2. Give each replica of the control plane ${shown(setup.secrets, cwd)}/: whoever has it is everybody on this NATS. Agents and NATS need nothing of it.`,
    "3. Start the replicas:",
    `     ${start}`,
  );
  if (order.sync === "always") lines.push("nats-server before 2.10 does not start with it: --sync interval.");
  if (setup.notAfterMs !== null)
    lines.push(
      `The certificates end on ${new Date(setup.notAfterMs).toISOString().slice(0, 10)}. Before that, run insitu nats config --secrets ${quoted(setup.secrets)} with another --out, copy, and restart the nats-servers one after the other.`,
    );
  return lines;
}

function hostsOf({ host, nodes }: Pick<Options, "host" | "nodes">): string[] {
  const hosts = host.flatMap((text) => text.split(",")).map((text) => text.trim());
  for (const one of hosts) {
    if (isIP(one) === 0 && !HOST.test(one))
      throw invalid(`--host ${one} is neither a host name nor an address`);
  }
  if (new Set(hosts.map((one) => one.toLowerCase())).size < hosts.length)
    throw invalid("--host names a host twice: each node needs one of its own");
  if (nodes !== undefined && parseCount(nodes, "--nodes") !== hosts.length)
    throw invalid(`--nodes ${nodes} and ${hosts.length} hosts: give --host once for each node`);
  if (![1, 3, 5].includes(hosts.length))
    throw invalid(
      `${hosts.length} nodes: a NATS has 1, 3 or 5, an even number survives no more lost servers than the odd one below it`,
    );
  return hosts;
}

function portsOf({
  port,
  routePort,
  monitorPort,
}: Pick<Options, "port" | "routePort" | "monitorPort">): SetupOrder["ports"] {
  const ports = {
    client: portOf(port, "--port"),
    route: portOf(routePort, "--route-port"),
    monitor: monitorPort === "0" ? 0 : portOf(monitorPort, "--monitor-port"),
  };
  if (new Set(Object.values(ports)).size < 3)
    throw invalid("--port, --route-port and --monitor-port: each needs a port of its own");
  return ports;
}

function portOf(text: string, flag: string): number {
  const port = parseCount(text, flag);
  if (port > 65_535) throw invalid(`${flag} ${text} is no port`);
  return port;
}

/** nats-server would look for others below the directory in which it is started. */
function onNode(path: string, flag: string): string {
  if (!isAbsolute(path)) throw invalid(`${flag} ${path} must be absolute: it is a directory on the nodes`);
  return path;
}

function certificateOf({
  certificate,
  key,
}: Pick<Options, "certificate" | "key">): SetupOrder["certificate"] {
  if (certificate === undefined && key === undefined) return undefined;
  if (certificate === undefined || key === undefined) throw invalid("--certificate and --key go together");
  return { certificate: onNode(certificate, "--certificate"), key: onNode(key, "--key") };
}

function shown(path: string, cwd: string): string {
  const short = relative(cwd, path);
  return short.startsWith("..") ? path : short;
}

/** For a shell. */
function quoted(path: string): string {
  return /^[\w./@%+=:,-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

function invalid(message: string): InsituError {
  return new InsituError("request.invalid", message);
}
