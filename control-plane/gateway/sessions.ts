/** The life lines of the agents: hello and welcome, heartbeats and their answers, cancels and drains. */
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import type { AgentMessage__Output } from "../../shared/wire/gen/insitu/agent/v1/AgentMessage.ts";
import type { Cordon } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";
import type { NatsAccess } from "../../shared/wire/gen/insitu/agent/v1/NatsAccess.ts";
import type { ServerMessage } from "../../shared/wire/gen/insitu/agent/v1/ServerMessage.ts";
import type { Welcome } from "../../shared/wire/gen/insitu/agent/v1/Welcome.ts";
import { subjects } from "../../shared/wire/subjects.ts";
import type { Fleet, Presence } from "../fleet/fleet-service.ts";
import type { PoisonSink } from "../poison/ports.ts";
import {
  checkVersion,
  parseHeartbeat,
  parseHello,
  parseRefusedOffer,
  parseReportKey,
  parseRoots,
} from "./messages.ts";
import type { OpenCall, OpenCalls } from "./open-calls.ts";
import type { Peer } from "./peer-identity.ts";
import type { AgentId, AgentSessions, HeartbeatVerdict, LeaseKeeper, LedgerView } from "./ports.ts";
import type { ReportKeys } from "./report-keys.ts";
import { type HeldRoots, RootNews, type RootNewsDeps } from "./root-news.ts";
import { failCall } from "./rpc-errors.ts";

export type SessionCall = ServerDuplexStream<AgentMessage__Output, ServerMessage>;

export interface GivenAccess {
  natsAccess: NatsAccess;
  /** Wall time. */
  renewAtMs: number;
  /** False once another key signs: the agent is to have another access then, before this one's is retired. */
  isCurrent(): boolean;
}

export interface SessionDeps {
  fleet: Fleet;
  leases: LeaseKeeper;
  reportKeys: ReportKeys;
  rootNews: RootNewsDeps;
  poison: PoisonSink;
  openCalls: OpenCalls;
  clock: Clock;
  log: Logger;
  /** How long an agent may say nothing. */
  silenceMaxMs: number;
  /** As the registry knows it now. */
  cordonOf(agent: AgentId): Cordon;
  welcome(peer: Peer): Omit<Welcome, "cordon">;
  /** Lets the agent into NATS with that key; undefined where NATS has no accounts. */
  access(peer: Peer, userKey: string): Promise<GivenAccess | undefined>;
  /** Of the living replicas, this one first. */
  gateways(): string[];
  /** The newest checkpoint, with the proof from a size; undefined while there is none. */
  ledger?: LedgerView | undefined;
}

/** How long a new stream may stay without its hello. */
const HELLO_WITHIN_MS = 10_000;
/** Answers that wait because the agent does not read them. */
const UNREAD_MAX = 256;

export class Sessions implements AgentSessions {
  readonly #deps: SessionDeps;
  readonly #sessions = new Map<AgentId, Session>();

  constructor(deps: SessionDeps) {
    this.#deps = deps;
  }

  accept(call: SessionCall, peer: Peer): void {
    new Session(call, peer, this.#deps, this.#sessions).begin();
  }

  cancel(agent: AgentId, lease: LeaseKey, reason: string): boolean {
    return this.#sessions.get(agent)?.send({ cancel: { lease, reason } }) ?? false;
  }

  /** What another replica says of leases that it decides for: as if it came with the last heartbeat's answer. */
  tell(agent: AgentId, verdict: HeartbeatVerdict): boolean {
    return this.#sessions.get(agent)?.tell(verdict) ?? false;
  }

  /** The agent's record has changed. Its cordon, if it is another by now, does not wait for the next heartbeat. */
  recordChanged(agent: AgentId): void {
    this.#sessions.get(agent)?.tellCordon();
  }

  get size(): number {
    return this.#sessions.size;
  }

  /** Asks every agent to come back later. `delayMs` is asked once for each, to spread the load. */
  drain(delayMs: () => number, reason: string): void {
    for (const session of this.#sessions.values()) {
      const [, ...gateways] = this.#deps.gateways();
      session.send({ drain: { reconnectAfterMs: Math.round(delayMs()), reason, gateways } });
    }
  }

  /** Ends all of them in peace. */
  endAll(): void {
    for (const session of [...this.#sessions.values()]) session.finish();
  }
}

class Session implements OpenCall {
  readonly kind = "session";
  readonly peer: Peer;
  readonly #call: SessionCall;
  readonly #deps: SessionDeps;
  readonly #sessions: Map<AgentId, Session>;
  readonly #log: Logger;
  #presence: Presence | undefined;
  #lastHeardMs: number;
  #over = false;
  /** Of the last heartbeat. */
  #lastSeq = 0;
  /** What the agent was told of gateways. */
  #told = "";
  #toldCordon: Cordon["revision"];
  #goodbye: string | undefined;
  #userKey = "";
  /** When the agent is to have another access to NATS. Wall time. */
  #accessDueMs = Number.POSITIVE_INFINITY;
  #accessIsCurrent = (): boolean => true;
  /** Said once. */
  #accessTrouble = "";
  readonly #rootNews: RootNews;
  #ledgerTrouble = "";

  constructor(call: SessionCall, peer: Peer, deps: SessionDeps, sessions: Map<AgentId, Session>) {
    this.#call = call;
    this.peer = peer;
    this.#deps = deps;
    this.#sessions = sessions;
    this.#log = deps.log.child({ agentId: peer.id });
    this.#lastHeardMs = deps.clock.monotonicMs();
    this.#rootNews = new RootNews(deps.rootNews, peer);
  }

  begin(): void {
    const call = this.#call;
    call.on("data", (message: AgentMessage__Output) => this.#receive(message));
    // "end" comes first whether the agent died or stopped writing, so it says nothing yet; when it only stopped
    // writing, our own end brings the close.
    call.on("end", () => {
      if (!call.writableEnded) call.end();
    });
    call.on("cancelled", () => this.#leave("cancelled"));
    call.on("close", () => this.#leave("closed"));
    call.on("error", () => this.#leave("failed"));
    this.#deps.openCalls.add(this);
  }

  /** False when it can no longer reach the agent. */
  send(message: ServerMessage): boolean {
    if (this.#over || this.#call.cancelled || this.#call.writableEnded) return false;
    if (this.#call.writableLength >= UNREAD_MAX) {
      this.fail(
        new InsituError("limit.exceeded", "the agent does not read what it is told", { retryable: true }),
      );
      return false;
    }
    this.#call.write(message);
    return true;
  }

  tell(verdict: HeartbeatVerdict): boolean {
    return this.send({ heartbeatReply: this.#heartbeatReply(verdict) });
  }

  tellCordon(): void {
    const { revision } = this.#deps.cordonOf(this.peer.id);
    if (this.#presence === undefined || revision === this.#toldCordon) return;
    this.tell({ renewed: [], superseded: [], cancels: [] });
  }

  #heartbeatReply(verdict: HeartbeatVerdict) {
    const cordon = this.#deps.cordonOf(this.peer.id);
    this.#toldCordon = cordon.revision;
    return {
      seq: String(this.#lastSeq),
      renewed: verdict.renewed,
      cancels: verdict.cancels.map(({ lease, reason }) => ({ lease, reason })),
      superseded: verdict.superseded,
      cordoned: cordon.cordoned ?? false,
      wallMs: String(this.#deps.clock.wallMs()),
      cordon,
    };
  }

  fail(err: InsituError): void {
    if (this.#over) return;
    this.#log.info({ err: { code: err.code, message: err.message } }, "session ended by the server");
    this.#leave("failed");
    failCall(this.#call, err);
  }

  finish(): void {
    if (this.#over) return;
    this.#leave("finished");
    this.#call.end();
  }

  tick(nowMs: number): void {
    const limitMs = this.#presence === undefined ? HELLO_WITHIN_MS : this.#deps.silenceMaxMs;
    if (nowMs - this.#lastHeardMs < limitMs) return;
    const what = this.#presence === undefined ? "hello" : "heartbeat";
    this.fail(new InsituError("timeout", `no ${what} came for ${limitMs} ms`, { retryable: true }));
  }

  #receive(message: AgentMessage__Output): void {
    if (this.#over) return;
    this.#lastHeardMs = this.#deps.clock.monotonicMs();
    try {
      if (message.message === "hello" && message.hello) this.#onHello(message.hello);
      else if (message.message === "heartbeat" && message.heartbeat) this.#onHeartbeat(message.heartbeat);
      else if (message.message === "refusedOffer" && message.refusedOffer)
        this.#onRefused(message.refusedOffer);
      else if (message.message === "goodbye") this.#goodbye = message.goodbye?.reason.slice(0, 200) ?? "";
      // Anything else is from a newer agent, and additions are ignored.
    } catch (err) {
      const failure = InsituError.from(err);
      if (failure.code === "internal") this.#log.error({ err }, "session message failed");
      this.fail(failure);
    }
  }

  #onHello(message: NonNullable<AgentMessage__Output["hello"]>): void {
    if (this.#presence !== undefined) throw new InsituError("request.invalid", "hello came twice");
    checkVersion(message.version);
    const hello = parseHello(message);
    const { fleet, leases, reportKeys } = this.#deps;
    reportKeys.announce(this.peer, parseReportKey(message));
    this.#sessions.set(this.peer.id, this);
    this.#presence = fleet.connected(this.peer, hello);
    this.#log.info(
      { instanceId: hello.instanceId, software: hello.software, slots: hello.slots },
      "agent connected",
    );
    const welcome = this.#deps.welcome(this.peer);
    const cordon = this.#deps.cordonOf(this.peer.id);
    this.#told = String(welcome.gateways);
    this.#toldCordon = cordon.revision;
    this.send({ welcome: { ...welcome, cordon } });
    this.#userKey = message.natsUserKey;
    void this.#giveAccess();
    // What it still holds is renewed at once: the time it was away must not count twice.
    const verdict = leases.heartbeat(this.peer.id, hello.held);
    for (const { lease, reason } of verdict.cancels) this.send({ cancel: { lease, reason } });
    this.#onRoots(parseRoots(message.roots));
  }

  #onRoots(held: HeldRoots | null): void {
    const roots = this.#rootNews.heard(held);
    if (roots !== undefined) this.send({ roots });
  }

  #onHeartbeat(message: NonNullable<AgentMessage__Output["heartbeat"]>): void {
    if (this.#presence === undefined)
      throw new InsituError("request.invalid", "a heartbeat came before the hello");
    const pulse = parseHeartbeat(message);
    this.#lastSeq = pulse.seq;
    // An older connection of the agent, whose hello came late, may have taken the place, and have gone with it since.
    this.#sessions.set(this.peer.id, this);
    const verdict = this.#deps.leases.heartbeat(this.peer.id, pulse.held);
    this.#presence.pulse(pulse);
    this.#noteLedger(pulse.ledger?.trouble ?? "");
    if (this.#deps.clock.wallMs() >= this.#accessDueMs || !this.#accessIsCurrent()) void this.#giveAccess();
    const gateways = this.#deps.gateways();
    const changed = String(gateways) !== this.#told;
    this.#told = String(gateways);
    this.send({
      heartbeatReply: {
        ...this.#heartbeatReply(verdict),
        gateways: changed ? gateways : [],
        ledger: pulse.ledger ? (this.#deps.ledger?.(pulse.ledger.size) ?? null) : null,
      },
    });
    this.#onRoots(parseRoots(message.roots));
  }

  /** A site holds evidence that the ledger was changed: whoever runs the centre is told, too. */
  #noteLedger(trouble: string): void {
    if (trouble !== "" && trouble !== this.#ledgerTrouble)
      this.#log.error({ trouble }, "the ledger contradicts what an agent remembers of it");
    this.#ledgerTrouble = trouble;
  }

  /** Never rejects: without the store, the agent goes on with the access that it has, and the next heartbeat asks again. */
  async #giveAccess(): Promise<void> {
    this.#accessDueMs = Number.POSITIVE_INFINITY;
    this.#accessIsCurrent = () => true;
    try {
      const access = await this.#deps.access(this.peer, this.#userKey);
      if (!access) return;
      this.#accessDueMs = access.renewAtMs;
      this.#accessIsCurrent = access.isCurrent;
      this.#accessTrouble = "";
      this.send({ natsAccess: access.natsAccess });
    } catch (err) {
      this.#accessDueMs = this.#deps.clock.wallMs();
      const { message } = InsituError.from(err);
      if (message === this.#accessTrouble) return;
      this.#accessTrouble = message;
      this.#log.warn({ err }, "agent is not let into NATS yet");
    }
  }

  /** It is off the queue already. What the agent could not read, a person is shown. */
  #onRefused(message: NonNullable<AgentMessage__Output["refusedOffer"]>): void {
    const { reason, payload: data } = parseRefusedOffer(message);
    const { id: from, environment } = this.peer;
    void this.#deps.poison.put({
      source: "work",
      subject: subjects.work(environment),
      seq: null,
      from,
      reason,
      data,
    });
  }

  #leave(how: "cancelled" | "closed" | "failed" | "finished"): void {
    if (this.#over) return;
    this.#over = true;
    this.#deps.openCalls.remove(this);
    if (this.#sessions.get(this.peer.id) === this) this.#sessions.delete(this.peer.id);
    if (this.#presence === undefined) return;
    this.#presence.end();
    this.#log.info({ how, goodbye: this.#goodbye }, "agent disconnected");
  }
}
