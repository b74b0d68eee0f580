/** The nats-servers of a plant: their configuration, and the addresses at which the others find them. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Pki } from "../../control-plane/access/pki.ts";
import { systemClock } from "../../shared/system.ts";
import { Disk } from "../support/disk.ts";
import type { Network } from "./network.ts";
import { Party } from "./party.ts";

export const NATS_USER = "chaos";
export const NATS_PASSWORD = "chaos";
const DISK = "192m";
const MAX_FILE_STORE = 1024 ** 4;
const POLL_MS = 50;
const READY_MAX_MS = 30_000;

export interface NatsNodes {
  parties: Party[];
  /** By name: where a server keeps its streams. */
  disks: Map<string, Disk>;
  /** For `--nats-url`: through the network. */
  url: string;
}

interface Node {
  name: string;
  bind: string;
  /** How others reach it. */
  address: string;
  client: number;
  route: number;
  monitor: number;
}

/** Resolves when all are healthy. With `authority` clients are spoken to over TLS. */
export async function startNats(options: {
  names: readonly string[];
  binary: string;
  directory: string;
  network: Network;
  authority?: Pki | undefined;
  /** Each has a small disk of its own. */
  ownDisks: boolean;
}): Promise<NatsNodes> {
  const { names, binary, directory, network, authority, ownDisks } = options;
  mkdirSync(directory, { recursive: true });
  const all: Node[] = [];
  for (const name of names) {
    const bind = network.host(name);
    const [client, route, monitor] = (await network.ports(name, 3)) as [number, number, number];
    await network.open(name, client);
    all.push({ name, bind, client, route, monitor, address: await network.open(name, route) });
  }
  const parties: Party[] = [];
  const disks = new Map<string, Disk>();
  for (const node of all) {
    const { name, bind, address } = node;
    const store = join(directory, name);
    disks.set(name, new Disk(store, ownDisks ? DISK : undefined));
    const others = all.filter((other) => other !== node);
    const config = {
      server_name: name,
      listen: `${bind}:${node.client}`,
      http: `${bind}:${node.monitor}`,
      max_payload: 8 * 1024 * 1024,
      // More than is there: the limits of the streams are for a disk of production.
      jetstream: { store_dir: store, max_file_store: MAX_FILE_STORE },
      authorization: { users: [{ user: NATS_USER, password: NATS_PASSWORD }] },
      ...(authority && { tls: await certificate(authority, directory, node) }),
      ...(all.length > 1 && {
        cluster: {
          name: "chaos",
          listen: `${bind}:${node.route}`,
          advertise: `${address}:${node.route}`,
          // Clients go through the network alone: they are not told the real addresses.
          no_advertise: true,
          routes: others.map((other) => `nats://${other.address}:${other.route}`),
        },
      }),
    };
    const file = join(directory, `${name}.conf.json`);
    writeFileSync(file, JSON.stringify(config));
    const logFile = join(directory, `${name}.log`);
    parties.push(new Party({ name, ...network.at(name, binary, ["-c", file]), logFile, speaks: false }));
  }
  for (const party of parties) party.start();
  const giveUpAtMs = systemClock.monotonicMs() + READY_MAX_MS;
  for (const { name, bind, monitor } of all) {
    while (!(await isHealthy(bind, monitor))) {
      if (systemClock.monotonicMs() > giveUpAtMs) throw new Error(`${name} is not healthy`);
      await systemClock.sleep(POLL_MS);
    }
  }
  const scheme = authority ? "tls" : "nats";
  const url = all
    .map(({ address, client }) => `${scheme}://${NATS_USER}:${NATS_PASSWORD}@${address}:${client}`)
    .join(",");
  return { parties, disks, url };
}

async function certificate(authority: Pki, directory: string, { name, address }: Node) {
  const { chainPem, keyPem } = await authority.issueServerCertificate({ dns: [], ips: [address] });
  const files = {
    cert_file: join(directory, `${name}.crt.pem`),
    key_file: join(directory, `${name}.key.pem`),
  };
  writeFileSync(files.cert_file, chainPem);
  writeFileSync(files.key_file, keyPem, { mode: 0o600 });
  return files;
}

async function isHealthy(host: string, port: number): Promise<boolean> {
  try {
    return (await fetch(`http://${host}:${port}/healthz`)).ok;
  } catch {
    return false;
  }
}
