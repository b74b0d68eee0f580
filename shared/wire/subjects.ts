/** Names of streams, subjects, buckets and consumers on NATS. Nothing else spells them. */

export const STREAMS = {
  runs: "RUNS",
  work: "WORK",
  logs: "LOGS",
  resources: "RESOURCES",
  inbox: "INBOX",
  /** Copies of messages that nobody could make sense of, each with the reason. */
  poison: "POISON",
  /** Leaves of the ledger: leaf `i` of the Merkle tree is the message `i + 1`. */
  ledger: "LEDGER",
} as const;
export const BUCKETS = {
  /** Canonical JSON of pipeline versions, by hexadecimal digest. */
  versions: "pipeline-versions",
  agents: "agents",
  joinTokens: "join-tokens",
  idempotency: "idempotency",
  /** Who may call the API, by the name of the token. */
  apiTokens: "api-tokens",
  /** Requests that need a second person, by the digest of the request. */
  approvals: "approvals",
  /** Who has signed in, by the hash of the secret. */
  sessions: "sessions",
  /** One entry: the link for the first administrator. */
  firstAdmin: "first-admin",
  /** Keys with which agents are let into NATS, and those that are no more. */
  natsUsers: "nats-users",
  /** One entry: who the replicas are, and which of them owns which shard. */
  cluster: "cluster",
  /** One entry: the newest checkpoint of the ledger. */
  checkpoint: "ledger-checkpoint",
} as const;

/** A stream that is there while a backup is being restored. */
export const RESTORE_MARK = "RESTORING";
/** Which replicas keep a copy of what they wrote to a NATS that does not sync, and what each has to put back there. */
export const TAIL_KEEPERS = "TAIL_KEEPERS";
export const TAIL_MARKS = "TAIL_MARKS";
/** Of a message that says nothing, and keeps a sequence. */
export const FILLER_HEADER = "Insitu-Filler";

export const SHARD_COUNT = 64;
/** Of all runs that share pools: one replica hands out the places. */
export const POOL_SHARD = 0;
/** Its owner writes the ledger. */
export const LEDGER_SHARD = 0;

/** Which of the 64 shards decides for a run: FNV-1a (32 bits) of the id, modulo 64. */
export function shardOf(runId: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < runId.length; i++) {
    hash ^= runId.charCodeAt(i);
    hash = Math.imul(hash, 0x01000193) >>> 0;
  }
  return hash % SHARD_COUNT;
}

export const subjects = {
  run: (runId: string) => `run.${shardOf(runId)}.${runId}`,
  allRuns: "run.>",
  /** Of no run: keeps a sequence. */
  runsFiller: "run.filler",
  work: (environment: string) => `work.${environment}`,
  allWork: "work.>",
  log: (runId: string, stepId: string, attempt: number) => `log.${runId}.${stepId}.${attempt}`,
  logsOfStep: (runId: string, stepId: string) => `log.${runId}.${stepId}.*`,
  logsOfRun: (runId: string) => `log.${runId}.>`,
  allLogs: "log.>",
  resources: "resource.applied",
  /** Reports that came to a replica that does not own the run's shard. */
  inbox: (shard: number) => `inbox.${shard}`,
  allInbox: "inbox.*",
  /** One subject a message: of the same one, one copy is kept. */
  poison: (source: string, name: string) => `poison.${source}.${name}`,
  allPoison: "poison.>",
  /** Leaves that were made from messages of one stream. */
  ledger: (source: string) => `ledger.${source.toLowerCase()}`,
  allLedger: "ledger.>",
  /** Between replicas, not stored: losing one is a delay. */
  replica: (id: string) => `replica.${id}`,
  allReplicas: "replicas",
  /** Asks every replica which keys of NATS it signs with. */
  natsKeys: "nats-keys",
  restoring: "restoring",
  tailKeeper: (replica: string) => `tail.keeper.${replica}`,
  allTailKeepers: "tail.keeper.*",
  tailMark: (replica: string) => `tail.mark.${replica}`,
  allTailMarks: "tail.mark.*",
} as const;

/** The durable pull consumer of an environment on the WORK stream, where NATS has no accounts; else the account's key. */
export function workConsumer(environment: string): string {
  return `env-${environment}`;
}
