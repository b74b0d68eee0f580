/** Writes what a NATS of one's own needs, all of it or nothing: keys, certificates, a directory for each node. */
import { mkdir, readdir, rename, rm, rmdir, writeFile } from "node:fs/promises";
import { isIP } from "node:net";
import { basename, dirname, join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import { openAuthority } from "../access/authority.ts";
import { certificatePathOf } from "../access/authority-files.ts";
import { loadOrCreateNatsOperator } from "../access/nats-operator.ts";
import type { CertificatePair } from "../access/pki.ts";
import { type NatsNode, type NodeConfigOptions, nodeConfig, type TlsFiles } from "./node-config.ts";
import { openRoutes, type RouteAuthority } from "./route-authority.ts";
import { FIRST_ROUTES, findSetup, saveSetup } from "./saved-setup.ts";

const DAY_MS = 86_400_000;
/** Longer than that of the gateway, which makes a new one at each start: these are copied to hosts by hand. */
const VALIDITY_MS = 2 * 365 * DAY_MS;

export interface SetupOrder {
  /** Made here; an empty one is taken too. */
  out: string;
  /** Keys that are there are used, others are made. Undefined: `secrets` below `out`. */
  secrets: string | undefined;
  hosts: readonly string[];
  ports: NodeConfigOptions["ports"];
  /** Directories on the nodes, each node has one of its name below them. */
  installDir: string;
  dataDir: string;
  sync: NodeConfigOptions["sync"];
  /** Paths on the nodes of a certificate that others issue. */
  certificate: TlsFiles | undefined;
  trustDomain: string;
  clock: Clock;
}

export interface Setup {
  nodes: readonly NatsNode[];
  secrets: string;
  /** In the secrets: certificates of the authority that signs those of the nodes. */
  caFile: string;
  /** When the first certificate that was made here ends; null when none was. */
  notAfterMs: number | null;
}

/** @throws request.invalid when there is something at `out` already; internal when the secrets are damaged */
export async function writeSetup(order: SetupOrder): Promise<Setup> {
  await refuseFilled(order.out);
  await mkdir(dirname(order.out), { recursive: true });
  const draft = `${order.out}.${newSecret(6)}.new`;
  await mkdir(draft, { mode: 0o700 });
  try {
    const setup = await fill(order, draft);
    await rmdir(order.out).catch(() => undefined); // it is empty or not there, else the next line says so
    await rename(draft, order.out);
    return { ...setup, secrets: order.secrets ?? join(order.out, "secrets") };
  } catch (err) {
    await rm(draft, { recursive: true, force: true });
    throw err;
  }
}

async function fill(order: SetupOrder, draft: string): Promise<Omit<Setup, "secrets">> {
  const { clock, trustDomain, hosts, certificate } = order;
  const secrets = order.secrets ?? join(draft, "secrets");
  const authority = { clock, trustDomain, serverValidityMs: VALIDITY_MS };
  const pki = await openAuthority({ ...authority, directory: secrets });
  const { config: operator } = await loadOrCreateNatsOperator(secrets);
  const turns = (await findSetup(secrets))?.routes ?? FIRST_ROUTES;
  const routes = hosts.length > 1 ? await openRoutes(order, secrets, turns) : undefined;
  const { ports, installDir, dataDir, sync } = order;
  await saveSetup(secrets, {
    ...{ hosts: [...hosts], ports, installDir, dataDir, sync, trustDomain, routes: turns },
    ...(certificate ? { certificate } : {}),
  });
  const nodes = hosts.map((host, i) => ({ name: `n${i + 1}`, host }));
  const ends: number[] = [];
  for (const node of nodes) {
    const local = join(draft, node.name);
    const installed = (name: string): string => join(order.installDir, node.name, name);
    await mkdir(local, { mode: 0o700 });
    if (!certificate) {
      const pair = await pki.issueServerCertificate(namesOf(node));
      ends.push(pair.notAfterMs);
      await writePair(local, "client", pair);
    }
    if (routes) ends.push(await writeRoute(local, node, routes));
    const text = nodeConfig({
      node,
      nodes,
      operator,
      ports: order.ports,
      data: join(order.dataDir, node.name),
      sync: order.sync,
      client: certificate ?? { certificate: installed("client.crt.pem"), key: installed("client.key.pem") },
      route: {
        certificate: installed("route.crt.pem"),
        key: installed("route.key.pem"),
        ca: installed("route-ca.crt.pem"),
      },
    });
    await writeFile(join(local, "nats.conf"), text, { mode: 0o600, flag: "wx" });
  }
  const caFile = basename(certificatePathOf(pki.issuers[0]!.keyPath));
  return { nodes, caFile, notAfterMs: ends.length === 0 ? null : Math.min(...ends) };
}

async function writeRoute(directory: string, node: NatsNode, routes: RouteAuthority): Promise<number> {
  const pair = await routes.issue(namesOf(node));
  await writePair(directory, "route", pair);
  await writeFile(join(directory, "route-ca.crt.pem"), routes.trustedPem, { mode: 0o600, flag: "wx" });
  return pair.notAfterMs;
}

async function writePair(directory: string, name: string, pair: CertificatePair): Promise<void> {
  await writeFile(join(directory, `${name}.crt.pem`), pair.chainPem, { mode: 0o600, flag: "wx" });
  await writeFile(join(directory, `${name}.key.pem`), pair.keyPem, { mode: 0o600, flag: "wx" });
}

function namesOf({ host }: NatsNode): { dns: string[]; ips: string[] } {
  return isIP(host) === 0 ? { dns: [host], ips: [] } : { dns: [], ips: [host] };
}

async function refuseFilled(out: string): Promise<void> {
  let entries: string[];
  try {
    entries = await readdir(out);
  } catch (err) {
    const { code } = err as NodeJS.ErrnoException;
    if (code === "ENOENT") return;
    throw new InsituError("request.invalid", `--out ${out} is no directory that can be written (${code})`, {
      cause: err,
    });
  }
  if (entries.length === 0) return;
  throw new InsituError(
    "request.invalid",
    `${out} holds ${basename(entries[0]!)} and more, and nothing is overwritten: name another directory with --out. With --secrets and the directory of secrets that you have, it gets the same keys and new certificates`,
  );
}
