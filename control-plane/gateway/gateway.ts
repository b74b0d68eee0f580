/** The gRPC server that agents call: one port, TLS, everything but Enrol and Recover behind a client certificate. */
import { X509Certificate } from "node:crypto";
import { Server } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Random, Timer } from "../../shared/system.ts";
import type { AgentGatewayHandlers } from "../../shared/wire/gen/insitu/agent/v1/AgentGateway.ts";
import { agentGatewayService } from "../../shared/wire/grpc.ts";
import { NATS_ALPN } from "../../shared/wire/one-port.ts";
import {
  CAPABILITY_REPORT_BATCH,
  PROTOCOL_MAJOR,
  PROTOCOL_MINOR,
  SOFTWARE_VERSION,
} from "../../shared/wire/protocol.ts";
import type { ChangingPki } from "../access/authority.ts";
import type { ValidFor } from "../access/enrolment.ts";
import type { JoinRequestService } from "../access/join-requests.ts";
import type { JoinTokenService } from "../access/join-tokens.ts";
import type { NatsIdentity } from "../access/nats-identity.ts";
import type { CertificatePair } from "../access/pki.ts";
import { agentId } from "../access/spiffe.ts";
import { keysOf } from "../fleet/agent-record.ts";
import type { AgentRegistry } from "../fleet/agent-registry.ts";
import type { Fleet } from "../fleet/fleet-service.ts";
import { NatsDoor, type NatsDoorLimits } from "../one-port/nats-door.ts";
import { OnePort, type OnePortLimits } from "../one-port/one-port.ts";
import type { PoisonSink } from "../poison/ports.ts";
import { admitAgent, notAdmitted } from "./admission.ts";
import { cordonNews } from "./cordon-news.ts";
import { enrolHandler } from "./enrol-handler.ts";
import { Intake } from "./intake.ts";
import { logItems, reportItems } from "./intake-items.ts";
import { OpenCalls } from "./open-calls.ts";
import type { Peer } from "./peer-identity.ts";
import { LimitedPoison } from "./poison-limit.ts";
import type { AgentSessions, LeaseKeeper, LedgerView, LogSink, ReportSink } from "./ports.ts";
import type { RateLimitOptions } from "./rate-limit.ts";
import { recoverHandler } from "./recover-handler.ts";
import { renewHandler } from "./renew-handler.ts";
import type { ReportKeys } from "./report-keys.ts";
import { peerOf, requireAgent } from "./require-agent.ts";
import { Sessions } from "./sessions.ts";
import { type GatewayCredentials, gatewayCredentials } from "./tls-credentials.ts";

/** Where the agents of an environment pull offers, and as whom. See `NatsAccess` in agent.proto. */
export interface NatsAccess {
  servers: string[];
  user: string;
  password: string;
  inboxPrefix: string;
  stream: string;
  consumer: string;
  /** Empty on loopback alone. */
  caPem: string;
}

export interface OnePortPlan {
  listen: { host: string; port: number };
  /** `host:port` of the servers that agents may reach through it. */
  natsTargets: readonly string[];
  limits?: Partial<OnePortLimits>;
  natsLimits?: Partial<NatsDoorLimits>;
}

export interface GatewayOptions {
  clock: Clock;
  random: Random;
  log: Logger;
  pki: ChangingPki;
  tokens: JoinTokenService;
  joinRequests: JoinRequestService;
  registry: AgentRegistry;
  fleet: Fleet;
  reports: ReportSink;
  reportKeys: ReportKeys;
  leases: LeaseKeeper;
  logs: LogSink;
  natsAccessFor(peer: Pick<Peer, "environment" | "name">): NatsAccess;
  /** Where NATS has accounts: lets an agent in with a key of its own, soon after its welcome. */
  natsIdentity?: NatsIdentity | undefined;
  poison: PoisonSink;
  /** Of the key that signs offers, SPKI. */
  offerPublicKeyPem: string;
  /** Port 0: a free one. */
  listen: { host: string; port: number };
  /** A second port, on which agents reach NATS too. Undefined: they reach NATS by themselves. */
  onePort?: OnePortPlan | undefined;
  /** Names by which agents reach it, beside localhost. */
  serverNames?: { dns: string[]; ips: string[] };
  heartbeatMs: number;
  leaseTtlMs: number;
  replicaId: string;
  /** Of the living replicas, this one first. */
  gateways(): string[];
  /** For agents that remember the ledger. */
  ledger?: LedgerView;
  /** For how long the certificates of agents of an environment are good; undefined: for the time of the authority. */
  validForMs?: ValidFor;
  /** Of one agent: reports, and logs, that are being stored. */
  inFlightMaxBytes?: number;
  enrolRateLimit?: RateLimitOptions;
  /** How far apart agents come back after a drain. */
  drainSpreadMs?: number;
}

export interface Gateway extends AsyncDisposable {
  /** Resolves when it listens. */
  start(signal: AbortSignal): Promise<void>;
  /** Takes no new streams, asks agents to go elsewhere, and waits until they have, at most this long. */
  drain(withinMs: number): Promise<void>;
  close(reason?: unknown): Promise<void>;
  /** The port it listens on, after `start`. */
  readonly port: number;
  /** The port on which agents reach NATS too, after `start`; 0: there is none. */
  readonly onePort: number;
  readonly sessions: AgentSessions;
}

const OWN_VERSION = {
  major: PROTOCOL_MAJOR,
  minor: PROTOCOL_MINOR,
  software: `insitu ${SOFTWARE_VERSION}`,
  capabilities: [CAPABILITY_REPORT_BATCH],
};
const SWEEP_MS = 1_000;
const IN_FLIGHT_MAX_BYTES = 4 * 1024 * 1024;
const MESSAGE_MAX_BYTES = 4 * 1024 * 1024;
const DRAIN_SPREAD_MS = 5_000;
const IDLE_MAX_MS = 300_000;
/** For each of: what is being stored, calls that end, connections that close. */
const CLOSE_STEP_MS = 2_000;
const ENROL_RATE_LIMIT: RateLimitOptions = { burst: 60, refillMs: 1_000, maxAddresses: 10_000 };
/** Of one agent. It needs one in weeks; more come of answers that were lost. */
const RENEW_RATE_LIMIT: RateLimitOptions = { burst: 10, refillMs: 60_000, maxAddresses: 100_000 };
/** After this share of its life the server's certificate is replaced. */
const ROTATE_AT = 2 / 3;

export function createGateway(options: GatewayOptions): Gateway {
  return new GrpcGateway(options);
}

class GrpcGateway implements Gateway {
  readonly #options: GatewayOptions;
  readonly #log: Logger;
  readonly #openCalls = new OpenCalls();
  readonly #sessions: Sessions;
  readonly #poison: PoisonSink;
  readonly #intakes = new Set<{ stop(): void; ended(): Promise<void> }>();
  #server: Server | undefined;
  #credentials: GatewayCredentials | undefined;
  #pair: CertificatePair | undefined;
  #onePort: OnePort | undefined;
  #natsDoor: NatsDoor | undefined;
  #rotateAtMs = Number.POSITIVE_INFINITY;
  #rotating: Promise<void> = Promise.resolve();
  #port = 0;
  #sweep: Timer | undefined;
  #unsubscribe: (() => void) | undefined;
  #unsubscribePki: (() => void) | undefined;
  /** Whether certificates of open calls may have lost their issuer since they were looked at. */
  #recheckIssuers = false;
  #servingId = "";
  #draining = false;
  #closed: Promise<void> | undefined;

  constructor(options: GatewayOptions) {
    this.#options = options;
    this.#log = options.log;
    this.#poison = new LimitedPoison(options.poison, options.clock);
    this.#sessions = new Sessions({
      fleet: options.fleet,
      leases: options.leases,
      reportKeys: options.reportKeys,
      rootNews: options,
      poison: this.#poison,
      openCalls: this.#openCalls,
      clock: options.clock,
      log: options.log,
      silenceMaxMs: Math.max(options.leaseTtlMs, options.heartbeatMs * 3),
      cordonOf: (agent) => cordonNews(options.registry.known(agent)),
      welcome: (peer) => this.#welcome(peer),
      access: (peer, userKey) => this.#access(peer, userKey),
      gateways: options.gateways,
      ledger: options.ledger,
    });
  }

  get port(): number {
    return this.#port;
  }

  get onePort(): number {
    return this.#onePort?.port ?? 0;
  }

  get sessions(): AgentSessions {
    return this.#sessions;
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#closed !== undefined) throw new InsituError("cancelled", "the gateway is closed already");
    const { clock, listen, pki, registry } = this.#options;
    this.#credentials = gatewayCredentials(pki.caPem, await this.#issueCertificate());
    const server = this.#createServer();
    this.#server = server;
    const host = listen.host.includes(":") ? `[${listen.host}]` : listen.host;
    this.#port = await bind(server, `${host}:${listen.port}`, this.#credentials);
    try {
      await this.#openOnePort(server, this.#credentials);
    } catch (err) {
      server.forceShutdown();
      throw err;
    }
    if (signal.aborted || this.#closed !== undefined) {
      await this.#closeOnePort();
      server.forceShutdown();
      throw signal.reason ?? new InsituError("cancelled", "the gateway was closed while it started");
    }
    this.#sweep = clock.every(SWEEP_MS, () => this.#onSweep());
    this.#unsubscribe = registry.onChange((record) => {
      const id = agentId(record);
      const revoked = record.removedAtMs !== null;
      const why = notAdmitted(id, revoked ? "revoked" : "replaced");
      this.#openCalls.failAgent(id, keysOf(record), why);
      this.#sessions.recordChanged(id);
    });
    this.#unsubscribePki = pki.onChange(() => this.#onAuthority());
    this.#onAuthority();
    this.#log.info({ host: listen.host, port: this.#port }, "gateway listens");
  }

  async drain(withinMs: number): Promise<void> {
    this.#askToLeave();
    const { clock } = this.#options;
    const untilMs = clock.monotonicMs() + withinMs;
    while (this.#sessions.size > 0 && clock.monotonicMs() < untilMs) await clock.sleep(20);
    await this.#finishIntakes(Math.max(0, untilMs - clock.monotonicMs()));
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    this.#askToLeave();
    await this.#finishIntakes(CLOSE_STEP_MS);
    this.#sessions.endAll();
    this.#sweep?.cancel();
    this.#unsubscribe?.();
    this.#unsubscribePki?.();
    await this.#rotating;
    await this.#closeOnePort();
    const server = this.#server;
    if (server === undefined) return;
    // It never completes while an agent keeps a stream open, so it is given a bound.
    const quiet = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
    await this.#within(CLOSE_STEP_MS, quiet);
    server.forceShutdown();
  }

  async #openOnePort(server: Server, { credentials }: GatewayCredentials): Promise<void> {
    const { onePort, clock, log, pki, registry } = this.#options;
    if (!onePort) return;
    // In this process, and not through the other port: calls keep the address that they come from.
    const grpc = server.createConnectionInjector(credentials);
    const door = new NatsDoor(
      {
        clock,
        log,
        targets: onePort.natsTargets,
        limits: onePort.natsLimits,
        openCalls: this.#openCalls,
        admit: async (certificate, address) => {
          const closing = this.#refusal();
          if (closing !== undefined) throw closing;
          return await admitAgent({ registry, clock, log, pki }, { method: NATS_ALPN, address, certificate });
        },
      },
      { caPem: pki.caPem, pair: this.#pair! },
    );
    this.#natsDoor = door;
    const port = new OnePort({
      clock,
      log,
      listen: onePort.listen,
      limits: onePort.limits,
      grpc: (socket) => grpc.injectConnection(socket),
      nats: (socket) => door.take(socket),
    });
    await port.start();
    this.#onePort = port;
  }

  async #closeOnePort(): Promise<void> {
    await this.#onePort?.close();
    this.#natsDoor?.close();
  }

  /** For connections from now on. */
  #secureNatsDoor(): void {
    this.#natsDoor?.secure({ caPem: this.#options.pki.caPem, pair: this.#pair! });
  }

  #askToLeave(): void {
    if (this.#draining) return;
    this.#draining = true;
    const { random, drainSpreadMs = DRAIN_SPREAD_MS } = this.#options;
    this.#sessions.drain(() => random() * drainSpreadMs, "the server stops");
  }

  async #finishIntakes(withinMs: number): Promise<void> {
    const open = [...this.#intakes];
    for (const intake of open) intake.stop();
    await this.#within(withinMs, Promise.all(open.map((intake) => intake.ended())));
  }

  async #within(ms: number, promise: Promise<unknown>): Promise<void> {
    const enough = new AbortController();
    const bound = this.#options.clock.sleep(ms, enough.signal).catch(() => {
      // Aborted: what we waited for came first.
    });
    await Promise.race([promise, bound]);
    enough.abort();
  }

  #createServer(): Server {
    const { registry, clock, log, pki, tokens, reports, reportKeys, logs, offerPublicKeyPem, validForMs } =
      this.#options;
    const server = new Server({
      "grpc.max_receive_message_length": MESSAGE_MAX_BYTES,
      "grpc.max_concurrent_streams": 32,
      // Finds connections that died without a word. No max_connection_age: with keepalive it would cut streams.
      "grpc.keepalive_time_ms": 30_000,
      "grpc.keepalive_timeout_ms": 10_000,
      // Of connections without a call, of whoever answers pings and wants nothing. Agents always have a session.
      "grpc.max_connection_idle_ms": IDLE_MAX_MS,
      interceptors: [requireAgent({ registry, clock, log, pki, closing: () => this.#refusal() })],
    });
    const deps = {
      openCalls: this.#openCalls,
      log,
      inFlightMaxBytes: this.#options.inFlightMaxBytes ?? IN_FLIGHT_MAX_BYTES,
    };
    const handlers: AgentGatewayHandlers = {
      Enrol: enrolHandler({
        registry,
        clock,
        log,
        pki,
        tokens,
        joinRequests: this.#options.joinRequests,
        offerPublicKeyPem,
        validForMs,
        rateLimit: this.#options.enrolRateLimit ?? ENROL_RATE_LIMIT,
      }),
      Recover: recoverHandler({
        registry,
        clock,
        log,
        pki,
        joinRequests: this.#options.joinRequests,
        validForMs,
        rateLimit: this.#options.enrolRateLimit ?? ENROL_RATE_LIMIT,
      }),
      Renew: renewHandler({ registry, clock, log, pki, validForMs, rateLimit: RENEW_RATE_LIMIT }),
      Check: (call, callback) => {
        peerOf(call); // throws when nobody let it in
        callback(null, {
          version: OWN_VERSION,
          wallMs: String(clock.wallMs()),
          replicaId: this.#options.replicaId,
        });
      },
      Session: (call) => this.#sessions.accept(call, peerOf(call)),
      Report: (call) => {
        const peer = peerOf(call);
        const items = reportItems(peer, { sink: reports, keys: reportKeys, poison: this.#poison });
        this.#take(new Intake("report", call, peer, items, deps));
      },
      Logs: (call) => {
        const peer = peerOf(call);
        const items = logItems(peer, { sink: logs, keys: reportKeys, poison: this.#poison });
        this.#take(new Intake("logs", call, peer, items, deps));
      },
    };
    server.addService(agentGatewayService, handlers);
    return server;
  }

  #take(intake: { begin(): void; stop(): void; ended(): Promise<void> }): void {
    this.#intakes.add(intake);
    intake.begin();
    void intake.ended().then(() => this.#intakes.delete(intake));
  }

  #refusal(): InsituError | undefined {
    if (!this.#draining) return undefined;
    return new InsituError("unavailable", "this server stops: connect again, elsewhere if you can", {
      retryable: true,
    });
  }

  /** Without an access to NATS where that takes a write: a lease must not wait for the store. */
  #welcome(peer: Peer) {
    const { clock, heartbeatMs, leaseTtlMs, natsAccessFor, natsIdentity } = this.#options;
    const { offerPublicKeyPem, replicaId, gateways } = this.#options;
    const nats = natsIdentity ? undefined : natsAccessFor(peer);
    return {
      version: OWN_VERSION,
      heartbeatMs,
      leaseTtlMs,
      ...(nats ? { nats: this.#told(nats) } : {}),
      wallMs: String(clock.wallMs()),
      offerPublicKeyPem: Buffer.from(offerPublicKeyPem),
      replicaId,
      gateways: gateways(),
    };
  }

  async #access(peer: Peer, userKey: string) {
    const { natsAccessFor, natsIdentity, registry } = this.#options;
    // First the access, then the end of the older key: so NATS has nothing left of the agent to cut.
    const access = await natsIdentity?.accessFor(peer, userKey);
    await registry.promote(peer.id, peer.spkiSha256);
    if (!access) return undefined;
    const { userJwt, ...about } = access;
    return { natsAccess: { ...this.#told(natsAccessFor(peer)), userJwt }, ...about };
  }

  #told(access: NatsAccess) {
    return {
      ...access,
      caPem: Buffer.from(access.caPem),
      throughGateway: this.#options.onePort !== undefined,
    };
  }

  /** The sweep does the rest, within a second. */
  #onAuthority(): void {
    const { pki, clock } = this.#options;
    this.#credentials?.trust(pki.caPem);
    this.#secureNatsDoor();
    this.#recheckIssuers = true;
    if (this.#servingId === pki.servingId) return;
    // At once: whoever joins with a token of now looks for the root of now.
    this.#rotateAtMs = 0;
    this.#replaceWhenDue(clock.wallMs());
  }

  /** Undefined: its issuer is trusted still. */
  #disowned({ id, certificateDer }: Peer): InsituError | undefined {
    if (this.#options.pki.issuerOf(new X509Certificate(certificateDer)) !== undefined) return undefined;
    return new InsituError("auth.denied", `the issuer of the certificate of ${id} was retired: join again`);
  }

  #onSweep(): void {
    const { clock, registry } = this.#options;
    const wallMs = clock.wallMs();
    const recheck = this.#recheckIssuers;
    this.#recheckIssuers = false;
    this.#openCalls.sweep({
      wallMs,
      monotonicMs: clock.monotonicMs(),
      // One that was let in at the very moment of a revocation had no call yet that could be ended.
      refusal: (peer) => {
        if (typeof registry.known(peer.id)?.removedAtMs === "number") return notAdmitted(peer.id, "revoked");
        return recheck ? this.#disowned(peer) : undefined;
      },
    });
    this.#replaceWhenDue(wallMs);
  }

  #replaceWhenDue(wallMs: number): void {
    if (wallMs < this.#rotateAtMs) return;
    this.#rotateAtMs = Number.POSITIVE_INFINITY; // until the new one says when
    this.#rotating = this.#issueCertificate().then(
      (pair) => {
        this.#credentials?.replace(pair);
        this.#secureNatsDoor();
        this.#log.info({ notAfterMs: pair.notAfterMs }, "server certificate replaced");
      },
      (err: unknown) => {
        this.#rotateAtMs = wallMs + 60_000;
        this.#log.error({ err }, "server certificate could not be replaced");
      },
    );
  }

  async #issueCertificate() {
    const { clock, pki, serverNames = { dns: [], ips: [] } } = this.#options;
    this.#servingId = pki.servingId;
    const pair = await pki.issueServerCertificate(serverNames);
    this.#pair = pair;
    const nowMs = clock.wallMs();
    this.#rotateAtMs = nowMs + (pair.notAfterMs - nowMs) * ROTATE_AT;
    return pair;
  }
}

function bind(server: Server, address: string, { credentials }: GatewayCredentials): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (err, port) => {
      if (err === null) resolve(port);
      else {
        reject(
          new InsituError(
            "unavailable",
            `the gateway cannot listen on ${address} (${err.message}): is the port taken?`,
            {
              cause: err,
            },
          ),
        );
      }
    });
  });
}
