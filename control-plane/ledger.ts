/** Opens the ledger of a replica: its writer, its tree, its checkpoints. */
import { join } from "node:path";
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import { z } from "zod";
import { consistencyProof } from "../shared/provenance/merkle.ts";
import type { ReceiptTrust } from "../shared/provenance/verify-receipt.ts";
import type { Clock } from "../shared/system.ts";
import { BUCKETS, LEDGER_SHARD } from "../shared/wire/subjects.ts";
import { loadOrCreateLogKey } from "./access/log-key.ts";
import type { Closers } from "./closers.ts";
import { CheckpointService } from "./evidence/checkpoint-service.ts";
import { LedgerDesk } from "./evidence/ledger-desk.ts";
import { LedgerService } from "./evidence/ledger-service.ts";
import { reconcile } from "./evidence/reconcile-service.ts";
import type { LedgerView } from "./gateway/ports.ts";
import type { PlanSource } from "./runs/ports.ts";
import { JetStreamLedger } from "./store/jetstream-ledger.ts";
import { openKv } from "./store/kv.ts";
import { kvCheckpointStore } from "./store/kv-checkpoint-store.ts";
import { JetStreamLedgerSources } from "./store/ledger-sources.ts";
import { StoredLedgerTree } from "./store/ledger-tree.ts";

export interface Ledger {
  tree: StoredLedgerTree;
  checkpoints: CheckpointService;
  /** What auditors are answered by. */
  desk(roots: { trust: ReceiptTrust; reload(): Promise<ReceiptTrust> }): LedgerDesk;
  /** The newest checkpoint for whoever remembers one of that size. */
  extension: LedgerView;
  /** Follows the shard whose owner writes it. */
  own(shards: ReadonlyMap<number, number>): void;
  disown(shards: ReadonlySet<number>): Promise<void>;
}

export async function openLedger(
  world: { connection: NatsConnection; plans: PlanSource; clock: Clock; log: Logger; replicas: number },
  { data, secrets, trustDomain }: { data: string; secrets: string; trustDomain: string },
  closers: Closers,
): Promise<Ledger> {
  const { connection, plans, clock, log, replicas } = world;
  const store = new JetStreamLedger(connection);
  const tree = new StoredLedgerTree({ directory: join(data, "ledger-tree"), connection, clock, log });
  closers.add("ledger's tree", () => tree.close());
  await tree.start();
  const kv = await openKv(connection, {
    clock,
    log,
    replicas,
    bucket: BUCKETS.checkpoint,
    schema: z.object({ note: z.string() }),
  });
  let writes = false;
  const checkpoints = new CheckpointService({
    key: await loadOrCreateLogKey(secrets, trustDomain),
    tree,
    ledger: store,
    store: kvCheckpointStore(kv),
    clock,
    log,
    writes: () => writes,
  });
  const sources = new JetStreamLedgerSources({ connection, plans, clock, log });
  const service = new LedgerService({ store, sources, clock, log });
  closers.add("ledger", () => service.end());
  checkpoints.start();
  closers.add("ledger's checkpoints", () => checkpoints.close());
  return {
    tree,
    checkpoints,
    desk: (roots) =>
      new LedgerDesk({
        clock,
        tree,
        checkpoints,
        trust: () => roots.reload(),
        trouble: () => checkpoints.forked || service.trouble,
        async *reconcile(signal) {
          return yield* reconcile({ sources, store, trust: await roots.reload(), clock }, signal);
        },
      }),
    extension(fromSize) {
      const { newest, verifierKey } = checkpoints;
      if (!newest) return undefined;
      const { note, size } = newest;
      return {
        note,
        verifierKey,
        proof: fromSize <= size ? consistencyProof(tree.read, fromSize, size) : [],
      };
    },
    own(shards) {
      if (!shards.has(LEDGER_SHARD)) return;
      writes = true;
      service.begin();
    },
    async disown(shards) {
      if (!shards.has(LEDGER_SHARD)) return;
      writes = false;
      await service.end();
    },
  };
}
