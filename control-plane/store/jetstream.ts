/** The connection to NATS, the streams, and how JetStream's errors read to the rest. */
import {
  AckPolicy,
  type Authenticator,
  type ConnectionOptions,
  type ConsumerConfig,
  connect,
  DeliverPolicy,
  DiscardPolicy,
  ErrorCode,
  Events,
  type JetStreamManager,
  jwtAuthenticator,
  type NatsConnection,
  NatsError,
  nanos,
  RetentionPolicy,
  StorageType,
  type StoredMsg,
  type StreamConfig,
} from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import { tlsOf } from "../../shared/wire/nats-tls.ts";
import { mendNatsTransport } from "../../shared/wire/nats-transport.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";

/** Repeats of a message id within this time are stored once. Longer than any retry of ours goes on. */
const PING_EVERY_MS = 2_000;
const CONNECT_TIMEOUT_MS = 4_000;
const DUPLICATE_WINDOW_MS = 5 * 60_000;
const WORK_MAX_AGE_MS = 24 * 3_600_000;
const WORK_MAX_BYTES = 512 * 1024 ** 2;
/** A report waits here while its shard has no owner: a person has this long to bring one up. */
const INBOX_MAX_AGE_MS = 30 * 24 * 3_600_000;
const INBOX_MAX_BYTES = 512 * 1024 ** 2;
const LOGS_MAX_AGE_MS = 30 * 24 * 3_600_000;
const LOGS_MAX_BYTES = 20 * 1024 ** 3;
/** Beyond any of the three the oldest copies go: they are for a person to look at, and nothing is decided by them. */
const POISON_MAX_AGE_MS = 30 * 24 * 3_600_000;
const POISON_MAX_BYTES = 64 * 1024 ** 2;
export const POISON_MAX_MESSAGES = 1_000;
/** Offers that agents of one environment have pulled and not acknowledged. */
const WORK_ACK_PENDING_MAX = 20_000;

export interface NatsTarget {
  servers: string[];
  user?: string;
  password?: string;
  /** In place of user and password, for a NATS in operator mode. */
  credentials?: { readonly jwt: string; readonly seed: string };
  /** PEM of the authority to trust; without it the system's. */
  caPem?: string;
  name: string;
  /** Told, with credentials, what the server wants signed; of servers that know no keys, nothing. */
  challenged?(nonce: string | undefined): void;
  /** Where answers come, for a user who may not listen everywhere. */
  inboxPrefix?: string;
  /** False: a connection that is lost stays so, and whoever waits for something on it hears of that. */
  reconnect?: boolean;
}

export async function connectNats(target: NatsTarget): Promise<NatsConnection> {
  const options: ConnectionOptions = {
    servers: target.servers,
    name: target.name,
    reconnect: target.reconnect ?? true,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 200,
    reconnectJitter: 200,
    // Packets may be lost without a word: a server that owes three answers is left, and one that gives none to a new
    // connection is passed over. Together a little more than it takes the servers to choose another leader.
    pingInterval: PING_EVERY_MS,
    maxPingOut: 2,
    timeout: CONNECT_TIMEOUT_MS,
    ...(target.inboxPrefix === undefined ? {} : { inboxPrefix: target.inboxPrefix }),
    ...(target.user === undefined ? {} : { user: target.user, pass: target.password ?? "" }),
    ...(target.credentials === undefined
      ? {}
      : { authenticator: signedBy(target.credentials, target.challenged) }),
    ...tlsOf(target.servers, target.caPem ?? ""),
  };
  mendNatsTransport();
  try {
    return await connect(options);
  } catch (err) {
    throw new InsituError("store.unavailable", `cannot connect to NATS at ${target.servers.join(", ")}`, {
      retryable: true,
      cause: err,
    });
  }
}

/** Read at each connection: another key may sign by then. */
export function signedBy(
  credentials: { readonly jwt: string; readonly seed: string },
  challenged?: (nonce: string | undefined) => void,
): Authenticator {
  const signs = jwtAuthenticator(
    () => credentials.jwt,
    () => Buffer.from(credentials.seed),
  );
  return (nonce) => {
    challenged?.(nonce);
    return signs(nonce);
  };
}

function streamConfigs(replicas: number): (Partial<StreamConfig> & { name: string })[] {
  const common = {
    storage: StorageType.File,
    num_replicas: replicas,
    duplicate_window: nanos(DUPLICATE_WINDOW_MS),
  };
  return [
    { ...common, name: STREAMS.runs, subjects: [subjects.allRuns], allow_direct: true },
    {
      ...common,
      name: STREAMS.resources,
      subjects: [subjects.resources],
      deny_delete: true,
      deny_purge: true,
    },
    {
      ...common,
      name: STREAMS.work,
      subjects: [subjects.allWork],
      retention: RetentionPolicy.Workqueue,
      discard: DiscardPolicy.New,
      max_age: nanos(WORK_MAX_AGE_MS),
      max_bytes: WORK_MAX_BYTES,
    },
    {
      ...common,
      name: STREAMS.inbox,
      subjects: [subjects.allInbox],
      discard: DiscardPolicy.New,
      max_age: nanos(INBOX_MAX_AGE_MS),
      max_bytes: INBOX_MAX_BYTES,
    },
    {
      ...common,
      name: STREAMS.logs,
      subjects: [subjects.allLogs],
      discard: DiscardPolicy.Old,
      max_age: nanos(LOGS_MAX_AGE_MS),
      max_bytes: LOGS_MAX_BYTES,
    },
    {
      ...common,
      name: STREAMS.poison,
      subjects: [subjects.allPoison],
      discard: DiscardPolicy.Old,
      max_age: nanos(POISON_MAX_AGE_MS),
      max_bytes: POISON_MAX_BYTES,
      max_msgs: POISON_MAX_MESSAGES,
    },
    {
      ...common,
      name: STREAMS.ledger,
      subjects: [subjects.allLedger],
      discard: DiscardPolicy.New,
      allow_direct: true,
      deny_delete: true,
      deny_purge: true,
    },
  ];
}

/**
 * Creates the streams that are missing. Those that exist are left as an operator has set them.
 *
 * @throws request.invalid when the cluster has fewer servers than `replicas`
 */
export async function ensureStreams(manager: JetStreamManager, replicas: number): Promise<void> {
  for (const config of streamConfigs(replicas)) {
    const { name } = config;
    try {
      await manager.streams.info(name);
    } catch (err) {
      if (errorCode(err) !== STREAM_NOT_FOUND) throw storeError(err, `stream ${name}`);
      await manager.streams.add(config).catch((thrown: unknown) => {
        if (errorCode(thrown) === NAME_IN_USE) return; // another replica was faster, with another number of copies
        throw (
          refusedReplicas(thrown, config.name, replicas) ??
          refusedRoom(thrown, config) ??
          storeError(thrown, `stream ${name}`)
        );
      });
    }
  }
}

/** What to say when NATS does not grant a stream its room; undefined when that is not the trouble. */
function refusedRoom(
  err: unknown,
  { name, max_bytes = -1 }: { name: string; max_bytes?: number },
): InsituError | undefined {
  if (errorCode(err) !== INSUFFICIENT_STORAGE) return undefined;
  return new InsituError(
    "request.invalid",
    `NATS has no room for the stream ${name}, which may take ${Math.ceil(max_bytes / 1024 ** 2)} MiB: its max_file_store, or that of the account, is given away. Raise it, give NATS a larger disk, or create the stream with a smaller max_bytes with the nats command line: one that exists is left as it is`,
    { cause: err },
  );
}

/**
 * Gives the queues that have no limit of bytes the one that new ones get: those of a release from before it.
 *
 * Only while they hold less than half of it. Servers up to 2.9 throw away what is beyond a new limit, whatever the stream
 * says of that, and what lies there was acknowledged.
 */
export async function limitQueues(manager: JetStreamManager, log: Logger): Promise<void> {
  for (const { name, max_bytes = -1, discard } of streamConfigs(1)) {
    if (discard !== DiscardPolicy.New || max_bytes <= 0) continue;
    const { config, state } = await manager.streams.info(name);
    if (config.max_bytes > 0) continue; // as an operator has set it
    if (state.bytes > max_bytes / 2) {
      log.warn(
        { stream: name, bytes: state.bytes, maxBytes: max_bytes },
        "the stream has no limit of bytes, and holds too much to be given one; the next start tries again",
      );
      continue;
    }
    try {
      await manager.streams.update(name, { ...config, max_bytes });
      log.info({ stream: name, maxBytes: max_bytes }, "the stream has a limit of bytes now");
    } catch (err) {
      if (errorCode(err) !== INSUFFICIENT_STORAGE) throw err;
      log.warn(
        { stream: name, maxBytes: max_bytes, err },
        "NATS has not so much room for the stream: it stays without a limit of bytes. Raise max_file_store of NATS",
      );
    }
  }
}

/** What to say when a stream cannot have that many replicas; undefined when that is not the trouble. */
export function refusedReplicas(err: unknown, stream: string, replicas: number): InsituError | undefined {
  const code = errorCode(err);
  if (code !== NO_SUITABLE_PEERS && code !== INSUFFICIENT_RESOURCES) return undefined;
  return new InsituError(
    "request.invalid",
    `the stream ${stream} cannot be kept on ${replicas} servers of NATS: fewer of them are in the cluster and have room. Start those that are missing, or lower --stream-replicas (INSITU_STREAM_REPLICAS)`,
    { cause: err },
  );
}

/**
 * The durable pull consumer of an environment; agents bind to it by name and never create one.
 *
 * One of another name takes its place: a work queue has one consumer a subject. What it has not seen acknowledged is
 * in the stream still, and is delivered again.
 */
export async function ensureWorkConsumer(
  manager: JetStreamManager,
  environment: string,
  consumer: string,
): Promise<void> {
  for await (const { name, config } of manager.consumers.list(STREAMS.work)) {
    if (name !== consumer && config.filter_subject === subjects.work(environment))
      await manager.consumers.delete(STREAMS.work, name);
  }
  const config: Partial<ConsumerConfig> & { durable_name: string } = {
    durable_name: consumer,
    filter_subject: subjects.work(environment),
    ack_policy: AckPolicy.Explicit,
    deliver_policy: DeliverPolicy.All,
    // An agent acknowledges as soon as its lease is in its journal; one that died before gets nothing back.
    ack_wait: nanos(30_000),
    max_deliver: -1,
    max_ack_pending: WORK_ACK_PENDING_MAX,
  };
  const { delivered } = await manager.consumers.add(STREAMS.work, config);
  const { state } = await manager.streams.info(STREAMS.work);
  if (delivered.stream_seq <= state.last_seq) return;
  // A power cut took the end of the queue and not what the consumer knows of it: it would pass over all that comes
  // until the queue is as long again.
  await manager.consumers.delete(STREAMS.work, consumer);
  await manager.consumers.add(STREAMS.work, config);
}

/** Of one small read. What a server that is lost was asked, nobody answers any more. */
export const READ_TIMEOUT_MS = 2_000;
const NO_SUITABLE_PEERS = 10_005;
const INSUFFICIENT_RESOURCES = 10_023;
const INSUFFICIENT_STORAGE = 10_047;
const NAME_IN_USE = 10_058;
/** The stream is full, or the disk of the server. */
const NOT_STORED = 10_077;
export const NO_MESSAGE_FOUND = 10_037;
export const STREAM_NOT_FOUND = 10_059;
export const WRONG_LAST_SEQUENCE = 10_071;

export function errorCode(err: unknown): number | undefined {
  return err instanceof NatsError ? err.api_error?.err_code : undefined;
}

/** What servers answer while a cluster elects a leader, starts, or has lost its majority. */
const PASSING = new Set([
  10_007, // the cluster is not assigned to this server
  10_008, // JetStream system temporarily unavailable
  10_009, // not the leader
  INSUFFICIENT_RESOURCES,
  10_039, // not enabled for the account, as a server says that is still starting
  10_076, // not enabled, likewise; or the disk is full
  NOT_STORED,
  10_118, // the stream is offline
  10_119, // the consumer is offline
  10_158, // a message of this id is on its way
  10_163, // the last sequence of the subject is not known yet
  10_167, // too many requests
]);

/** True for what the same call may survive later: time-outs, lost connections, no responders, no leader. */
export function passes(err: unknown): boolean {
  if (err instanceof InsituError) return err.retryable;
  if (!(err instanceof NatsError)) return false;
  if (err.api_error) return PASSING.has(err.api_error.err_code ?? 0);
  return err.code !== ErrorCode.MaxPayloadExceeded;
}

/** True when the stream has reached its limit, and takes more when something has left it. */
export function isFull(err: unknown): boolean {
  const cause = err instanceof InsituError ? err.cause : err;
  return errorCode(cause) === NOT_STORED && /^maximum (bytes|messages)/.test(String(descriptionOf(cause)));
}

function descriptionOf(err: unknown): string | undefined {
  return err instanceof NatsError ? err.api_error?.description : undefined;
}

/** A failure of NATS in our terms. */
export function storeError(err: unknown, what: string): InsituError {
  if (err instanceof InsituError) return err;
  if (isFull(err)) {
    const message = `${what}: the stream is full (${descriptionOf(err)}), and takes more when something has left it. See "In NATS" in docs/limits.md`;
    return new InsituError("store.unavailable", message, { retryable: true, cause: err });
  }
  const message = err instanceof Error ? err.message : String(err);
  const passing = passes(err);
  return new InsituError(passing ? "store.unavailable" : "internal", `${what}: ${message}`, {
    retryable: passing,
    cause: err,
  });
}

/**
 * The last message of the subject, which may hold wildcards, as the stream's leader has it: other servers of a
 * cluster may lag behind.
 *
 * @throws store.unavailable (retryable) when the store does not answer
 */
export async function lastMessageOf(
  connection: NatsConnection,
  stream: string,
  subject: string,
): Promise<StoredMsg | undefined> {
  try {
    const manager = await connection.jetstreamManager({ checkAPI: false, timeout: READ_TIMEOUT_MS });
    return await manager.streams.getMessage(stream, { last_by_subj: subject });
  } catch (err) {
    if (errorCode(err) === NO_MESSAGE_FOUND) return undefined;
    throw storeError(err, `last message of ${subject} in ${stream}`);
  }
}

const reconnectListeners = new WeakMap<NatsConnection, Set<() => void>>();

/**
 * Calls back after each reconnect. One reader of the connection's status serves all listeners, and ends with
 * the connection: an iterator over it cannot be stopped otherwise.
 */
export function onReconnect(connection: NatsConnection, listener: () => void): () => void {
  let listeners = reconnectListeners.get(connection);
  if (!listeners) {
    listeners = new Set();
    reconnectListeners.set(connection, listeners);
    void tellReconnects(connection, listeners);
  }
  listeners.add(listener);
  return () => listeners.delete(listener);
}

async function tellReconnects(connection: NatsConnection, listeners: ReadonlySet<() => void>): Promise<void> {
  for await (const status of connection.status()) {
    if (status.type === Events.Reconnect) for (const listener of listeners) listener();
  }
}
