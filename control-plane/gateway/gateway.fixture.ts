/** A gateway with everything real around it, and clients that speak to it as agents do. */
import "reflect-metadata"; // before @peculiar/x509
import { createPrivateKey, webcrypto } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { type AddressInfo, createConnection, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ClientDuplexStream, credentials, type ServiceError } from "@grpc/grpc-js";
import * as x509 from "@peculiar/x509";
import { connect } from "nats";
import pino, { type Logger } from "pino";
import { systemClock } from "../../shared/system.ts";
import type { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import type { AgentMessage } from "../../shared/wire/gen/insitu/agent/v1/AgentMessage.ts";
import type { EnrolResponse__Output } from "../../shared/wire/gen/insitu/agent/v1/EnrolResponse.ts";
import type { ServerMessage__Output } from "../../shared/wire/gen/insitu/agent/v1/ServerMessage.ts";
import { AgentGatewayClient } from "../../shared/wire/grpc.ts";
import type { ReportSignature } from "../../shared/wire/report-signature.ts";
import { BUCKETS } from "../../shared/wire/subjects.ts";
import { startTestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import { openAuthority } from "../access/authority.ts";
import { createJoinRequests, JOINING_PREFIX, JoinRequestRecord } from "../access/join-requests.ts";
import { createJoinTokens, JoinTokenRecord } from "../access/join-tokens.ts";
import { loadOrCreateOfferSigner } from "../access/offer-signer.ts";
import type { Pki } from "../access/pki.ts";
import { AgentRecord, IDENTITY_PREFIX, SEEN_PREFIX, SeenRecord } from "../fleet/agent-record.ts";
import { type AgentRegistry, createAgentRegistry } from "../fleet/agent-registry.ts";
import { createFleet } from "../fleet/fleet-service.ts";
import { ensureStreams } from "../store/jetstream.ts";
import { openKv } from "../store/kv.ts";
import { createGateway, type GatewayOptions } from "./gateway.ts";
import type { HeartbeatVerdict, LogChunk, ReportVerdict } from "./ports.ts";
import { ReportKeys } from "./report-keys.ts";

export const TRUST_DOMAIN = "insitu.test";
export const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
export const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";

/** The ports of the rest of the control plane. Each can be told what to answer; all note what they were told. */
export class Plane {
  reports: { agent: string; report: ReportPayload; signed?: ReportSignature }[] = [];
  chunks: { agent: string; chunk: LogChunk }[] = [];
  heartbeats: { agent: string; held: LeaseKey[] }[] = [];
  onReport: (report: ReportPayload) => Promise<ReportVerdict> = async () => ({ accepted: true });
  onChunk: (chunk: LogChunk) => Promise<void> = async () => {};
  onHeartbeat: (agent: string, held: LeaseKey[]) => HeartbeatVerdict = (_, held) => ({
    renewed: held,
    superseded: [],
    cancels: [],
  });
}

export type World = Awaited<ReturnType<typeof startWorld>>;

export async function startWorld({
  requireSignedReports = false,
  ...overrides
}: Partial<GatewayOptions> & { requireSignedReports?: boolean } = {}) {
  const directory = await mkdtemp(join(tmpdir(), "insitu-gateway-"));
  const nats = await startTestNats();
  const connection = await connect({
    servers: nats.url,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
  });
  const logLines: Record<string, unknown>[] = [];
  const log: Logger = pino({ level: "debug" }, { write: (line) => void logLines.push(JSON.parse(line)) });
  const clock = systemClock;
  const caDirectory = join(directory, "ca");
  const pki = await openAuthority({ directory: caDirectory, trustDomain: TRUST_DOMAIN, clock });
  const tokenStore = await openKv(connection, { clock, bucket: BUCKETS.joinTokens, schema: JoinTokenRecord });
  const openRegistry = async () =>
    createAgentRegistry({
      kv: await openKv(connection, {
        clock,
        bucket: BUCKETS.agents,
        prefix: IDENTITY_PREFIX,
        schema: AgentRecord,
      }),
      clock,
      log,
    });
  const registry = await openRegistry();
  const seen = await openKv(connection, {
    clock,
    bucket: BUCKETS.agents,
    prefix: SEEN_PREFIX,
    schema: SeenRecord,
  });
  const fleet = createFleet({ registry, seen, clock, log, share: () => undefined });
  const tokensOver = (kv: typeof tokenStore) =>
    createJoinTokens({
      kv,
      clock,
      log,
      environments: () => ["biscoe", "dream"],
      format: ({ secret }) => secret,
    });
  const tokens = tokensOver(tokenStore);
  const joinRequests = createJoinRequests({
    kv: await openKv(connection, {
      clock,
      bucket: BUCKETS.agents,
      prefix: JOINING_PREFIX,
      schema: JoinRequestRecord,
    }),
    clock,
    log,
  });
  const plane = new Plane();
  await ensureStreams(await connection.jetstreamManager(), 1);
  const poison = await poisonOf(connection);
  const signer = await loadOrCreateOfferSigner(directory);
  const reportKeysOf = (requireSigned = false, over: AgentRegistry = registry) =>
    new ReportKeys({
      registry: over,
      clock,
      log,
      trustDomain: TRUST_DOMAIN,
      pki,
      requireSigned,
      onRefused: (agent, code) => fleet.refusedReport(agent, code),
    });
  const gatewayOptions: GatewayOptions = {
    clock,
    random: () => 0.5,
    log,
    pki,
    tokens,
    joinRequests,
    registry,
    fleet,
    poison,
    reports: {
      accept: (agent, report, signed) => {
        plane.reports.push({ agent, report, ...(signed && { signed }) });
        return plane.onReport(report);
      },
    },
    logs: {
      append: (agent, chunk) => {
        plane.chunks.push({ agent, chunk });
        return plane.onChunk(chunk);
      },
    },
    leases: {
      heartbeat: (agent, held) => {
        plane.heartbeats.push({ agent, held });
        return plane.onHeartbeat(agent, held);
      },
    },
    natsAccessFor: ({ environment }) => ({
      servers: [nats.url],
      user: environment,
      password: "secret",
      inboxPrefix: `_INBOX.${environment}`,
      stream: "WORK",
      consumer: `env-${environment}`,
      caPem: "",
    }),
    offerPublicKeyPem: signer.publicKeyPem,
    listen: { host: "127.0.0.1", port: 0 },
    heartbeatMs: 200,
    leaseTtlMs: 3_000,
    replicaId: "replica-1",
    gateways: () => [],
    enrolRateLimit: { burst: 1_000, refillMs: 1, maxAddresses: 10 },
    reportKeys: reportKeysOf(requireSignedReports),
    ...overrides,
    onePort: overrides.onePort && {
      ...overrides.onePort,
      natsTargets: [new URL(nats.url).host, ...overrides.onePort.natsTargets],
    },
  };
  const gateway = createGateway(gatewayOptions);
  const signal = new AbortController().signal;
  await registry.start(signal);
  await fleet.start(signal);
  await gateway.start(signal);
  const clients: InstanceType<typeof AgentGatewayClient>[] = [];

  const client = (identity?: { keyPem: string; certificatePem: string }, port = gateway.port) => {
    const ca = Buffer.from(pki.caPem);
    const tls =
      identity === undefined
        ? credentials.createSsl(ca)
        : credentials.createSsl(ca, Buffer.from(identity.keyPem), Buffer.from(identity.certificatePem));
    const made = new AgentGatewayClient(`localhost:${port}`, tls, {
      "grpc.use_local_subchannel_pool": 1,
    });
    clients.push(made);
    return made;
  };

  const enrolWith = async (
    secret: string,
    name: string,
    keys: Keys,
    changes: { csrDer?: Uint8Array; major?: number } = {},
  ) => {
    const request = {
      token: secret,
      agentName: name,
      csrDer: changes.csrDer ?? (await csrOf(keys)),
      version: { major: changes.major ?? 1, minor: 0, software: "test agent", capabilities: [] },
    };
    return await new Promise<EnrolResponse__Output>((resolve, reject) => {
      client().Enrol(request, (err, response) => (err ? reject(err) : resolve(response!)));
    });
  };

  return {
    directory,
    caDirectory,
    nats,
    connection,
    logLines,
    log,
    pki,
    registry,
    openRegistry,
    fleet,
    tokens,
    joinRequests,
    plane,
    gateway,
    gatewayOptions,
    poison,
    reportKeysOf,
    client,
    enrolWith,
    /** Of another replica. */
    otherTokens: async () =>
      tokensOver(await openKv(connection, { clock, bucket: BUCKETS.joinTokens, schema: JoinTokenRecord })),
    token: async (environment = "dream", uses = 1, ttlMs = 60_000) =>
      (await tokens.create({ environment, ttlMs, uses, by: "test" })).token,
    /** Joins as an agent does. */
    async join(environment: string, name: string) {
      const keys = await newKeys();
      const { token } = await tokens.create({ environment, ttlMs: 60_000, uses: 1, by: "test" });
      const answer = await enrolWith(token, name, keys);
      return { ...keys, certificatePem: answer.certificatePem.toString(), answer };
    },
    async stop() {
      for (const made of clients) made.close();
      await gateway.close();
      await fleet.close();
      await registry.close();
      await connection.close();
      await nats.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** A wire between agent and gateway that can be cut. */
export async function startWire(port: number): Promise<{ port: number; cut(): void }> {
  const ends = new Set<Socket>();
  const server = createServer((near) => {
    const far = createConnection({ host: "127.0.0.1", port });
    for (const end of [near, far]) {
      ends.add(end);
      end.on("error", () => end.destroy());
    }
    near.pipe(far).pipe(near);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = () => {
    server.close();
    for (const end of ends) end.destroy();
  };
  return { port: (server.address() as AddressInfo).port, cut };
}

export interface Keys {
  pair: webcrypto.CryptoKeyPair;
  keyPem: string;
}

export async function newKeys(): Promise<Keys> {
  const pair = await webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);
  const pkcs8 = Buffer.from(await webcrypto.subtle.exportKey("pkcs8", pair.privateKey));
  const key = createPrivateKey({ key: pkcs8, type: "pkcs8", format: "der" });
  return { pair, keyPem: key.export({ type: "pkcs8", format: "pem" }).toString() };
}

export async function csrOf(keys: Keys): Promise<Uint8Array> {
  const csr = await x509.Pkcs10CertificateRequestGenerator.create(
    { name: "CN=whoever", keys: keys.pair, signingAlgorithm: P256 },
    webcrypto as never,
  );
  return new Uint8Array(csr.rawData);
}

/** A certificate as an attacker who holds some signing key would make it. */
export async function forge(
  keys: Keys,
  wanted: { uris: string[]; usages?: string[]; pki?: Pki; caDirectory?: string; ca?: boolean },
) {
  const nowMs = systemClock.wallMs();
  const root = wanted.pki === undefined ? undefined : new x509.X509Certificate(wanted.pki.caPem);
  const signingKey =
    wanted.caDirectory === undefined
      ? keys.pair.privateKey
      : await webcrypto.subtle.importKey(
          "pkcs8",
          createPrivateKey(await readFile(join(wanted.caDirectory, "ca.key.pem"))).export({
            type: "pkcs8",
            format: "der",
          }),
          P256,
          false,
          ["sign"],
        );
  const certificate = await x509.X509CertificateGenerator.create(
    {
      serialNumber: "0badc0de",
      subject: "CN=forged",
      issuer: root?.subject ?? "CN=forged",
      notBefore: new Date(nowMs - 60_000),
      notAfter: new Date(nowMs + 600_000),
      publicKey: keys.pair.publicKey,
      signingKey,
      signingAlgorithm: P256,
      extensions: [
        ...(wanted.ca === true ? [new x509.BasicConstraintsExtension(true, 0, true)] : []),
        new x509.ExtendedKeyUsageExtension(wanted.usages ?? [CLIENT_AUTH]),
        new x509.SubjectAlternativeNameExtension(wanted.uris.map((value) => ({ type: "url", value }))),
      ],
    },
    webcrypto as never,
  );
  return { keyPem: keys.keyPem, certificatePem: certificate.toString("pem") };
}

/** What came over a stream, in order, to be waited for. */
export class Inbox<T> {
  readonly all: T[] = [];
  #waiting: (() => void)[] = [];
  #ended: { err: ServiceError | undefined } | undefined;

  constructor(stream: ClientDuplexStream<never, T>) {
    stream.on("data", (message: T) => {
      this.all.push(message);
      this.#wake();
    });
    stream.on("error", (err: ServiceError) => this.#end(err));
    stream.on("end", () => this.#end(undefined));
  }

  /** The first message that satisfies the condition, past or future. */
  async find<U>(pick: (message: T) => U | undefined | null | false): Promise<U> {
    for (let next = 0; ; ) {
      for (; next < this.all.length; next++) {
        const picked = pick(this.all[next]!);
        if (picked) return picked;
      }
      if (this.#ended !== undefined) throw this.#ended.err ?? new Error("the stream ended");
      await this.#change();
    }
  }

  /** How the stream ended: the error, or undefined for a peaceful end. */
  async end(): Promise<ServiceError | undefined> {
    while (this.#ended === undefined) await this.#change();
    return this.#ended.err;
  }

  #end(err: ServiceError | undefined): void {
    // A peaceful end may be followed by the status that tells the truth.
    if (this.#ended === undefined || err !== undefined) this.#ended = { err };
    this.#wake();
  }
  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }
  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

export const hello = (changes: object = {}): AgentMessage => ({
  hello: {
    version: { major: 1, minor: 0, software: "test agent", capabilities: [] },
    slots: 2,
    executors: ["noop"],
    datasets: ["penguins"],
    labels: { rack: "7" },
    hostname: "host-1",
    instanceId: "instance-1",
    held: [],
    ...changes,
  },
});

export const heartbeat = (seq: number, changes: object = {}): AgentMessage => ({
  heartbeat: {
    seq,
    sentAtMs: systemClock.wallMs(),
    held: [],
    freeSlots: 2,
    spoolBytes: 0,
    droppedLogBytes: 0,
    notTakingWork: "",
    ...changes,
  },
});

/** Opens a session and waits for its welcome. */
export async function openSession(client: InstanceType<typeof AgentGatewayClient>, changes: object = {}) {
  const stream = client.Session();
  const inbox = new Inbox<ServerMessage__Output>(stream as never);
  stream.write(hello(changes));
  const welcome = await inbox.find((m) => m.welcome);
  return { stream, inbox, welcome };
}

export const lease = (runId: string, epoch = 1): LeaseKey => ({ runId, stepId: "fit", attempt: 1, epoch });
