/** What NATS a replica uses, and how agents get at it. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { NatsConnection } from "nats";
import { findNatsServer } from "../scripts/find-nats-server.mjs";
import { BUCKETS, STREAMS, workConsumer } from "../shared/wire/subjects.ts";
import type { NatsAccounts } from "./access/nats-accounts.ts";
import { agentInbox } from "./access/nats-claims.ts";
import {
  type NatsIdentity,
  NatsIdentityService,
  VALID_FOR_S,
  VALID_UNTOLD_FOR_S,
} from "./access/nats-identity.ts";
import type { ImportedAccounts } from "./access/nats-imported.ts";
import { NatsKeyFollower } from "./access/nats-key-follower.ts";
import { loadNatsOperator, loadOrCreateNatsOperator, type NatsOperator } from "./access/nats-operator.ts";
import { NatsUsers } from "./access/nats-users.ts";
import type { Pki } from "./access/pki.ts";
import { isLoopback } from "./api/serve.ts";
import type { Closers } from "./closers.ts";
import type { ServerConfig } from "./config.ts";
import { keysOf } from "./fleet/agent-record.ts";
import type { AgentRegistry } from "./fleet/agent-registry.ts";
import type { NatsAccess } from "./gateway/gateway.ts";
import { advertisedHost, loopbackOf, serverCertificate } from "./host-names.ts";
import type { ServerWorld } from "./server.ts";
import { connectNats, ensureWorkConsumer, type NatsTarget, onReconnect } from "./store/jetstream.ts";
import { openKv } from "./store/kv.ts";
import { checkAccounts } from "./store/nats-accounts-check.ts";
import { pushAccount } from "./store/nats-claims-push.ts";
import { NatsDisk } from "./store/nats-disk.ts";
import { checkImports } from "./store/nats-import-check.ts";
import { answerForKeys } from "./store/nats-key-census.ts";
import { NatsRoom } from "./store/nats-room.ts";
import { keepNatsServerRunning, type NatsServer, startNatsServer } from "./store/nats-server.ts";
import {
  embeddedDirectory,
  externalImported,
  externalOperator,
  externalTarget,
  secretsOf,
} from "./store/nats-target.ts";
import { canSyncAlways, isAlone, sayWhatAPowerCutTakes } from "./store/power-cut.ts";
import { flushBeforeAnswer } from "./store/stream-disk.ts";
import { TailCopy } from "./store/tail-copy/tail-copy.ts";
import { WriteHealth } from "./store/write-health.ts";

const SETTLE_RETRY_MS = 1_000;

export interface Engine {
  connection: NatsConnection;
  /** False while the disk of a nats-server that we start is full; of others' disks nothing is known. */
  hasRoom(): boolean;
  /** Of agents; who they are there is said by `identity`, where there are accounts. */
  accessFor(peer: { environment: string; name: string }): NatsAccess;
  /** `nats://…` or `tls://…`, as in `accessFor`. */
  agentServers: readonly string[];
  /** Undefined where NATS has no accounts. */
  identity: NatsIdentity | undefined;
  /** Before anything else of it but the connection. */
  begin(parts: { registry: AgentRegistry; replicas: number }): Promise<void>;
  /** Environments came or went. */
  setEnvironments(environments: readonly string[]): Promise<void>;
}

type World = ServerWorld & { pki: Pki; secrets: string; replicaId: string };

/** `stores`: false while NATS stores nothing of what it is given, as far as that is known. */
export async function openEngine(
  ...about: Parameters<typeof openEither>
): Promise<Engine & { stores(): boolean }> {
  const engine = await openEither(...about);
  const writes = new WriteHealth(about[1]).watch(engine.connection);
  return { ...engine, stores: () => engine.hasRoom() && writes.failing().length === 0 };
}

/** A NATS of the operator's own, or one that we start. */
async function openEither(
  config: ServerConfig,
  world: World,
  signal: AbortSignal,
  closers: Closers,
): Promise<Engine> {
  if (config.natsUrl !== undefined) {
    const imported = await externalImported(config);
    if (imported) return await openImported(config, imported, world, signal, closers);
    const operator = await externalOperator(config);
    return operator
      ? await openExternalAccounts(config, operator, world, signal, closers)
      : await openPlain(config, world, signal, closers);
  }
  const operator = await loadOrCreateNatsOperator(world.secrets);
  const embedded = await startEmbedded(config, world, operator, signal, closers);
  const keep = async (connection: NatsConnection): Promise<undefined> => {
    if (embedded.disk) flushBeforeAnswer(connection, embedded.disk);
  };
  return await openAccounts({ ...embedded, accounts: operator, operator, keep }, world, closers);
}

/** A NATS that was configured with our accounts: on it they are what they are on one that we start. */
async function openExternalAccounts(
  config: ServerConfig,
  operator: NatsOperator,
  world: World,
  signal: AbortSignal,
  closers: Closers,
): Promise<Engine> {
  const nats = await externalAccounts(config, world, signal, closers);
  const engine = await openAccounts({ ...nats, accounts: operator, operator }, world, closers);
  world.log.info({}, "each environment has an account of its own on this NATS");
  return engine;
}

/** What is the same of every NATS of one's own that has an account for each environment. */
async function externalAccounts(config: ServerConfig, world: World, signal: AbortSignal, closers: Closers) {
  const target = await externalTarget(config);
  await checkAccounts(target, secretsOf(config));
  return {
    target,
    agentServers: target.servers,
    agentCaPem: target.caPem ?? "",
    keep: (connection: NatsConnection, signed: Target) =>
      keepCopy({ config, connection, target: signed }, world, signal, closers),
    hasRoom: () => true,
  };
}

/** Accounts below an operator that somebody else runs. */
async function openImported(
  config: ServerConfig,
  accounts: ImportedAccounts,
  world: World,
  signal: AbortSignal,
  closers: Closers,
): Promise<Engine> {
  const nats = await externalAccounts(config, world, signal, closers);
  const engine = await openAccounts({ ...nats, accounts }, world, closers);
  world.log.warn(
    { validForS: VALID_UNTOLD_FOR_S },
    "the accounts of this NATS are signed by somebody else: an agent that is revoked may pull until its access ends",
  );
  const { log, clock } = world;
  const checked = new Set<string>();
  const missed = new Set<string>();
  return {
    ...engine,
    async setEnvironments(environments) {
      const known = environments.filter((environment) => accounts.has(environment));
      for (const environment of environments) {
        if (accounts.has(environment) || missed.has(environment)) continue;
        missed.add(environment);
        log.error({ environment }, "environment has no account on this NATS: its agents pull nothing");
      }
      await engine.setEnvironments(known);
      const fresh = known.filter((environment) => !checked.has(environment));
      await checkImports({ ...nats.target, accounts, environments: fresh, all: known, clock });
      for (const environment of fresh) checked.add(environment);
    },
  };
}

/** A NATS of the operator's own, where all agents are one user: what isolates environments is theirs to set up. */
async function openPlain(
  config: ServerConfig,
  world: World,
  signal: AbortSignal,
  closers: Closers,
): Promise<Engine> {
  const target = await externalTarget(config);
  const connection = await connect(target, closers);
  const copy = await keepCopy({ config, connection, target }, world, signal, closers);
  world.log.warn(
    {},
    "environments share one account of this NATS: its permissions do not keep an agent from disturbing the queues of other environments",
  );
  return {
    connection,
    hasRoom: () => true,
    agentServers: target.servers,
    identity: undefined,
    begin: async () => undefined,
    accessFor: ({ environment }) => ({
      servers: target.servers,
      user: config.agentNatsUser,
      password: config.agentNatsPassword,
      caPem: target.caPem ?? "",
      inboxPrefix: `_INBOX.${environment}`,
      stream: STREAMS.work,
      consumer: workConsumer(environment),
    }),
    setEnvironments: await consumersOf(connection, workConsumer, copy),
  };
}

/** Of what a single NATS of others acknowledges and may not sync. */
async function keepCopy(
  about: { config: ServerConfig; connection: NatsConnection; target: Target },
  { clock, log, replicaId }: World,
  signal: AbortSignal,
  closers: Closers,
): Promise<TailCopy | undefined> {
  const { config, connection, target } = about;
  if (!isAlone(connection)) return undefined;
  const copied = config.natsCopy === "on";
  sayWhatAPowerCutTakes(connection, copied, log);
  if (!copied) return undefined;
  const copy = new TailCopy({
    directory: join(config.data, "nats-tail"),
    connection,
    dial: () => connectNats({ ...target, name: "insitu-writer", reconnect: false }),
    replicaId,
    clock,
    log,
  });
  closers.add("copy of what NATS acknowledged", () => copy[Symbol.asyncDispose]());
  await copy.start(signal);
  return copy;
}

/** An account for each environment. */
async function openAccounts(
  options: {
    target: Target;
    agentServers: string[];
    agentCaPem: string;
    accounts: NatsAccounts;
    /** The same, where they are ours to sign. */
    operator?: NatsOperator;
    /** For a server that leaves to the kernel what it has acknowledged. */
    keep(connection: NatsConnection, target: Target): Promise<TailCopy | undefined>;
    hasRoom: Engine["hasRoom"];
  },
  { clock, log, secrets }: World,
  closers: Closers,
): Promise<Engine> {
  const { agentServers, agentCaPem, accounts, operator, hasRoom } = options;
  const target = { ...options.target, credentials: accounts.controlPlaneUser() };
  const connection = await connect(target, closers);
  const copy = await options.keep(connection, target);
  const system = operator
    ? await connect({ ...target, credentials: operator.claimsUser() }, closers, "accounts")
    : undefined;
  const nameOf = (environment: string): string => accounts.accountOf(environment);
  const ensureConsumers = await consumersOf(connection, nameOf, copy);
  let service: NatsIdentityService | undefined;
  const begun = (): NatsIdentityService => {
    if (!service) throw new Error("the engine has not begun");
    return service;
  };
  return {
    connection,
    hasRoom,
    agentServers,
    identity: {
      accessFor: (...about) => begun().accessFor(...about),
      revoke: (...about) => begun().revoke(...about),
    },
    accessFor: ({ environment, name }) => ({
      servers: agentServers,
      user: "",
      password: "",
      caPem: agentCaPem,
      inboxPrefix: agentInbox(name),
      stream: STREAMS.work,
      consumer: accounts.accountOf(environment),
    }),
    async begin({ registry, replicas }) {
      const bucket = { clock, log, bucket: BUCKETS.natsUsers, schema: NatsUsers, replicas };
      const users = await openKv(connection, bucket);
      const made = new NatsIdentityService({
        accounts,
        telling: operator && system ? { operator, push: (jwt) => pushAccount(system, jwt) } : undefined,
        validForS: operator ? VALID_FOR_S : VALID_UNTOLD_FOR_S,
        users,
        keysOf: ({ environment, name }) => keysOf(registry.known(`${environment}/${name}`)),
        clock,
        log,
      });
      service = made;
      const stop = new AbortController();
      const follow = (agent: { environment: string; name: string }): Promise<void> =>
        made.revoke(agent, keysOf(registry.known(`${agent.environment}/${agent.name}`)));
      /** Until it is done: a revocation that NATS was not told of lets the agent pull on. */
      const settle = async ({ environment, name }: { environment: string; name: string }): Promise<void> => {
        while (!stop.signal.aborted) {
          try {
            return await follow({ environment, name });
          } catch (err) {
            log.error({ err, agent: `${environment}/${name}` }, "agent keeps its NATS user yet");
          }
          await clock.sleep(SETTLE_RETRY_MS, stop.signal).catch(() => undefined); // aborted: the loop sees it
        }
      };
      // Revoked while no replica ran to the end of it.
      for (const { value } of await users.list()) await follow(value);
      const off = [registry.onChange((record) => void settle(record))];
      if (system) {
        const again = onReconnect(system, () => {
          made.pushAll().catch((err: unknown) => log.error({ err }, "NATS was not told of all accounts"));
        });
        off.push(again);
      }
      // A power cut takes accounts too.
      copy?.onRestored(async () => await made.pushAll());
      made.start();
      if (operator) {
        const keys = new NatsKeyFollower({
          operator,
          load: () => loadNatsOperator(secrets),
          tell: () => made.pushAll(),
          clock,
          log,
        });
        answerForKeys(connection, keys);
        keys.start();
        closers.add("nats keys", () => keys.close());
      }
      closers.add("nats accounts", async () => {
        stop.abort();
        for (const end of off) end();
        await made.close();
      });
    },
    async setEnvironments(environments) {
      await ensureConsumers(environments);
      await begun().setEnvironments(environments);
    },
  };
}

type Target = Omit<NatsTarget, "name">;

async function connect(target: Target, closers: Closers, part = "server"): Promise<NatsConnection> {
  const connection = await connectNats({ ...target, name: `insitu-${part}` });
  closers.add(`nats connection of ${part}`, () => connection.close());
  return connection;
}

async function consumersOf(
  connection: NatsConnection,
  nameOf: (environment: string) => string,
  copy: TailCopy | undefined,
) {
  const manager = await connection.jetstreamManager();
  const known = new Set<string>();
  const ensure = async (environments: readonly string[]): Promise<void> => {
    for (const environment of environments) {
      await ensureWorkConsumer(manager, environment, nameOf(environment));
      known.add(environment);
    }
  };
  // A power cut takes queues that are new, and the end of those that are older.
  copy?.onRestored(async () => await ensure([...known]));
  return (environments: readonly string[]): Promise<void> =>
    ensure(environments.filter((environment) => !known.has(environment)));
}

/** A nats-server of our own. */
async function startEmbedded(
  config: ServerConfig,
  world: World,
  operator: NatsOperator,
  signal: AbortSignal,
  closers: Closers,
) {
  const { clock, log, pki, secrets, env } = world;
  const { path: binary, version } = await findNatsServer({ env, install: false, say: () => undefined });
  const remote = !isLoopback(config.natsHost);
  const syncAlways = config.natsSync === "always" && canSyncAlways(version);
  const tls = remote ? await natsCertificate(pki, config, secrets) : undefined;
  const directory = embeddedDirectory(config);
  const server: NatsServer = await startNatsServer({
    binary,
    directory,
    host: config.natsHost,
    port: config.natsPort,
    users: [],
    operator: {
      ...operator.config,
      streamsAccount: operator.controlPlane,
      credentials: operator.controlPlaneUser(),
    },
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
  const room = new NatsRoom({ server, directory, clock, log });
  room.start();
  closers.add("nats-server's room", () => room.close());
  const disk =
    config.natsSync === "always" && !syncAlways
      ? new NatsDisk({ storeDirectory: directory, account: operator.controlPlane, clock })
      : undefined;
  if (disk) {
    closers.add("nats-server's files", () => disk[Symbol.asyncDispose]());
    // What an earlier process left to the kernel is read and acted on from now on.
    await disk.flushAll();
  }
  const synced = disk ? "by the control plane" : syncAlways ? "by nats-server" : "in intervals";
  log.info({ version, url: server.url, synced }, "nats-server started");
  const scheme = remote ? "tls" : "nats";
  const local = `${scheme}://${remote ? "localhost" : loopbackOf(config.natsHost)}:${server.port}`;
  return {
    disk,
    hasRoom: () => room.hasRoom,
    target: { servers: [local], ...(tls ? { caPem: pki.caPem } : {}) },
    agentServers: [remote ? `${scheme}://${advertisedHost(config)}:${server.port}` : local],
    agentCaPem: remote ? pki.caPem : "",
  };
}

async function natsCertificate(pki: Pki, config: ServerConfig, directory: string) {
  const pair = await serverCertificate(pki, config);
  const files = {
    certFile: join(directory, "nats.crt.pem"),
    keyFile: join(directory, "nats.key.pem"),
    caFile: join(directory, "nats.ca.pem"),
  };
  await writeFile(files.caFile, pki.caPem, { mode: 0o600 });
  await writeFile(files.certFile, pair.cert, { mode: 0o600 });
  await writeFile(files.keyFile, pair.key, { mode: 0o600 });
  return files;
}
