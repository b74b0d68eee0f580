/** One replica: opens its parts in order, and closes them in the reverse one. */
import { createHash } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import type { Logger } from "pino";
import { InsituError } from "../shared/errors.ts";
import type { AccessPolicySpec, EnvironmentSpec } from "../shared/model/spec.ts";
import { type Clock, newId, newSecret, type Random } from "../shared/system.ts";
import { encodeJoinToken } from "../shared/wire/join-token.ts";
import { SOFTWARE_VERSION } from "../shared/wire/protocol.ts";
import { BUCKETS, STREAMS, shardOf } from "../shared/wire/subjects.ts";
import { AccessJudge } from "./access/access-judge.ts";
import { loadOrCreateApiToken } from "./access/api-token.ts";
import { ApiTokenRecord, createApiTokens, LOCAL_OPERATOR } from "./access/api-tokens.ts";
import { APPROVALS_KEPT_MS, createApprovalDesk } from "./access/approval-desk.ts";
import { ApprovalRecord } from "./access/approvals.ts";
import { openAuthority } from "./access/authority.ts";
import { AuthorityRecord } from "./access/authority-book.ts";
import { AuthorityFiles } from "./access/authority-files.ts";
import {
  AUTHORITY_PREFIX,
  AuthorityService,
  REPLICA_KEYS_PREFIX,
  ReplicaKeys,
} from "./access/authority-service.ts";
import { ruleFaults } from "./access/cedar-access.ts";
import { createJoinRequests, JOINING_PREFIX, JoinRequestRecord } from "./access/join-requests.ts";
import { createJoinTokens, JOIN_TOKEN_BUCKET_TTL_MS, JoinTokenRecord } from "./access/join-tokens.ts";
import { loadOrCreateOfferSigner } from "./access/offer-signer.ts";
import { ReceiptRoots } from "./access/receipt-roots.ts";
import { loadOrCreateSecret } from "./access/secret-file.ts";
import { agentId } from "./access/spiffe.ts";
import { anyAccess, tokenAccess } from "./api/access.ts";
import { createApi } from "./api/api.ts";
import { loadConsole } from "./api/console.ts";
import { LOOPBACK_HOSTS } from "./api/context.ts";
import { IDEMPOTENCY_TTL_MS } from "./api/idempotency.ts";
import { isLoopback, serveApi } from "./api/serve.ts";
import { Closers } from "./closers.ts";
import type { ServerConfig } from "./config.ts";
import { writeContext } from "./context-file.ts";
import { Desk } from "./desk.ts";
import { openEngine } from "./engine.ts";
import { receiptCheck } from "./evidence/receipt-check.ts";
import { agentCommands } from "./fleet/agent-commands.ts";
import { AgentRecord, IDENTITY_PREFIX, SEEN_PREFIX, SeenRecord } from "./fleet/agent-record.ts";
import { createAgentRegistry } from "./fleet/agent-registry.ts";
import { createFleet, type Fleet, PresenceMessage } from "./fleet/fleet-service.ts";
import { checkedItems, checkedReports } from "./gateway/checked-reports.ts";
import { createGateway } from "./gateway/gateway.ts";
import { LogDoubts } from "./gateway/log-doubts.ts";
import { ReportKeys } from "./gateway/report-keys.ts";
import { advertisedGateway, advertisedHost, namesOf, serverCertificate } from "./host-names.ts";
import { openLedger } from "./ledger.ts";
import { targetOf } from "./one-port/nats-door.ts";
import { openPeople } from "./people.ts";
import { createCedarPlacement } from "./placement/cedar-placement.ts";
import { Resources } from "./resources/resource-service.ts";
import { Commands } from "./runs/run-commands.ts";
import { PeerMessage, RunCommand, RunRouter } from "./runs/run-router.ts";
import { RunService } from "./runs/run-service.ts";
import { explainWaiting } from "./runs/waiting.ts";
import { ClusterRecord } from "./shards/shard-book.ts";
import { ShardService } from "./shards/shard-service.ts";
import { ensureStreams, limitQueues } from "./store/jetstream.ts";
import { JetStreamInbox } from "./store/jetstream-inbox.ts";
import { JetStreamOfferQueue } from "./store/jetstream-offer-queue.ts";
import { JetStreamRunStore } from "./store/jetstream-run-store.ts";
import { openKv } from "./store/kv.ts";
import { kvClusterStore } from "./store/kv-cluster-store.ts";
import { IdempotencyEntry, KvIdempotencyStore } from "./store/kv-idempotency-store.ts";
import { LogStore } from "./store/log-store.ts";
import { NatsPeers } from "./store/nats-peers.ts";
import { PoisonStream } from "./store/poison-stream.ts";
import { ReadModel } from "./store/read-model.ts";
import { ResourceLog } from "./store/resource-log.ts";
import { refuseHalfRestored } from "./store/restore-mark.ts";
import { noteMade } from "./store/stream-disk.ts";
import { settleReplicas } from "./store/stream-replicas.ts";
import { whenReady } from "./store/when-ready.ts";

const DRAIN_MS = 1_000;

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
  /** For whoever reads it first; null when there is an administrator. Each call ends the link before. */
  firstAdminLink(): Promise<string | null>;
  /** Where agents reach NATS too. */
  onePort?: number;
  close(): Promise<void>;
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
  const pki = await openAuthority({ directory: secrets, trustDomain: config.trustDomain, clock });
  const signer = await loadOrCreateOfferSigner(secrets);
  const apiToken = await loadOrCreateApiToken(secrets);

  const engine = await openEngine(config, { ...world, pki, secrets, replicaId }, signal, closers);
  const { connection } = engine;
  const replicas = await settleReplicas({ connection, clock, log }, config.streamReplicas);
  await refuseHalfRestored(await connection.jetstreamManager());
  await whenReady({ connection, clock }, async () => {
    const manager = await connection.jetstreamManager({ checkAPI: false });
    await ensureStreams(manager, replicas);
    await limitQueues(manager, log);
  });
  await noteMade(connection, Object.values(STREAMS));

  const poison = new PoisonStream({ connection, manager: await connection.jetstreamManager(), clock, log });
  closers.add("poison", () => poison.close());
  const buckets = { clock, log, poison, replicas };
  const resourceLog = await ResourceLog.open({ connection, clock, log, replicas, poison });
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
    poison,
    onCreated: (run) => started.runs?.adopt(run),
  });
  closers.add("read model", () => reads.close());
  const started: { runs?: RunService } = {};
  await reads.start();

  const ledger = await openLedger(
    { connection, plans: resourceLog, clock, log, replicas },
    { data: config.data, secrets, trustDomain: pki.trustDomain },
    closers,
  );

  const agents = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.agents,
    schema: AgentRecord,
    prefix: IDENTITY_PREFIX,
  });
  const seen = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.agents,
    schema: SeenRecord,
    prefix: SEEN_PREFIX,
  });
  const registry = createAgentRegistry({ kv: agents, clock, log });
  closers.add("agent registry", () => registry.close());
  await registry.start(signal);
  const authority: AuthorityService = new AuthorityService({
    kv: await openKv(connection, {
      ...buckets,
      bucket: BUCKETS.agents,
      schema: AuthorityRecord,
      prefix: AUTHORITY_PREFIX,
    }),
    replicaKeys: await openKv(connection, {
      ...buckets,
      bucket: BUCKETS.agents,
      schema: ReplicaKeys,
      prefix: REPLICA_KEYS_PREFIX,
    }),
    authority: pki,
    files: new AuthorityFiles(secrets),
    serverNames: namesOf(config),
    clock,
    log,
    replicaId,
    replicas: () =>
      shards
        .list()
        .filter(({ alive }) => alive)
        .map(({ id }) => id),
    agents: () =>
      registry
        .list()
        .filter(({ removedAtMs }) => removedAtMs === null)
        .map((record) => ({ id: agentId(record), roots: record.roots, issuer: record.issuer })),
  });
  closers.add("authority", () => authority.close());
  await authority.start();
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
  const reportKeys = new ReportKeys({
    registry,
    clock,
    log,
    trustDomain: pki.trustDomain,
    pki,
    requireSigned: config.requireSignedReports,
    onRefused: (agent, code) => fleet.refusedReport(agent, code),
  });

  const receiptRoots = await ReceiptRoots.open(new AuthorityFiles(secrets), pki.trustDomain);
  const checkReceipt = receiptCheck(receiptRoots);

  const placement = createCedarPlacement();
  const resources = new Resources({
    journal: resourceLog,
    placement,
    clock,
    ruleFaults,
    agentsOf: (environment) => fleet.agentsOf(environment),
  });
  const judge = new AccessJudge(
    {
      get revision() {
        return resourceLog.seq;
      },
      policies: () => resourceLog.list("access-policy").map(({ spec }) => spec as AccessPolicySpec),
      pipelines: () => resourceLog.pipelinesEver(),
      environments: () => resourceLog.list("environment").map(({ spec }) => spec as EnvironmentSpec),
      factsOf: (spec) => resources.factsOf(spec),
    },
    log,
  );
  const desk = new Desk(placement, resources, resourceLog, fleet, (environment) =>
    runs.outstandingOffers(environment),
  );
  const runs: RunService = new RunService({
    clock,
    random,
    log,
    store,
    offers: new JetStreamOfferQueue(connection, (payload, purpose) => signer.sign(payload, purpose)),
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
    poison,
    accept: (item) => router.acceptFromInbox(item),
  });
  const clusterKv = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.cluster,
    schema: ClusterRecord,
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
    fingerprint: createHash("sha256").update(authority.firstPin).update(signer.publicKeyPem).digest("hex"),
    async own(epochs, epochFloor) {
      const unfinished = await reads.unfinished();
      runs.own(
        epochs,
        unfinished.filter(({ runId }) => epochs.has(shardOf(runId))),
        epochFloor,
      );
      await inbox.drain();
      ledger.own(epochs);
    },
    async disown(lost) {
      await Promise.all([runs.disown(lost), ledger.disown(lost)]);
    },
    announce: () => peers.broadcast({ kind: "shards" }),
  });
  const router: RunRouter = new RunRouter({
    runs,
    shards,
    bus: peers,
    inbox,
    clock,
    verify: checkedItems((item) => reportKeys.checkStored(item), checkReceipt),
    async refused(item, { code, message }) {
      const { agent, report } = item;
      log.warn({ agent, ...report.lease, code, message }, "report from the inbox set aside");
      if (code !== "report.forged" && code !== "report.unsigned") return;
      const data = Buffer.from(JSON.stringify(item));
      const copy = {
        source: "inbox",
        subject: "report",
        seq: null,
        from: agent,
        reason: message,
        data,
      } as const;
      if (await poison.put(copy)) return;
      throw new InsituError("store.unavailable", "no copy of it can be kept now", { retryable: true });
    },
    tell: (agent, verdict) => gateway.sessions.tell(agent, verdict),
    stop: (agent, lease, reason) => gateway.sessions.cancel(agent, lease, reason),
  });

  const syncEnvironments = (): Promise<void> =>
    engine.setEnvironments(resourceLog.list("environment").map((environment) => environment.name));
  await engine.begin({ registry, replicas });
  await syncEnvironments();
  resourceLog.onChange(() => {
    desk.refresh();
    runs.factsChanged();
    syncEnvironments().catch((err: unknown) =>
      log.error({ err }, "queues of new environments are not ready"),
    );
  });

  // Which agents box steps is a fact that placement rests on.
  const leaveFleet = fleet.onChange(({ kind }) => {
    if (kind === "connected" || kind === "disconnected") runs.factsChanged();
  });
  closers.add("placement's look at the fleet", async () => leaveFleet());

  const tokenKv = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.joinTokens,
    schema: JoinTokenRecord,
    ttlMs: JOIN_TOKEN_BUCKET_TTL_MS,
  });
  const tokens = createJoinTokens({
    kv: tokenKv,
    clock,
    log,
    environments: () => resourceLog.list("environment").map(({ name }) => name),
    format: ({ environment, secret }) =>
      encodeJoinToken({
        environment,
        secret,
        gateway: advertisedGateway(config, gateway),
        caPin: pki.caPin(),
      }),
  });
  const joinRequestKv = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.agents,
    schema: JoinRequestRecord,
    prefix: JOINING_PREFIX,
  });
  const joinRequests = createJoinRequests({ kv: joinRequestKv, clock, log });
  const logs = new LogStore({
    connection,
    clock,
    log,
    poison,
    queries: reads,
    wasGranted: (agent, chunk) => runs.wasGranted(agent, chunk),
    doubts: new LogDoubts({
      keys: reportKeys,
      grantsOf: (runId) =>
        (reads.get(runId)?.steps ?? []).flatMap((step) =>
          step.attempts.map((attempt) => ({ ...attempt, step: step.id })),
        ),
      wasGranted: (agent, at) => runs.wasGranted(agent, at),
      agentsOf: (environment) =>
        registry
          .list()
          .filter((record) => record.environment === environment)
          .map(({ name }) => `${environment}/${name}`),
    }),
  });
  const gateway = createGateway({
    clock,
    random,
    log,
    pki,
    tokens,
    joinRequests,
    registry,
    fleet,
    reports: checkedReports(router, { check: checkReceipt, poison, fleet }),
    reportKeys,
    leases: router,
    logs,
    poison,
    natsAccessFor: (environment) => engine.accessFor(environment),
    natsIdentity: engine.identity,
    validForMs: (environment) =>
      (resourceLog.get("environment", environment)?.spec as EnvironmentSpec | undefined)?.identity
        ?.validForMs,
    offerPublicKeyPem: signer.publicKeyPem,
    listen: { host: config.gatewayHost, port: config.gatewayPort },
    onePort: config.onePort && { listen: config.onePort, natsTargets: engine.agentServers.map(targetOf) },
    serverNames: namesOf(config),
    heartbeatMs: config.heartbeatMs,
    leaseTtlMs: config.leaseTtlMs,
    replicaId,
    gateways: () => shards.gateways(),
    ledger: (fromSize) => ledger.extension(fromSize),
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
    ...buckets,
    bucket: BUCKETS.apiTokens,
    schema: ApiTokenRecord,
  });
  const apiTokens = createApiTokens({ kv: apiTokenKv, clock, log });
  const approvalKv = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.approvals,
    schema: ApprovalRecord,
    ttlMs: APPROVALS_KEPT_MS,
  });
  const people = await openPeople(config, { connection, buckets, clock, log });
  const bearerSessions = {
    authenticate: (token: string) => people.sessions.authenticate("bearer", token),
  };
  const idempotencyKv = await openKv(connection, {
    ...buckets,
    bucket: BUCKETS.idempotency,
    schema: IdempotencyEntry,
    ttlMs: IDEMPOTENCY_TTL_MS,
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
          return run && explainWaiting(run, (environment) => fleet.agentsOf(environment));
        },
      },
      logs,
      fleet,
      agents: agentCommands({ registry, tokens, clock, log }),
      servers: shards,
      joinTokens: tokens,
      joinRequests,
      authority,
      tokens: apiTokens,
      approvals: createApprovalDesk({ kv: approvalKv, clock, log }),
      poison,
      ledger: ledger.desk(receiptRoots),
      readiness: () => ({ nats: !connection.isClosed(), storage: engine.stores(), shards: shards.settled }),
    },
    {
      access: anyAccess(tokenAccess(apiToken.token, LOCAL_OPERATOR), apiTokens, bearerSessions),
      judge,
      log,
      clock,
      idempotency: new KvIdempotencyStore(idempotencyKv, clock),
      allowedHosts: isLoopback(config.host) ? [...LOOPBACK_HOSTS, ...publicNameOf(config)] : null,
      stopping: stopping.signal,
      console: await loadConsole(),
      signIn: { ...people, publicUrl: () => new URL(config.publicUrl ?? address.url) },
    },
  );
  const tls = isLoopback(config.host) ? undefined : await serverCertificate(pki, config);
  const { host, port, trustedProxies } = config;
  const server = serveApi(app, { host, port, trustedProxies, clock, ...(tls ? { tls } : {}) });
  await server.start(signal);
  closers.add("api", async () => {
    stopping.abort(new InsituError("unavailable", "the server stops"));
    await server.drain(DRAIN_MS);
    await server.close();
  });
  address.url = server.url.replace(/\/\/(0\.0\.0\.0|\[::\])(?=:|$)/, `//${advertisedHost(config)}`);
  address.gateway = advertisedGateway(config, gateway);
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
  const ports = { gatewayPort: gateway.port, ...(config.onePort ? { onePort: gateway.onePort } : {}) };
  log.info({ url: server.url, ...ports, replicaId }, "server ready");
  return {
    url: server.url,
    token: apiToken.token,
    ...ports,
    async firstAdminLink() {
      const nowMs = clock.wallMs();
      const hasAdmin = (await apiTokens.list()).some(
        ({ role, pipelines, revokedAtMs, expiresAtMs }) =>
          role === "admin" && pipelines === null && revokedAtMs === null && nowMs < expiresAtMs,
      );
      const secret = await people.firstAdmin.offer({ firstStart: apiToken.isNew, hasAdmin });
      return secret && new URL(`/#first-admin=${secret}`, config.publicUrl ?? address.url).href;
    },
    close: () => closers.close(),
  };
}

function isPoke(message: unknown): boolean {
  return typeof message === "object" && message !== null && "kind" in message && message.kind === "shards";
}

/** A proxy may pass on the name that it was called by. */
function publicNameOf({ publicUrl }: ServerConfig): string[] {
  return publicUrl === undefined ? [] : [new URL(publicUrl).hostname];
}

/** Part of a NATS subject: no dots. */
function replicaName(): string {
  return hostname().replaceAll(/[^A-Za-z0-9-]/g, "-");
}
