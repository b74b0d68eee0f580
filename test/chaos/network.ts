/** What stands for the network between the parties: a proxy on loopback, or namespaces with links of their own. */
import type { Fault, FaultKind } from "./faults.ts";

export const NETWORKS = ["namespaces", "proxy"] as const;
export type NetworkName = (typeof NETWORKS)[number];

export interface Network extends AsyncDisposable {
  readonly name: NetworkName;
  /** Addresses are not of loopback: whoever listens there needs a certificate. */
  readonly remote: boolean;
  /** Kinds of faults that it cannot do, with the reason. */
  readonly cannot: ReadonlyMap<FaultKind, string>;
  /** Makes room for a party, before anything of it starts. Gives the address to bind: we ourselves reach it there. */
  host(party: string): string;
  /** Ports of that address, which stay the party's own over restarts. */
  ports(party: string, count: number): Promise<number[]>;
  /** The address at which the other parties reach this port; resolves when they do. */
  open(party: string, port: number): Promise<string>;
  /** What to start so that the command runs at the party's host, as the same process. */
  at(party: string, command: string, args: readonly string[]): { command: string; args: readonly string[] };
  /** @param fault one of the network: `isOfNetwork` */
  break(fault: Fault): void;
  heal(fault: Fault): void;
  /** The party's host says no word more, not even that its connections are closed; until `heal`. */
  powerOff(fault: Fault): void;
}
