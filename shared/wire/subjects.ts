/** Names of streams, subjects, buckets and consumers on NATS. Nothing else spells them. */

export const STREAMS = { runs: "RUNS", work: "WORK", logs: "LOGS", resources: "RESOURCES" } as const;
export const BUCKETS = {
  /** Canonical JSON of pipeline versions, by hexadecimal digest. */
  versions: "pipeline-versions",
  agents: "agents",
  joinTokens: "join-tokens",
  idempotency: "idempotency",
} as const;

export const SHARD_COUNT = 64;

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
  work: (environment: string) => `work.${environment}`,
  allWork: "work.>",
  log: (runId: string, stepId: string, attempt: number) => `log.${runId}.${stepId}.${attempt}`,
  logsOfStep: (runId: string, stepId: string) => `log.${runId}.${stepId}.*`,
  logsOfRun: (runId: string) => `log.${runId}.>`,
  allLogs: "log.>",
  resources: "resource.applied",
} as const;

/** The durable pull consumer of an environment on the WORK stream. */
export function workConsumer(environment: string): string {
  return `env-${environment}`;
}
