/** What a backup holds of the durable state, and in which order it is read. */
import { BUCKETS, STREAMS } from "../../shared/wire/subjects.ts";

/**
 * When a stream is read, as against the run events, which are read once and are the backup's moment.
 *
 * `before`: what is moved from here into the run events and then removed. Read first, it is in one of the two, and
 * what is in both does no harm twice. `after`: what the run events refer to, so that it is never older than they are.
 * `derived`: made again from the run events. Offers are: those of a later moment would hand out grants that nobody
 * knows of. `dropped`: in no backup at all.
 */
type Turn = "before" | "moment" | "after" | "derived" | "dropped";

/** A stream or bucket that is new to the product does not compile before somebody has thought of it here. */
const STREAM_TURNS: Record<keyof typeof STREAMS, Turn> = {
  inbox: "before",
  runs: "moment",
  resources: "after",
  logs: "after",
  work: "derived",
  // For people, and nothing refers to it.
  poison: "after",
  // Leaves are made from run events and applies: those of events that the backup lacks would keep the places of others.
  ledger: "before",
};
const BUCKET_TURNS: Record<keyof typeof BUCKETS, Turn> = {
  // An answer that is kept names a run: one that the backup does not hold would be promised for nothing.
  idempotency: "before",
  versions: "after",
  agents: "after",
  natsUsers: "after",
  joinTokens: "after",
  apiTokens: "after",
  // A used one that came back unused would let its request through a second time.
  approvals: "after",
  // Nobody who signed out is signed in again by it.
  sessions: "dropped",
  firstAdmin: "after",
  // Epochs of shards that are older than those in the run events would stop the runs.
  cluster: "after",
  // It may be of a ledger that is longer than the one in the backup.
  checkpoint: "derived",
};

const TURNS: readonly (readonly [string, Turn])[] = [
  ...Object.entries(STREAM_TURNS).map(([key, turn]) => [STREAMS[key as keyof typeof STREAMS], turn] as const),
  ...Object.entries(BUCKET_TURNS).map(
    ([key, turn]) => [`KV_${BUCKETS[key as keyof typeof BUCKETS]}`, turn] as const,
  ),
];

function of(turn: Turn): string[] {
  return TURNS.filter(([, its]) => its === turn).map(([name]) => name);
}

/** Names of streams, a bucket's being `KV_<bucket>`, in the order in which a backup reads them. */
export const KEPT_STREAMS: readonly string[] = [...of("before"), ...of("moment"), ...of("after")];
/** Those and the ones that are made again: what an empty NATS has none of. */
export const ALL_STREAMS: readonly string[] = [...KEPT_STREAMS, ...of("derived"), ...of("dropped")];
