/** What agents know of their cordons, by the messages that reached them; the agents' own idea of it has no part in this. */
import type { AgentRecord } from "../../control-plane/fleet/agent-record.ts";

interface Known {
  /** The highest revision that the agent has told the control plane it will not forget. */
  claimed: number;
  /** The highest that it has heard of; a crash takes what it has not claimed. */
  heard: number;
}

export class CordonBook {
  /** Whether the agent was cordoned, by `agent@revision`. */
  readonly #written = new Map<string, boolean>();
  readonly #known = new Map<string, Known>();

  written({ environment, name, cordon, cordonRevision }: AgentRecord): void {
    this.#written.set(`${environment}/${name}@${cordonRevision}`, cordon !== null);
  }

  heard(agent: string, revision: number): void {
    const known = this.#of(agent);
    known.heard = Math.max(known.heard, revision);
  }

  claimed(agent: string, revision: number): void {
    const known = this.#of(agent);
    known.claimed = Math.max(known.claimed, revision);
  }

  crashed(agent: string): void {
    const known = this.#of(agent);
    known.heard = known.claimed;
  }

  /** Whether the agent knows that it may take nothing. */
  knowsOfCordon(agent: string): boolean {
    const { heard, claimed } = this.#of(agent);
    return this.#written.get(`${agent}@${Math.max(heard, claimed)}`) === true;
  }

  #of(agent: string): Known {
    const known = this.#known.get(agent) ?? { claimed: 0, heard: 0 };
    this.#known.set(agent, known);
    return known;
  }
}
