/**
 * Who the replicas are, and which of them decides for which shard. One record, changed by compare-and-set; no
 * I/O and no clock here.
 *
 * A replica is taken for dead when it stays silent over several of the observer's own successful writes: while
 * the store answers nobody, nobody dies. Being wrong costs a move: appends are fenced by the shard's epoch.
 */
import { z } from "zod";
import { SHARD_COUNT } from "../../shared/wire/subjects.ts";

export const Member = z.object({
  /** Stays over restarts on the same data directory. */
  id: z.string(),
  /** A new one for each process. */
  instance: z.string(),
  /** Grows with each sign of life. */
  beat: z.int(),
  url: z.string(),
  gateway: z.string(),
  software: z.string(),
  startedAtMs: z.int(),
});
export type Member = z.infer<typeof Member>;

const Shard = z.object({ owner: z.string().nullable(), instance: z.string().nullable(), epoch: z.int() });

/** Bucket `cluster`, key `shards`. */
export const ClusterRecord = z.object({
  v: z.literal(1),
  /** Digest of what all replicas must share: the CA, and the key that signs offers. */
  fingerprint: z.string(),
  members: z.array(Member),
  /** By shard, from 0. */
  shards: z.array(Shard).length(SHARD_COUNT),
  /** After a restore: grants of runs that were in flight then have epochs above this one. */
  epochFloor: z
    .int()
    .min(0)
    .max(2 ** 32 - 1)
    .optional(),
});
export type ClusterRecord = z.infer<typeof ClusterRecord>;

/** Silent for so many of the observer's own writes: dead. */
const MISSED_MAX = 3;
/** Silent for so many, and forgotten: off the list of servers. */
const FORGOTTEN_AFTER = 600;

export function emptyRecord(fingerprint: string): ClusterRecord {
  const shards = Array.from({ length: SHARD_COUNT }, () => ({ owner: null, instance: null, epoch: 0 }));
  return { v: 1, fingerprint, members: [], shards };
}

/** What one replica knows of the others' signs of life. */
export class Liveness {
  readonly #seen = new Map<string, { sign: string; round: number; proven: boolean }>();
  #round = 0;
  #first = true;

  /** A write of our own has succeeded: time goes on. */
  advance(): void {
    this.#round += 1;
  }

  observe(record: ClusterRecord): void {
    for (const { id, instance, beat } of record.members) {
      const sign = `${instance}/${beat}`;
      if (this.#seen.get(id)?.sign !== sign)
        this.#seen.set(id, { sign, round: this.#round, proven: !this.#first });
    }
    this.#first = false;
  }

  /** Alive by what we saw ourselves: a record that we found may be of one that died long ago. */
  isProven(id: string): boolean {
    return this.isAlive(id) && this.#seen.get(id)?.proven === true;
  }

  isAlive(id: string): boolean {
    return this.#silence(id) < MISSED_MAX;
  }

  isForgotten(id: string): boolean {
    return this.#silence(id) >= FORGOTTEN_AFTER;
  }

  #silence(id: string): number {
    const seen = this.#seen.get(id);
    return seen === undefined ? Number.POSITIVE_INFINITY : this.#round - seen.round;
  }
}

/** Shards of one process, with the epochs under which it owns them. */
export function ownedBy(record: ClusterRecord, me: Pick<Member, "id" | "instance">): Map<number, number> {
  const owned = new Map<number, number>();
  record.shards.forEach(({ owner, instance, epoch }, shard) => {
    if (owner === me.id && instance === me.instance) owned.set(shard, epoch);
  });
  return owned;
}

/**
 * The record with our sign of life, and with the orphans that are our share: shards without an owner, of a dead
 * one, or of an earlier process of ours. Each claim is a new epoch.
 */
export function signOfLife(record: ClusterRecord, me: Member, liveness: Liveness): ClusterRecord {
  const others = record.members.filter(
    ({ id, instance }) => id !== me.id && !(liveness.isForgotten(id) && !owns(record, { id, instance })),
  );
  const members = [...others, me].sort((a, b) => (a.id < b.id ? -1 : 1));
  const alive = members.filter(({ id }) => id === me.id || liveness.isAlive(id)).map(({ id }) => id);
  let room = shareOf(me.id, alive) - record.shards.filter(({ owner }) => owner === me.id).length;
  const shards = record.shards.map((shard) => {
    const { owner, instance, epoch } = shard;
    const claimed = { owner: me.id, instance: me.instance, epoch: epoch + 1 };
    // What an earlier process of ours had goes on at once, also when it is more than a share.
    if (owner === me.id) return instance === me.instance ? shard : claimed;
    if ((owner !== null && alive.includes(owner)) || room <= 0) return shard;
    room -= 1;
    return claimed;
  });
  return { ...record, members, shards };
}

/** Shards that we own beyond our share, and who is to have them: living replicas that own less than theirs. */
export function excess(
  record: ClusterRecord,
  me: Pick<Member, "id" | "instance">,
  liveness: Liveness,
): Map<number, Member> {
  const alive = record.members.filter(({ id }) => id === me.id || liveness.isProven(id));
  const ids = alive.map(({ id }) => id);
  const mine = [...ownedBy(record, me).keys()];
  const given = new Map<number, Member>();
  let spare = mine.length - shareOf(me.id, ids);
  for (const member of alive) {
    if (member.id === me.id) continue;
    let wants = shareOf(member.id, ids) - ownedBy(record, member).size;
    for (; wants > 0 && spare > 0; wants--, spare--) given.set(mine.pop()!, member);
  }
  return given;
}

/** The record after a hand-over. What is not ours any more stays as it is. */
export function handOver(
  record: ClusterRecord,
  me: Pick<Member, "id" | "instance">,
  given: ReadonlyMap<number, Pick<Member, "id" | "instance"> | null>,
): ClusterRecord {
  const shards = record.shards.map((shard, index) => {
    const to = given.get(index);
    if (to === undefined || shard.owner !== me.id || shard.instance !== me.instance) return shard;
    return { owner: to?.id ?? null, instance: to?.instance ?? null, epoch: shard.epoch + 1 };
  });
  return { ...record, shards };
}

/** The record without us, our shards free for the others. */
export function farewell(record: ClusterRecord, me: Pick<Member, "id" | "instance">): ClusterRecord {
  const given = new Map([...ownedBy(record, me).keys()].map((shard) => [shard, null]));
  const left = handOver(record, me, given);
  return {
    ...left,
    members: left.members.filter(({ id, instance }) => id !== me.id || instance !== me.instance),
  };
}

/**
 * The record as a restore leaves it: nobody is there, every shard is free, under the epoch that it had.
 *
 * What was granted between the backup and its restore is unknown, and agents may still report it. So that no later
 * grant has the epoch of one of those, they begin above the seconds of the restore: a step is granted less often
 * than once a second. `atMs` undefined: nothing was granted in between.
 */
export function restored(record: ClusterRecord, atMs: number | undefined): ClusterRecord {
  const shards = record.shards.map(({ epoch }) => ({ owner: null, instance: null, epoch }));
  const freed = { ...record, members: [], shards };
  if (atMs === undefined) return freed;
  return { ...freed, epochFloor: Math.max(Math.floor(atMs / 1_000), (record.epochFloor ?? 0) + 1) };
}

/** Equal shares; the first by name have one more when it does not come out even. */
function shareOf(id: string, alive: readonly string[]): number {
  const position = [...alive].sort().indexOf(id);
  return Math.floor(SHARD_COUNT / alive.length) + (position < SHARD_COUNT % alive.length ? 1 : 0);
}

function owns(record: ClusterRecord, who: Pick<Member, "id" | "instance">): boolean {
  return record.shards.some(({ owner }) => owner === who.id);
}
