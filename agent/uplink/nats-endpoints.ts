/** How the NATS client is told of its servers, where it knows too little of the way to them. */
import { isIP } from "node:net";
import { checkServerIdentity, type PeerCertificate } from "node:tls";
import type { ConnectionOptions } from "nats";
import { tlsOf } from "../../shared/wire/nats-tls.ts";
import { addressOf, natsAddress, serverNameOf } from "../network/address.ts";
import { trustedCas } from "../network/dial.ts";
import type { Network } from "../network/network.ts";
import type { OwnDial } from "./nats-dial.ts";
import type { NatsPassage } from "./nats-passage.ts";

/** Before the next server is tried, where the client is given one at a time. */
const RECONNECTS_MAX = 1;

export type Endpoint = OwnDial &
  Pick<ConnectionOptions, "servers" | "tls" | "maxReconnectAttempts" | "ignoreClusterUpdates" | "resolve">;

/** What the client's `tls` is passed on to, which its type does not tell. */
interface TlsOptions {
  ca?: string | string[];
  servername?: string;
  checkServerIdentity?: (name: string, certificate: PeerCertificate) => Error | undefined;
}

export interface NatsWay {
  network: Network;
  /** Where the servers are reached through a gateway. */
  passage?: NatsPassage | undefined;
  signal?: AbortSignal;
}

/**
 * All servers at once where the client can do it by itself. One at a time, the one of `turn`, when a server is behind
 * the proxy, or speaks TLS at an IP address: the client holds a certificate against the name of the server that it was given,
 * which is not the listener's on loopback, and against "localhost" when that is an IP address. So too through a gateway, which
 * is told the server.
 */
export async function endpointFor(
  { network, passage, signal }: NatsWay,
  access: { servers: readonly string[]; caPem: string },
  turn: number,
): Promise<Endpoint> {
  const servers = access.servers.map((server) => ({ server, ...natsAddress(server) }));
  const tls = tlsFor(network, access);
  const alone = servers.some(
    ({ address }) => network.isTunnelled(address) || (tls.tls !== undefined && isIP(address.host) !== 0),
  );
  if (!alone && !passage) return { servers: [...access.servers], maxReconnectAttempts: -1, ...tls };
  const { server, scheme, address } = servers[turn % servers.length]!;
  const route = passage ? undefined : await network.route(address);
  const { host } = address;
  const named: TlsOptions = {
    ...tls.tls,
    servername: serverNameOf(host),
    checkServerIdentity: (_name, certificate) => checkServerIdentity(host, certificate),
  };
  return {
    ...(passage
      ? { servers: [server], resolve: false, dial: (target) => passage.dial(target, signal) }
      : { servers: [`${scheme}://${addressOf(route!.address)}`] }),
    // A single server that is away is waited for; of several, the next one is asked.
    maxReconnectAttempts: servers.length === 1 ? -1 : RECONNECTS_MAX,
    // Addresses that servers tell of each other lead past the proxy.
    ignoreClusterUpdates: true,
    ...(tls.tls === undefined ? {} : { tls: named as ConnectionOptions["tls"] & object }),
  };
}

function tlsFor(
  network: Network,
  { servers, caPem }: { servers: readonly string[]; caPem: string },
): { tls?: NonNullable<ConnectionOptions["tls"]> } {
  const options = tlsOf(servers, caPem);
  const { siteCaPem } = network.way;
  // The authority that the control plane names is the only one; without one, those of the system and the site.
  if (options.tls === undefined || caPem !== "" || siteCaPem === "") return options;
  return { tls: { ca: trustedCas(siteCaPem) as unknown as string } };
}
