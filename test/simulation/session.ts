/** One connection of an agent to a replica: a stream of messages each way, and one each way for reports. */

import type { Peer } from "../../control-plane/gateway/peer-identity.ts";
import type { HeartbeatVerdict } from "../../control-plane/gateway/ports.ts";
import type { AnnouncedKey, SentReport as SignedReport } from "../../control-plane/gateway/report-keys.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import type { Cordon__Output } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";
import type { Network } from "./network.ts";

export type ToReplica =
  | { kind: "hello"; slots: number; held: LeaseKey[]; announced: AnnouncedKey; cordonRevision: number }
  | { kind: "heartbeat"; seq: number; held: LeaseKey[]; freeSlots: number; cordonRevision: number };

export type ToAgent =
  | { kind: "welcome"; wallMs: number; cordon: Cordon__Output }
  | { kind: "reply"; seq: number; wallMs: number; verdict: HeartbeatVerdict; cordon: Cordon__Output }
  | { kind: "cancel"; lease: LeaseKey; reason: string }
  | { kind: "drain"; reconnectAfterMs: number };

export interface SentReport extends SignedReport {
  seq: string;
  payload: Buffer;
  signature: Buffer;
}

export interface Acked {
  ackedSeq: number;
  rejected: { seq: number; code: string }[];
}

export interface AgentEnd {
  readonly name: string;
  /** Its certificate, as the handshake shows it. */
  readonly peer: Peer;
  receive(session: Session, message: ToAgent): void;
  acked(session: Session, acked: Acked): void;
  broken(session: Session): void;
}

export interface ReplicaEnd {
  readonly name: string;
  /** Which of its processes it is: a connection does not outlive one. */
  readonly life: number;
  receive(session: Session, message: ToReplica): void;
  reports(session: Session, reports: SentReport[]): void;
  broken(session: Session): void;
}

export class Session {
  open = true;
  /** What was on its way when the agent gave the connection up may arrive all the same. */
  haunted = false;
  readonly agent: AgentEnd;
  /** As whom it opened the connection: a host that was replaced has another name since. */
  readonly agentName: string;
  readonly peer: Peer;
  readonly replica: ReplicaEnd;
  readonly #life: number;
  readonly #up: (deliver: () => void) => void;
  readonly #upReports: (deliver: () => void) => void;
  readonly #down: (deliver: () => void) => void;
  readonly #downAcks: (deliver: () => void) => void;

  constructor(network: Network, agent: AgentEnd, replica: ReplicaEnd) {
    this.agent = agent;
    this.agentName = agent.name;
    this.peer = agent.peer;
    this.replica = replica;
    this.#life = replica.life;
    const up = (): boolean => this.open || this.haunted;
    const down = (): boolean => this.open;
    this.#up = network.stream(agent.name, replica.name, up);
    this.#upReports = network.stream(agent.name, replica.name, up);
    this.#down = network.stream(replica.name, agent.name, down);
    this.#downAcks = network.stream(replica.name, agent.name, down);
  }

  toReplica(message: ToReplica): void {
    if (this.open) this.#up(() => this.#isCurrent() && this.replica.receive(this, message));
  }

  sendReports(reports: SentReport[]): void {
    if (this.open) this.#upReports(() => this.#isCurrent() && this.replica.reports(this, reports));
  }

  toAgent(message: ToAgent): void {
    if (this.open) this.#down(() => this.agent.receive(this, message));
  }

  acknowledge(acked: Acked): void {
    if (this.open) this.#downAcks(() => this.agent.acked(this, acked));
  }

  /** A new process answers what was meant for the old one with a reset. */
  #isCurrent(): boolean {
    if (this.replica.life === this.#life) return true;
    this.break(false);
    return false;
  }

  break(haunted: boolean): void {
    if (!this.open) return;
    this.open = false;
    this.haunted = haunted;
    this.agent.broken(this);
    this.replica.broken(this);
  }
}
