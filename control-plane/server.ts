/** One replica: opens its parts in order, and closes them in the reverse one. */
import { createHash, createHmac } from "node:crypto";
import { mkdir, rename, writeFile } from "node:fs/promises";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import { findNatsServer } from "../scripts/find-nats-server.mjs";
import { InsituError } from "../shared/errors.ts";
import { type Clock, newId, newSecret, type Random } from "../shared/system.ts";
import { encodeJoinToken } from "../shared/wire/join-token.ts";
import { SOFTWARE_VERSION } from "../shared/wire/protocol.ts";
import { BUCKETS, STREAMS, shardOf, workConsumer } from "../shared/wire/subjects.ts";
import { loadOrCreateApiToken } from "./access/api-token.ts";
import { ApiTokenRecord, createApiTokens, LOCAL_OPERATOR } from "./access/api-tokens.ts";
import { createJoinTokens, JOIN_TOKEN_BUCKET_TTL_MS, JoinTokenRecord } from "./access/join-tokens.ts";
import { loadOrCreateOfferSigner } from "./access/offer-signer.ts";
import { loadOrCreatePki, type Pki } from "./access/pki.ts";
import { loadOrCreateSecret } from "./access/secret-file.ts";
import { anyAccess, tokenAccess } from "./api/access.ts";
import { createApi } from "./api/api.ts";
import { loadConsole } from "./api/console.ts";
import { LOOPBACK_HOSTS } from "./api/context.ts";
import { IDEMPOTENCY_TTL_MS } from "./api/idempotency.ts";
import { isLoopback, serveApi } from "./api/serve.ts";
import type { ServerConfig } from "./config.ts";
import { Desk } from "./desk.ts";
import { AgentRecord, IDENTITY_PREFIX, SEEN_PREFIX, SeenRecord } from "./fleet/agent-record.ts";
import { createAgentRegistry } from "./fleet/agent-registry.ts";
import { createFleet, type Fleet, PresenceMessage } from "./fleet/fleet-service.ts";
import { createGateway, type NatsAccess } from "./gateway/gateway.ts";
import { createCedarPlacement } from "./placement/cedar-placement.ts";
import { Resources } from "./resources/resource-service.ts";
import { Commands } from "./runs/run-commands.ts";
import { PeerMessage, RunCommand, RunRouter } from "./runs/run-router.ts";
import { RunService } from "./runs/run-service.ts";
import { explainWaiting } from "./runs/waiting.ts";
import { ClusterRecord } from "./shards/shard-book.ts";
import { ShardService } from "./shards/shard-service.ts";
import { connectNats, ensureStreams, ensureWorkConsumer } from "./store/jetstream.ts";
import { JetStreamInbox } from "./store/jetstream-inbox.ts";
import { JetStreamOfferQueue } from "./store/jetstream-offer-queue.ts";
import { JetStreamRunStore } from "./store/jetstream-run-store.ts";
import { openKv } from "./store/kv.ts";
import { kvClusterStore } from "./store/kv-cluster-store.ts";
import { IdempotencyEntry, KvIdempotencyStore } from "./store/kv-idempotency-store.ts";
import { LogStore } from "./store/log-store.ts";
import { NatsPeers } from "./store/nats-peers.ts";
import {
  keepNatsServerRunning,
  type NatsServer,
  type NatsUser,
  startNatsServer,
} from "./store/nats-server.ts";
import { externalTarget } from "./store/nats-target.ts";
import { ReadModel } from "./store/read-model.ts";
import { ResourceLog } from "./store/resource-log.ts";
import { refuseHalfRestored } from "./store/restore-mark.ts";
import { settleReplicas } from "./store/stream-replicas.ts";

const DRAIN_MS = 1_000;
const CONTROL_PLANE_USER = "control-plane";

export interface ServerWorld {
  clock: Clock;
  random: Random;
  log: Logger;
  env: NodeJS.ProcessEnv;
}

export interface RunningServer {
  url: string;
  token: string;
  gatewayPort: number;
  close(): Promise<void>;
}

/** What NATS this replica uses, and how agents get at it. */
interface Engine {
  connection: NatsConnection;
  accessFor(environment: string): NatsAccess;
  /** Environments came or went. */
  setEnvironments(environments: readonly string[]): Promise<void>;
}

/** Closers run in reverse order, each even when another failed. */
class Closers {
  readonly #closers: { what: string; close: () => Promise<unknown> }[] = [];
  readonly #log: Logger;

  constructor(log: Logger) {
    this.#log = log;
  }

  add(what: string, close: () => Promise<unknown>): void {
    this.#closers.push({ what, close });
  }

  async close(): Promise<void> {
    for (const { what, close } of this.#closers.splice(0).reverse()) {
      await close().catch((err: unknown) =>
        this.#log.warn({ err, part: what }, "part did not close cleanly"),
      );
    }
  }
}

/** Resolves when the replica serves. What was opened is closed again when anything fails. */
export async function startServer(
  config: ServerConfig,
  world: ServerWorld,
  signal: AbortSignal,
): Promise<RunningServer> {
  const closers = new Closers(world.log);
  try {
    return await open(config, world, signal, closers);
  } catch (err) {
    await closers.close();
    throw err;
  }
}

async function open(
  config: ServerConfig,
  world: ServerWorld,
  signal: AbortSignal,
  closers: Closers,
): Promise<RunningServer> {
  const { clock, random, log } = world;
  const secrets = config.secrets ?? join(config.data, "secrets");
  await mkdir(secrets, { recursive: true, mode: 0o700 });
  await mkdir(config.data, { recursive: true, mode: 0o700 });
  const replicaId = (
    await loadOrCreateSecret(join(config.data, "replica-id"), () => `${replicaName()}-${newSecret(4)}\n`)
  ).trim();
  const pki = await loadOrCreatePki({ directory: secrets, trustDomain: config.trustDomain, clock });
  const signer = await loadOrCreateOfferSigner(secrets);
  const apiToken = await loadOrCreateApiToken(secrets);

  const engine = await openEngine(config, { ...world, pki, secrets }, signal, closers);
  const { connection } = engine;
  const replicas = await settleReplicas({ connection, clock, log }, config.streamReplicas);
  await refuseHalfRestored(await connection.jetstreamManager());
  await ensureStreams(await connection.jetstreamManager(), replicas);

  const resourceLog = await ResourceLog.open({ connection, clock, log, replicas });
  closers.add("resources", () => resourceLog.close());
  const store = new JetStreamRunStore(connection);
  const directory = join(config.data, "read-model");
  const reads: ReadModel = new ReadModel({
    directory,
    connection,
    store,
    plans: resourceLog,
    clock,
    log,
    onCreated: (run) => started.runs?.adopt(run),
  });
  closers.add("read model", () => reads.close());
  const started: { runs?: RunService } = {};
  await reads.start();

  const agents = await openKv(connection, {
    clock,
    log,
    bucket: BUCKETS.agents,
    schema: AgentRecord,
    prefix: IDENTITY_PREFIX,
    replicas,
  });
  const seen = await openKv(connection, {
    clock,
    log,
    bucket: BUCKETS.agents,
    schema: SeenRecord,
    prefix: SEEN_PREFIX,
    replicas,
  });
  const registry = createAgentRegistry({ kv: agents, clock, log });
  closers.add("agent registry", () => registry.close());
  await registry.start(signal);
  const fleet: Fleet = createFleet({
    registry,
    seen,
    clock,
    log,
    share: (presence) => {
      if (shards.size > 1) peers.broadcast({ kind: "presence", from: replicaId, ...presence });
    },
  });
  closers.add("fleet", () => fleet.close());
  await fleet.start(signal);

  const placement = createCedarPlacement();
  const resources = new Resources({
    journal: resourceLog,
    placement,
    clock,
    agentsOf: (environment) => fleet.agentsOf(environment).length,
  });
  const desk = new Desk(placement, resources, resourceLog, fleet, (environment) =>
    runs.outstandingOffers(environment),
  );
  const runs: RunService = new RunService({
    clock,
    random,
    log,
    store,
    offers: new JetStreamOfferQueue(connection, (payload) => signer.sign(payload)),
    plans: resourceLog,
    desk,
    agents: { cancel: (agent, lease, reason) => router.stop(agent, lease, reason) },
    instanceId: newId(clock.wallMs()),
    leaseTtlMs: config.leaseTtlMs,
    offerTtlMs: config.offerTtlMs,
    replicaId,
    isOver: (runId) => (reads.summary(runId)?.finishedAtMs ?? null) !== null,
    confirm: (shard, epoch) => shards.confirm(shard, epoch),
  });
  started.runs = runs;
  const peers = new NatsPeers(connection, replicaId, log);
  const inbox = new JetStreamInbox({
    connection,
    manager: await connection.jetstreamManager(),
    clock,
    log,
    accept: (item) => router.acceptFromInbox(item),
  });
  const clusterKv = await openKv(connection, {
    clock,
    bucket: BUCKETS.cluster,
    schema: ClusterRecord,
    replicas,
  });
  const instance = newSecret(6);
  const address = { url: "", gateway: "" };
  const shards: ShardService = new ShardService({
    store: kvClusterStore(clusterKv),
    clock,
    log,
    me: {
      id: replicaId,
      instance,
      get url() {
        return address.url;
      },
      get gateway() {
        return address.gateway;
      },
      software: `insitu ${SOFTWARE_VERSION}`,
      startedAtMs: clock.wallMs(),
    },
    fingerprint: createHash("sha256").update(pki.caPin()).update(signer.publicKeyPem).digest("hex"),
    async own(epochs, epochFloor) {
      const unfinished = await reads.unfinished();
      runs.own(
        epochs,
        unfinished.filter(({ runId }) => epochs.has(shardOf(runId))),
        epochFloor,
      );
      await inbox.drain();
    },
    disown: (lost) => runs.disown(lost),
    announce: () => peers.broadcast({ kind: "shards" }),
  });
  const router: RunRouter = new RunRouter({
    runs,
    shards,
    bus: peers,
    inbox,
    clock,
    refused: (agent, { lease }, why) =>
      log.warn({ agent, ...lease, ...why }, "report from the inbox set aside"),
    tell: (agent, verdict) => gateway.sessions.tell(agent, verdict),
    stop: (agent, lease, reason) => gateway.sessions.cancel(agent, lease, reason),
  });

  const syncEnvironments = (): Promise<void> =>
    engine.setEnvironments(resourceLog.list("environment").map((environment) => environment.name));
  await syncEnvironments();
  resourceLog.onChange(() => {
    desk.refresh();
    runs.factsChanged();
    syncEnvironments().catch((err: unknown) =>
      log.error({ err }, "queues of new environments are not ready"),
    );
  });

  const tokenKv = await openKv(connection, {
    clock,
    log,
    bucket: BUCKETS.joinTokens,
    schema: JoinTokenRecord,
    ttlMs: JOIN_TOKEN_BUCKET_TTL_MS,
    replicas,
  });
  const tokens = createJoinTokens({
    kv: tokenKv,
    clock,
    environments: () => resourceLog.list("environment").map(({ name }) => name),
    format: ({ environment, secret }) =>
      encodeJoinToken({
        environment,
        secret,
        gateway: `${advertisedHost(config)}:${gateway.port}`,
        caPin: pki.caPin(),
      }),
  });
  const logs = new LogStore({
    connection,
    clock,
    log,
    queries: reads,
    wasGranted: (agent, chunk) => runs.wasGranted(agent, chunk),
  });
  const gateway = createGateway({
    clock,
    random,
    log,
    pki,
    tokens,
    registry,
    fleet,
    reports: router,
    leases: router,
    logs,
    natsAccessFor: (environment) => engine.accessFor(environment),
    offerPublicKeyPem: signer.publicKeyPem,
    listen: { host: config.gatewayHost, port: config.gatewayPort },
    serverNames: namesOf(config),
    heartbeatMs: config.heartbeatMs,
    leaseTtlMs: config.leaseTtlMs,
    replicaId,
    gateways: () => shards.gateways(),
  });
  runs.start();
  closers.add("runs", () => runs.close());
  await inbox.start();
  closers.add("inbox", () => inbox.close());
  closers.add("shards", () => shards.close());
  peers.start({
    onMessage: (message) => {
      if (isPoke(message)) return shards.poke();
      const presence = PresenceMessage.safeParse(message);
      if (presence.success) return fleet.heard(presence.data);
      const parsed = PeerMessage.safeParse(message);
      if (parsed.success) router.received(parsed.data);
    },
    onRequest: (message) => router.perform(RunCommand.parse(message)),
  });
  await gateway.start(signal);
  closers.add("gateway", async () => {
    await gateway.drain(DRAIN_MS);
    await gateway.close();
  });

  const apiTokenKv = await openKv(connection, {
    clock,
    log,
    bucket: BUCKETS.apiTokens,
    schema: ApiTokenRecord,
    replicas,
  });
  const apiTokens = createApiTokens({ kv: apiTokenKv, clock, log });
  const idempotencyKv = await openKv(connection, {
    clock,
    log,
    bucket: BUCKETS.idempotency,
    schema: IdempotencyEntry,
    ttlMs: IDEMPOTENCY_TTL_MS,
    replicas,
  });
  const stopping = new AbortController();
  const app = createApi(
    {
      resources,
      runs: new Commands(router, reads, resources),
      queries: {
        list: (query) => reads.list(query),
        follow: (...about) => reads.follow(...about),
        get: (runId) => {
          const run = reads.get(runId);
          return run && explainWaiting(run, (environment) => fleet.agentsOf(environment).length);
        },
      },
      logs,
      fleet,
      servers: shards,
      joinTokens: tokens,
      tokens: apiTokens,
      readiness: () => ({ nats: !connection.isClosed(), shards: shards.settled }),
    },
    {
      access: anyAccess(tokenAccess(apiToken.token, LOCAL_OPERATOR), apiTokens),
      log,
      clock,
      idempotency: new KvIdempotencyStore(idempotencyKv, clock),
      allowedHosts: isLoopback(config.host) ? LOOPBACK_HOSTS : null,
      stopping: stopping.signal,
      console: await loadConsole(),
    },
  );
  const tls = isLoopback(config.host) ? undefined : await serverCertificate(pki, config);
  const server = serveApi(app, { host: config.host, port: config.port, clock, ...(tls ? { tls } : {}) });
  await server.start(signal);
  closers.add("api", async () => {
    stopping.abort(new InsituError("unavailable", "the server stops"));
    await server.drain(DRAIN_MS);
    await server.close();
  });
  address.url = server.url.replace(/\/\/(0\.0\.0\.0|\[::\])(?=:|$)/, `//${advertisedHost(config)}`);
  address.gateway = `${advertisedHost(config)}:${gateway.port}`;
  // Last: who decides for runs can be reached, and reports that came before wait in the inbox.
  await shards.start();
  await writeContext(
    join(config.data, "context.json"),
    server.url,
    apiToken.token,
    tls ? pki.caPem : undefined,
  );
  if (config.context)
    await writeContext(config.context, server.url, apiToken.token, tls ? pki.caPem : undefined);
  log.info({ url: server.url, gatewayPort: gateway.port, replicaId }, "server ready");
  return { url: server.url, token: apiToken.token, gatewayPort: gateway.port, close: () => closers.close() };
}

async function openEngine(
  config: ServerConfig,
  world: ServerWorld & { pki: Pki; secrets: string },
  signal: AbortSignal,
  closers: Closers,
): Promise<Engine> {
  const embedded =
    config.natsUrl === undefined ? await startEmbedded(config, world, signal, closers) : undefined;
  const target = embedded?.target ?? (await externalTarget(config));
  const connection = await connectNats({ ...target, name: "insitu-server" });
  closers.add("nats connection", () => connection.close());
  const manager = await connection.jetstreamManager();
  const known = new Set<string>();
  return {
    connection,
    accessFor: (environment) => ({
      ...(embedded?.agentAccess(environment) ?? {
        servers: target.servers,
        user: config.agentNatsUser,
        password: config.agentNatsPassword,
        caPem: target.caPem ?? "",
      }),
      inboxPrefix: inboxOf(environment),
      stream: STREAMS.work,
      consumer: workConsumer(environment),
    }),
    async setEnvironments(environments) {
      const fresh = environments.filter((environment) => !known.has(environment));
      if (fresh.length === 0) return;
      for (const environment of fresh) {
        await ensureWorkConsumer(manager, environment, workConsumer(environment));
        known.add(environment);
      }
      await embedded?.setEnvironments(environments);
    },
  };
}

/** A nats-server of our own: a user for the control plane, and one per environment that reaches only its own queue. */
async function startEmbedded(
  config: ServerConfig,
  world: ServerWorld & { pki: Pki; secrets: string },
  signal: AbortSignal,
  closers: Closers,
) {
  const { clock, log, pki, secrets, env } = world;
  const secret = (await loadOrCreateSecret(join(secrets, "nats-users"), () => `${newSecret(32)}\n`)).trim();
  const passwordOf = (user: string): string => createHmac("sha256", secret).update(user).digest("base64url");
  const users = (environments: readonly string[]): NatsUser[] => [
    { user: CONTROL_PLANE_USER, password: passwordOf(CONTROL_PLANE_USER) },
    ...environments.map((environment) => ({
      user: `environment-${environment}`,
      password: passwordOf(`environment-${environment}`),
      publish: [
        `$JS.API.CONSUMER.MSG.NEXT.${STREAMS.work}.${workConsumer(environment)}`,
        `$JS.ACK.${STREAMS.work}.${workConsumer(environment)}.>`,
      ],
      subscribe: [`${inboxOf(environment)}.>`],
    })),
  ];
  const { path: binary, version } = await findNatsServer({ env, install: false, say: () => undefined });
  const remote = !isLoopback(config.natsHost);
  const syncAlways = config.natsSync === "always" && canSyncAlways(version);
  if (config.natsSync === "always" && !syncAlways)
    log.warn(
      { version },
      "this nats-server syncs its files every 60 s: a power cut can lose what was acknowledged since; 2.10 and newer sync each write",
    );
  const tls = remote ? await natsCertificate(pki, config, secrets) : undefined;
  const server: NatsServer = await startNatsServer({
    binary,
    directory: join(config.data, "nats"),
    host: config.natsHost,
    port: config.natsPort,
    users: users([]),
    syncAlways,
    log,
    clock,
    signal,
    ...(tls ? { tls } : {}),
  });
  closers.add("nats-server", () => server.stop());
  const guard = new AbortController();
  const guarding = keepNatsServerRunning(server, { clock, log, signal: guard.signal });
  closers.add("nats-server guard", async () => {
    guard.abort();
    await guarding;
  });
  log.info({ version, url: server.url }, "nats-server started");
  const scheme = remote ? "tls" : "nats";
  const local = `${scheme}://${remote ? "localhost" : "127.0.0.1"}:${server.port}`;
  return {
    target: {
      servers: [local],
      user: CONTROL_PLANE_USER,
      password: passwordOf(CONTROL_PLANE_USER),
      ...(tls ? { caPem: pki.caPem } : {}),
    },
    agentAccess: (environment: string) => ({
      servers: [remote ? `${scheme}://${advertisedHost(config)}:${server.port}` : local],
      user: `environment-${environment}`,
      password: passwordOf(`environment-${environment}`),
      caPem: remote ? pki.caPem : "",
    }),
    setEnvironments: (environments: readonly string[]) => server.setUsers(users(environments)),
  };
}

function isPoke(message: unknown): boolean {
  return typeof message === "object" && message !== null && "kind" in message && message.kind === "shards";
}

/** Part of a NATS subject: no dots. */
function replicaName(): string {
  return hostname().replaceAll(/[^A-Za-z0-9-]/g, "-");
}

/** `sync_interval: always` came with 2.10.0. */
function canSyncAlways(version: string): boolean {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major > 2 || (major === 2 && minor >= 10);
}

function inboxOf(environment: string): string {
  return `_INBOX.${environment}`;
}

function advertisedHost(config: ServerConfig): string {
  const [first] = config.publicHosts;
  if (first !== undefined) return first.includes(":") ? `[${first}]` : first;
  return isLoopback(config.gatewayHost) ? "127.0.0.1" : hostname();
}

function namesOf(config: ServerConfig): { dns: string[]; ips: string[] } {
  const names = [...config.publicHosts, hostname()];
  return { dns: names.filter((name) => isIP(name) === 0), ips: names.filter((name) => isIP(name) !== 0) };
}

async function serverCertificate(pki: Pki, config: ServerConfig): Promise<{ cert: string; key: string }> {
  const pair = await pki.issueServerCertificate(namesOf(config));
  return { cert: pair.chainPem, key: pair.keyPem };
}

async function natsCertificate(pki: Pki, config: ServerConfig, directory: string) {
  const pair = await serverCertificate(pki, config);
  const files = {
    certFile: join(directory, "nats.crt.pem"),
    keyFile: join(directory, "nats.key.pem"),
    caFile: join(directory, "ca.crt.pem"),
  };
  await writeFile(files.certFile, pair.cert, { mode: 0o600 });
  await writeFile(files.keyFile, pair.key, { mode: 0o600 });
  return files;
}

async function writeContext(
  file: string,
  server: string,
  token: string,
  caPem: string | undefined,
): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const caFile = join(dirname(file), "ca.pem");
  if (caPem !== undefined) await writeFile(caFile, caPem, { mode: 0o644 });
  // Nobody can be reached at "all addresses"; who reads the file is on this host. The CA lies beside the file.
  const address = server.replace(/\/\/(0\.0\.0\.0|\[::\])(?=:|$)/, "//127.0.0.1");
  const context = { server: address, token, ...(caPem === undefined ? {} : { caFile: basename(caFile) }) };
  const temporary = `${file}.${newSecret(6)}`;
  await writeFile(temporary, `${JSON.stringify(context, null, 2)}\n`, { mode: 0o600 });
  await rename(temporary, file);
}
