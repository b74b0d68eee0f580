/** What a nats-server of one's own is configured with: operator mode, TLS to clients and, in a cluster, between servers. */
import { isIP } from "node:net";
import type { OperatorConfig } from "../access/nats-operator.ts";

export interface NatsNode {
  name: string;
  /** A name or an address under which clients and the other nodes reach it. */
  host: string;
}

/** Paths on the node. */
export interface TlsFiles {
  certificate: string;
  key: string;
}

export interface NodeConfigOptions {
  node: NatsNode;
  /** All of them, itself too. */
  nodes: readonly NatsNode[];
  operator: OperatorConfig;
  ports: { client: number; route: number; monitor: number };
  /** Directory of streams and accounts on the node. */
  data: string;
  /** `always` needs nats-server 2.10 or newer: one before that does not start with it. */
  sync: "always" | "interval";
  client: TlsFiles;
  route: TlsFiles & { ca: string };
}

const MAX_PAYLOAD_BYTES = 8 * 1024 * 1024;
/** More than any disk has, as in `control-plane/store/nats-server.ts`, which says why. */
const MAX_FILE_STORE_BYTES = 1024 ** 5;
/** In seconds; a host under load takes its time for a handshake, and a route that fails is tried again and again. */
const TLS_TIMEOUT_S = 5;
/** How long a node that was away may not know that an agent's key was revoked. */
const ACCOUNTS_SYNC = "10s";
/** For TLS 1.2; those of 1.3 are all good. RFC 9325, 4.2. Those with ChaCha20 go by other names in newer nats-servers. */
const CIPHERS = [
  "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
  "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
  "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
  "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
];

/** The text of its configuration file. JSON is a subset of nats-server's own language. */
export function nodeConfig(options: NodeConfigOptions): string {
  const { node, nodes, operator, ports, data, sync, client } = options;
  const config = {
    server_name: node.name,
    listen: hostPort(listenHost(node.host), ports.client),
    ...(ports.monitor === 0 ? {} : { http: `127.0.0.1:${ports.monitor}` }),
    max_payload: MAX_PAYLOAD_BYTES,
    jetstream: {
      store_dir: data,
      max_file_store: MAX_FILE_STORE_BYTES,
      ...(sync === "always" ? { sync_interval: "always" } : {}),
    },
    operator: operator.operatorJwt,
    system_account: operator.systemAccount,
    resolver: { type: "full", dir: `${data}/accounts`, allow_delete: false, interval: ACCOUNTS_SYNC },
    resolver_preload: operator.preload,
    tls: {
      cert_file: client.certificate,
      key_file: client.key,
      timeout: TLS_TIMEOUT_S,
      cipher_suites: CIPHERS,
    },
    ...(nodes.length > 1 ? { cluster: clusterSection(options) } : {}),
  };
  return `${JSON.stringify(config, null, 2)}\n`;
}

/** Both ends of a route show a certificate of the routes' own authority, which gives none to agents. */
function clusterSection({ node, nodes, ports, route }: NodeConfigOptions): object {
  return {
    name: "insitu",
    listen: hostPort(listenHost(node.host), ports.route),
    // Clients are given all servers; addresses that servers see of each other are in no certificate.
    no_advertise: true,
    routes: nodes.map(({ host }) => `nats-route://${hostPort(host, ports.route)}`),
    tls: {
      cert_file: route.certificate,
      key_file: route.key,
      ca_file: route.ca,
      verify: true,
      timeout: TLS_TIMEOUT_S,
      cipher_suites: CIPHERS,
    },
  };
}

/** As `--nats-url` takes them. */
export function natsUrlOf(nodes: readonly NatsNode[], port: number): string {
  return nodes.map(({ host }) => `tls://${hostPort(host, port)}`).join(",");
}

/** An address is also the one to listen on; under a name it may have several. */
function listenHost(host: string): string {
  return isIP(host) === 0 ? "0.0.0.0" : host;
}

function hostPort(host: string, port: number): string {
  return `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
}
