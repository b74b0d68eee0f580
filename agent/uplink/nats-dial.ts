/**
 * Lets a connection of the NATS client (nats 2.29.3) be dialled by the agent: the client knows no way out but TCP to the server
 * itself. A listener on loopback, as for the site's proxy, would carry the agent's certificate for whoever of the host connects to it.
 */
import type { Duplex } from "node:stream";
import { NodeTransport } from "nats/lib/src/node_transport.js";
import { type HostAndPort, hostAndPort } from "../network/address.ts";

/** One more of the client's options, which it hands to its transport as it is. */
export interface OwnDial {
  dial?: (target: HostAndPort) => Promise<Duplex>;
}

interface Transport {
  options: OwnDial;
  dial(server: { listen: string }): Promise<unknown>;
}

let taught = false;

/** Before the first connection of the process. Twice is once. */
export function teachNatsToDial(): void {
  if (taught) return;
  taught = true;
  const prototype = NodeTransport.prototype as unknown as Transport;
  const { dial } = prototype;
  prototype.dial = function (this: Transport, server) {
    const own = this.options.dial;
    return own ? own(hostAndPort(server.listen)) : dial.call(this, server);
  };
}
