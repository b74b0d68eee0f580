/** The nats-servers of a plant: their configuration, and the addresses at which the others find them. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "../../shared/system.ts";
import type { Network } from "./network.ts";
import { Party } from "./party.ts";
import { ownPorts } from "./ports.ts";

export const NATS_USER = "chaos";
export const NATS_PASSWORD = "chaos";
const POLL_MS = 50;
const READY_MAX_MS = 30_000;

export interface NatsNodes {
  parties: Party[];
  /** For `--nats-url`: through the network. */
  url: string;
}

/** Resolves when all are healthy. */
export async function startNats(options: {
  count: number;
  binary: string;
  directory: string;
  network: Network;
}): Promise<NatsNodes> {
  const { count, binary, directory, network } = options;
  const ports = await ownPorts(count * 5);
  const of = (i: number) => {
    const [client, route, monitor, clientProxy, routeProxy] = ports.slice(i * 5, i * 5 + 5) as [
      number,
      number,
      number,
      number,
      number,
    ];
    return { client, route, monitor, clientProxy, routeProxy };
  };
  const all = Array.from({ length: count }, (_, i) => ({ name: `n${i + 1}`, ...of(i) }));
  mkdirSync(directory, { recursive: true });
  const parties: Party[] = [];
  for (const node of all) {
    const others = all.filter((other) => other !== node);
    const config = {
      server_name: node.name,
      listen: `127.0.0.1:${node.client}`,
      http: `127.0.0.1:${node.monitor}`,
      max_payload: 8 * 1024 * 1024,
      jetstream: { store_dir: join(directory, node.name) },
      authorization: { users: [{ user: NATS_USER, password: NATS_PASSWORD }] },
      ...(count > 1 && {
        cluster: {
          name: "chaos",
          listen: `127.0.0.1:${node.route}`,
          advertise: `127.0.0.1:${node.routeProxy}`,
          // Clients go through the network alone: they are not told the real addresses.
          no_advertise: true,
          routes: others.map(({ routeProxy }) => `nats://127.0.0.1:${routeProxy}`),
        },
      }),
    };
    const file = join(directory, `${node.name}.conf.json`);
    writeFileSync(file, JSON.stringify(config));
    await network.listen(node.name, { host: "127.0.0.1", port: node.clientProxy }, node.client);
    await network.listen(node.name, { host: "127.0.0.1", port: node.routeProxy }, node.route);
    const logFile = join(directory, `${node.name}.log`);
    parties.push(new Party({ name: node.name, command: binary, args: ["-c", file], logFile, speaks: false }));
  }
  for (const party of parties) party.start();
  const giveUpAtMs = systemClock.monotonicMs() + READY_MAX_MS;
  for (const { name, monitor } of all) {
    while (!(await isHealthy(monitor))) {
      if (systemClock.monotonicMs() > giveUpAtMs) throw new Error(`${name} is not healthy`);
      await systemClock.sleep(POLL_MS);
    }
  }
  const url = all
    .map(({ clientProxy }) => `nats://${NATS_USER}:${NATS_PASSWORD}@127.0.0.1:${clientProxy}`)
    .join(",");
  return { parties, url };
}

async function isHealthy(port: number): Promise<boolean> {
  try {
    return (await fetch(`http://127.0.0.1:${port}/healthz`)).ok;
  } catch {
    return false;
  }
}
