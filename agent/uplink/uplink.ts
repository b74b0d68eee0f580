/**
 * The agent's one connection to the control plane: session, reports and logs over mutual TLS, opened from here,
 * opened again with jitter whenever it ends.
 */
import type { ClientDuplexStream, ServiceError } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Random, Timer } from "../../shared/system.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import type { AgentMessage } from "../../shared/wire/gen/insitu/agent/v1/AgentMessage.ts";
import type { Cordon__Output } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";
import type { Lease__Output } from "../../shared/wire/gen/insitu/agent/v1/Lease.ts";
import type { LedgerCheckpoint__Output } from "../../shared/wire/gen/insitu/agent/v1/LedgerCheckpoint.ts";
import type { LogBatch } from "../../shared/wire/gen/insitu/agent/v1/LogBatch.ts";
import type { NatsAccess__Output } from "../../shared/wire/gen/insitu/agent/v1/NatsAccess.ts";
import type { RenewResponse__Output } from "../../shared/wire/gen/insitu/agent/v1/RenewResponse.ts";
import type { ReportBatch } from "../../shared/wire/gen/insitu/agent/v1/ReportBatch.ts";
import type { Roots__Output } from "../../shared/wire/gen/insitu/agent/v1/Roots.ts";
import type { ServerMessage__Output } from "../../shared/wire/gen/insitu/agent/v1/ServerMessage.ts";
import type { Welcome__Output } from "../../shared/wire/gen/insitu/agent/v1/Welcome.ts";
import { type AgentGatewayClient, ERROR_CODE_METADATA } from "../../shared/wire/grpc.ts";
import { CAPABILITY_REPORT_BATCH, PROTOCOL_MAJOR } from "../../shared/wire/protocol.ts";
import type { Identity } from "../enrolment/identity.ts";
import type { ReportSigner } from "../enrolment/report-key.ts";
import { type HeldRoots, pinsOf } from "../enrolment/trusted-roots.ts";
import type { Journal, StoredReport } from "../journal/journal.ts";
import type { LogChunkRecord } from "../journal/log-chunk.ts";
import { hostAndPort } from "../network/address.ts";
import type { Network } from "../network/network.ts";
import type { SandboxFacts } from "../sandbox/sandbox.ts";
import { Delivery } from "./delivery.ts";
import { openGateway } from "./gateway-client.ts";
import type { Gateways } from "./gateways.ts";
import { explainTls } from "./tls-trouble.ts";
import { softwareVersion } from "./version.ts";

const BACKOFF_MIN_MS = 200;
const BACKOFF_MAX_MS = 10_000;
const WELCOME_TIMEOUT_MS = 10_000;
const RENEW_TIMEOUT_MS = 20_000;
/** One that was put out asks now and then whether that still holds: after a restore, for example. */
const DENIED_RETRY_MS = 60_000;
/** Heartbeats without an answer before the connection is given up. */
const MISSED_MAX = 3;

/** What the uplink asks and tells the rest of the agent. */
export interface AgentSide {
  hello(): {
    slots: number;
    executors: string[];
    datasets: string[];
    labels: Record<string, string>;
    hostname: string;
    sandbox: SandboxFacts;
    /** Public, of the key on this host that NATS is to let in. */
    natsUserKey: string;
  };
  held(): LeaseKey[];
  freeSlots(): number;
  /** Empty, or why nothing is pulled. */
  notTakingWork(): string;
  /** Undefined: the site has none. */
  sitePolicy(): { digest: string; trouble: string } | undefined;
  /** Since this process started. */
  refusedOffers(): number;
  /** The checkpoint of the ledger that is held; undefined: nothing is asked about it now. */
  ledger(): { size: number; trouble: string } | undefined;
  ledgerShown(checkpoint: LedgerCheckpoint__Output): void;
  welcomed(welcome: Welcome__Output): void;
  /** Where work is pulled from now on, and as whom. */
  natsAccess(access: NatsAccess__Output): void;
  /** Which roots the control plane wants trusted from now on. */
  roots(told: Roots__Output): void;
  cancel(lease: LeaseKey, reason: string): void;
  superseded(lease: LeaseKey): void;
  /** The control plane has confirmed that it is this agent's. */
  renewed(lease: LeaseKey): void;
  /** Whether an attempt waits for that before it starts. */
  awaitsGrant(): boolean;
  /** Wall time of the control plane. */
  centreTime(wallMs: number): void;
  /** Whether it may take new work; null from a control plane that does not say. */
  cordon(told: Cordon__Output | null): void;
  /** Of the last that it will not forget. */
  cordonRevision(): number;
  /** The control plane does not take this agent, by whatever replica: it was revoked, or has enrolled anew elsewhere. */
  denied(reason: string): void;
}

export interface UplinkOptions {
  clock: Clock;
  random: Random;
  log: Logger;
  identity: Identity;
  instanceId: string;
  journal: Journal;
  signer: ReportSigner;
  gateways: Gateways;
  network: Network;
  side: AgentSide;
}

/** Messages that were no offers, which wait for a connection; and how much of each is sent. */
const REFUSED_MAX = 16;
const REFUSED_MAX_BYTES = 256 * 1024;

type Client = InstanceType<typeof AgentGatewayClient>;
type SessionStream = ClientDuplexStream<AgentMessage, ServerMessage__Output>;

export class Uplink {
  readonly #options: UplinkOptions;
  #identity: Identity;
  /** Of the roots of the identity. */
  #pins: string[];
  /** Of the connection that there is. */
  #client: Client | undefined;
  /** To another identity. */
  #moving = false;
  readonly #stop = new AbortController();
  readonly #reports: Delivery<StoredReport, ReportBatch>;
  readonly #logs: Delivery<LogChunkRecord, LogBatch>;
  #session: SessionStream | undefined;
  #done: Promise<void> = Promise.resolve();
  #heartbeatSeq = 0;
  #answeredSeq = 0;
  #reconnectAfterMs: number | undefined;
  /** Whether the replica takes one signature for all reports of a batch. */
  #inBatches = false;
  /** Told when there is a connection; the oldest give way. */
  #refused: { payload: Uint8Array; reason: string }[] = [];
  connected = false;

  constructor(options: UplinkOptions) {
    this.#options = options;
    this.#identity = options.identity;
    this.#pins = pinsOf(options.identity.caPem);
    const { journal, log, signer } = options;
    this.#reports = new Delivery(
      reportSource(journal, signer, { inBatches: () => this.#inBatches, acked: () => this.#afterReports() }),
      log,
    );
    this.#logs = new Delivery(logSource(journal, signer), log);
    journal.onStored({ report: () => this.#reports.pump(), log: () => this.#logs.pump() });
  }

  /** As it is now. */
  get identity(): Identity {
    return this.#identity;
  }

  start(): void {
    this.#done = this.#run();
  }

  /** A certificate for the key of the request. @throws InsituError */
  async renew(csrDer: Buffer): Promise<Buffer> {
    const client = this.#client;
    if (!this.connected || !client)
      throw new InsituError("unreachable", "the control plane is not connected", { retryable: true });
    return await certificateOf((answer) =>
      client.Renew({ csrDer, version: softwareVersion() }, this.#deadline(), answer),
    );
  }

  /** A certificate for the key of the request, without showing one. @throws InsituError */
  async recover(csrDer: Buffer): Promise<Buffer> {
    const { caPem, environment, name: agentName } = this.#identity;
    const { gateways, network } = this.#options;
    const route = await network.route(hostAndPort(gateways.current));
    const client = openGateway(gateways.current, { caPem }, {}, route);
    try {
      const request = { environment, agentName, csrDer, version: softwareVersion() };
      return await certificateOf((answer) => client.Recover(request, this.#deadline(), answer));
    } finally {
      client.close();
    }
  }

  #deadline(): { deadline: number } {
    return { deadline: this.#options.clock.wallMs() + RENEW_TIMEOUT_MS };
  }

  /** From the next connection on. What is open stays. */
  useRoots({ caPem, ...roots }: HeldRoots): void {
    this.#identity = { ...this.#identity, caPem, roots };
    this.#pins = pinsOf(caPem);
    this.beat();
  }

  /** Connects anew with it, at once; steps, leases and what is not delivered are not touched by that. */
  useIdentity(identity: Identity): void {
    this.#identity = identity;
    if (!this.connected) return;
    this.#moving = true;
    this.#session?.end();
  }

  /** A message on the queue that was no offer: the control plane keeps a copy for a person, if this gets there. */
  tellRefused(payload: Uint8Array, reason: string): void {
    this.#refused.push({ payload: Uint8Array.from(payload.subarray(0, REFUSED_MAX_BYTES)), reason });
    if (this.#refused.length > REFUSED_MAX) this.#refused.shift();
    this.#sendRefused();
  }

  #sendRefused(): void {
    if (!this.connected || !this.#session) return;
    for (const refusedOffer of this.#refused.splice(0)) this.#session.write({ refusedOffer });
  }

  /** Says goodbye and closes. */
  async close(reason: string): Promise<void> {
    if (this.connected) this.#session?.write({ goodbye: { reason } });
    this.#session?.end();
    this.#stop.abort(new Error(reason));
    await this.#done;
  }

  async #run(): Promise<void> {
    const { clock, random, log, gateways } = this.#options;
    let delayMs = BACKOFF_MIN_MS;
    while (!this.#stop.signal.aborted) {
      // A connection each: where packets are lost without a word, streams on the old one would wait for its keepalive.
      const ended = await this.#life(gateways.current);
      if (this.#stop.signal.aborted) break;
      const moving = this.#moving;
      this.#moving = false;
      if (moving && !ended.denied) {
        log.info({}, "connecting with the renewed certificate");
        continue;
      }
      gateways.advance();
      if (ended.denied) {
        this.#options.side.denied(ended.reason);
        await clock.sleep(DENIED_RETRY_MS * (0.5 + random() / 2), this.#stop.signal).catch(() => undefined);
        continue;
      }
      delayMs = ended.welcomed ? BACKOFF_MIN_MS : Math.min(BACKOFF_MAX_MS, delayMs * 2);
      const waitMs = this.#reconnectAfterMs ?? delayMs * (0.5 + random() / 2);
      this.#reconnectAfterMs = undefined;
      log.warn(
        { reason: ended.reason, retryInMs: Math.round(waitMs) },
        "control plane lost; connecting again",
      );
      await clock.sleep(waitMs, this.#stop.signal).catch(() => undefined);
    }
  }

  async #life(address: string): Promise<{ welcomed: boolean; denied: boolean; reason: string }> {
    let client: Client;
    try {
      client = await this.#open(address);
    } catch (err) {
      const reason = err instanceof Error ? err.message : String(err);
      return { welcomed: false, denied: false, reason };
    }
    try {
      // It may have been told to stop meanwhile: who opens a stream now is not told any more.
      if (this.#stop.signal.aborted) return { welcomed: false, denied: false, reason: "the agent stops" };
      this.#client = client;
      return await this.#connection(client);
    } finally {
      this.#client = undefined;
      client.close();
    }
  }

  async #open(address: string): Promise<Client> {
    const route = await this.#options.network.route(hostAndPort(address));
    const options = {
      "grpc.keepalive_time_ms": 20_000,
      "grpc.keepalive_timeout_ms": 10_000,
      "grpc.keepalive_permit_without_calls": 1,
      "grpc.use_local_subchannel_pool": 1,
      "grpc.initial_reconnect_backoff_ms": BACKOFF_MIN_MS,
      "grpc.max_reconnect_backoff_ms": BACKOFF_MAX_MS,
      "grpc.max_receive_message_length": 8 * 1024 * 1024,
    };
    return openGateway(address, this.#identity, options, route);
  }

  /** One life of the three streams. Resolves when any of them has ended. */
  async #connection(client: Client): Promise<{ welcomed: boolean; denied: boolean; reason: string }> {
    const { clock } = this.#options;
    const session = client.Session();
    this.#session = session;
    const streams: ClientDuplexStream<never, unknown>[] = [session as never];
    let timer: Timer = clock.after(WELCOME_TIMEOUT_MS, () => session.cancel());
    let welcomed = false;
    let denied = false;
    let over = false;
    let onAbort = (): void => {};
    const ended = new Promise<string>((resolve) => {
      const watch = (stream: ClientDuplexStream<never, unknown>): void => {
        stream.on("error", (err: ServiceError) => {
          denied ||= !over && err.metadata?.get(ERROR_CODE_METADATA)[0] === "auth.denied";
          resolve(this.#explain(err));
        });
        stream.on("end", () => resolve("the control plane closed the stream"));
      };
      watch(session as never);
      session.on("data", (message: ServerMessage__Output) => {
        // What was on its way when this life ended: a welcome would open streams on a channel that is closed.
        if (over) return;
        if (message.message !== "welcome") return this.#receive(message);
        if (welcomed) return; // said twice: the streams are open already
        const refusal = this.#welcome(message.welcome!);
        if (refusal !== undefined) return resolve(refusal);
        welcomed = true;
        timer.cancel();
        timer = clock.every(message.welcome!.heartbeatMs, () => this.#heartbeat(session));
        const [reports, logs] = [client.Report(), client.Logs()];
        for (const stream of [reports, logs]) {
          streams.push(stream as never);
          watch(stream as never);
        }
        this.#reports.attach(reports);
        this.#logs.attach(logs);
        this.#heartbeat(session);
      });
      onAbort = () => {
        over = true; // at once: the promise is read a turn later
        resolve("the agent stops");
      };
      this.#stop.signal.addEventListener("abort", onAbort);
    });
    session.write({ hello: this.#hello() });
    const reason = await ended;
    over = true;
    this.#stop.signal.removeEventListener("abort", onAbort);
    timer.cancel();
    this.connected = false;
    this.#reports.detach();
    this.#logs.detach();
    for (const stream of streams) {
      stream.on("error", () => undefined);
      if (this.#stop.signal.aborted) stream.end();
      else stream.cancel();
    }
    return { welcomed, denied, reason };
  }

  #hello() {
    const { side, instanceId, signer } = this.#options;
    return {
      version: softwareVersion(),
      instanceId,
      held: side.held(),
      sitePolicy: side.sitePolicy() ?? null,
      roots: this.#heldRoots(),
      cordonRevision: side.cordonRevision(),
      ...signer.announcement(this.#identity.keyPem),
      ...side.hello(),
    };
  }

  #heldRoots(): { revision: number; pins: string[] } {
    return { revision: this.#identity.roots.revision, pins: this.#pins };
  }

  /** Undefined when the two sides understand each other. */
  #welcome(welcome: Welcome__Output): string | undefined {
    const { log, side, gateways } = this.#options;
    const major = welcome.version?.major ?? 0;
    if (major !== PROTOCOL_MAJOR) {
      const older = major > PROTOCOL_MAJOR ? "this agent" : "the control plane";
      return `it speaks protocol ${major}, this agent ${PROTOCOL_MAJOR}: upgrade ${older}`;
    }
    this.connected = true;
    this.#inBatches = welcome.version?.capabilities.includes(CAPABILITY_REPORT_BATCH) ?? false;
    this.#heartbeatSeq = 0;
    this.#answeredSeq = 0;
    gateways.learn(welcome.gateways);
    log.info({ replica: welcome.replicaId, software: welcome.version?.software }, "control plane connected");
    side.welcomed(welcome);
    this.#sendRefused();
    return undefined;
  }

  #heartbeat(session: SessionStream): void {
    const { clock, side, journal, log } = this.#options;
    if (this.#heartbeatSeq - this.#answeredSeq >= MISSED_MAX) {
      log.warn({ missed: MISSED_MAX }, "heartbeats are not answered");
      session.cancel();
      return;
    }
    session.write({
      heartbeat: {
        seq: ++this.#heartbeatSeq,
        sentAtMs: clock.wallMs(),
        held: side.held(),
        freeSlots: side.freeSlots(),
        spoolBytes: journal.spoolBytes,
        droppedLogBytes: journal.droppedLogBytes,
        notTakingWork: side.notTakingWork(),
        sitePolicy: side.sitePolicy() ?? null,
        refusedOffers: side.refusedOffers(),
        roots: this.#heldRoots(),
        ledger: side.ledger() ?? null,
        cordonRevision: side.cordonRevision(),
      },
    });
  }

  /** What the control plane is told in heartbeats has changed: it need not wait for the next one. */
  beat(): void {
    if (this.connected && this.#session) this.#heartbeat(this.#session);
  }

  /** The start of a `once` step is known there: whether it may start is asked at once, not with the next heartbeat. */
  #afterReports(): void {
    if (this.#options.side.awaitsGrant()) this.beat();
  }

  #receive(message: ServerMessage__Output): void {
    const { side } = this.#options;
    switch (message.message) {
      case "heartbeatReply": {
        const reply = message.heartbeatReply!;
        // One that another replica had a part in answers an earlier heartbeat.
        this.#answeredSeq = Math.max(this.#answeredSeq, Number(reply.seq));
        this.#options.gateways.learn(reply.gateways);
        if (Number(reply.wallMs) > 0) side.centreTime(Number(reply.wallMs));
        if (reply.ledger) side.ledgerShown(reply.ledger);
        side.cordon(reply.cordon);
        for (const lease of reply.renewed) side.renewed(toKey(lease));
        for (const lease of reply.superseded) side.superseded(toKey(lease));
        for (const cancel of reply.cancels) if (cancel.lease) side.cancel(toKey(cancel.lease), cancel.reason);
        return;
      }
      case "cancel": {
        const { lease, reason } = message.cancel!;
        if (lease) side.cancel(toKey(lease), reason);
        return;
      }
      case "natsAccess":
        side.natsAccess(message.natsAccess!);
        return;
      case "roots":
        side.roots(message.roots!);
        return;
      case "drain":
        this.#reconnectAfterMs = message.drain!.reconnectAfterMs;
        this.#options.gateways.learn(message.drain!.gateways);
        this.#session?.end();
        return;
      default:
        return; // additions of a newer control plane
    }
  }

  /** gRPC says UNAVAILABLE for a bad certificate too; what can be known here is said. */
  #explain(err: ServiceError): string {
    const { clock, gateways, network } = this.#options;
    const identity = this.#identity;
    if (clock.wallMs() > identity.notAfterMs) {
      return `this agent's certificate has expired (${new Date(identity.notAfterMs).toISOString()}); it asks to come back: somebody has to approve it (insitu agents list)`;
    }
    const byProxy = network.troubleOf(hostAndPort(gateways.current));
    if (byProxy !== undefined) return byProxy;
    const said = err.details || err.message;
    return explainTls(said, gateways.current) ?? said;
  }
}

type Answer = (err: ServiceError | null, response?: RenewResponse__Output) => void;

async function certificateOf(ask: (answer: Answer) => void): Promise<Buffer> {
  return await new Promise((resolve, reject) => {
    ask((err, response) => {
      if (response) resolve(Buffer.from(response.certificatePem));
      // 12: a control plane from before there was this.
      else if (err?.code === 12)
        reject(new InsituError("unavailable", "the control plane cannot do that: upgrade it"));
      else
        reject(new InsituError("unavailable", err?.details ?? "no answer", { retryable: true, cause: err }));
    });
  });
}

function toKey(lease: Lease__Output): LeaseKey {
  return { runId: lease.runId, stepId: lease.stepId, attempt: lease.attempt, epoch: lease.epoch };
}

function reportSource(
  journal: Journal,
  signer: ReportSigner,
  { inBatches, acked }: { inBatches: () => boolean; acked: () => void },
) {
  return {
    name: "report",
    after: (seq: number, limit: number) => journal.reportsAfter(seq, limit),
    seqOf: (report: StoredReport) => report.seq,
    bytesOf: (report: StoredReport) => report.payload.length,
    batch: (reports: StoredReport[]): ReportBatch =>
      // To sign costs more than all else that is done with a report here.
      reports.length > 1 && inBatches()
        ? { reports, ...signer.signReports(reports.map(({ payload }) => payload)) }
        : { reports: reports.map(({ seq, payload }) => ({ seq, payload, ...signer.sign(payload) })) },
    ack: (seq: number) => {
      journal.ackReports(seq);
      acked();
    },
  };
}

function logSource(journal: Journal, signer: ReportSigner) {
  return {
    name: "log chunk",
    after: (seq: number, limit: number, maxBytes: number) => journal.logsAfter(seq, limit, maxBytes),
    seqOf: (chunk: LogChunkRecord) => chunk.seq,
    bytesOf: (chunk: LogChunkRecord) => chunk.entries.length,
    batch: (records: LogChunkRecord[]): LogBatch => {
      const chunks = records.map(
        ({ lease, dropped: _, contentBytes: __, contentLines: ___, atMs: ____, ...chunk }) => ({
          ...chunk,
          ...lease,
        }),
      );
      return { chunks, ...signer.signLogs(chunks) };
    },
    ack: (seq: number) => journal.ackLogs(seq),
  };
}
