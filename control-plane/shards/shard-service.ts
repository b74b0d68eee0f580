/** Keeps this replica's place among the others: signs of life, claims, hand-overs. */
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { ServerView } from "../api/schemas.ts";
import type { ClusterStore, ShardView } from "./ports.ts";
import {
  type ClusterRecord,
  emptyRecord,
  excess,
  farewell,
  handOver,
  Liveness,
  type Member,
  ownedBy,
  signOfLife,
} from "./shard-book.ts";

/** Three missed ones and the claim fit in the five seconds that a failover may take. */
const BEAT_MS = 700;
const WRITE_ROUNDS = 20;

export interface ShardServiceOptions {
  store: ClusterStore;
  clock: Clock;
  log: Logger;
  /** What this replica tells the others of itself. */
  me: Omit<Member, "beat">;
  fingerprint: string;
  /** Decide for these shards from now on. Resolves when it does. `epochFloor`: of the last restore, 0 for none. */
  own(epochs: ReadonlyMap<number, number>, epochFloor: number): Promise<void>;
  /** Decide for them no more. Resolves when nothing of theirs is on its way to the stream. */
  disown(shards: ReadonlySet<number>): Promise<void>;
  /** Tells the other replicas that the record has changed. */
  announce(): void;
}

export class ShardService implements ShardView {
  readonly #options: ShardServiceOptions;
  readonly #liveness = new Liveness();
  readonly #stop = new AbortController();
  #record: ClusterRecord;
  #held = new Map<number, number>();
  #beat = 0;
  #running: Promise<void> = Promise.resolve();
  #wake = new AbortController();
  #poked = false;

  constructor(options: ShardServiceOptions) {
    this.#options = options;
    this.#record = emptyRecord(options.fingerprint);
  }

  get replicaId(): string {
    return this.#options.me.id;
  }

  get size(): number {
    return Math.max(1, this.#record.members.filter(({ id }) => this.#isAlive(id)).length);
  }

  /** True when every shard has an owner that is alive. */
  get settled(): boolean {
    return this.#record.shards.every(({ owner }) => owner !== null && this.#isAlive(owner));
  }

  ownerOf(shard: number): string | undefined {
    return this.#record.shards[shard]?.owner ?? undefined;
  }

  /** Whether the record, read after the call, says that the shard is ours under that epoch. */
  async confirm(shard: number, epoch: number): Promise<boolean> {
    const current = await this.#options.store.read();
    return current !== undefined && ownedBy(current.record, this.#options.me).get(shard) === epoch;
  }

  /** Gateways of the living replicas, ours first: where agents turn to when this one has gone. */
  gateways(): string[] {
    const { me } = this.#options;
    const others = this.#record.members.filter(({ id }) => id !== me.id && this.#isAlive(id));
    return [me.gateway, ...others.map(({ gateway }) => gateway)].filter((address) => address !== "");
  }

  list(): ServerView[] {
    return this.#record.members.map(({ id, url, gateway, software, startedAtMs }) => ({
      id,
      url,
      gateway,
      software,
      startedAtMs,
      alive: this.#isAlive(id),
      shards: this.#record.shards.flatMap(({ owner }, shard) => (owner === id ? [shard] : [])),
    }));
  }

  /** Resolves after the first claim: alone, everything is ours then. @throws conflict for other secrets */
  async start(): Promise<void> {
    await this.#round();
    this.#running = this.#run();
  }

  /** Gives everything up to the others. */
  async close(): Promise<void> {
    this.#stop.abort(new InsituError("unavailable", "the server stops"));
    this.#wake.abort();
    await this.#running;
    await this.#options.disown(new Set(this.#held.keys()));
    this.#held.clear();
    await this.#change((record) => farewell(record, this.#options.me)).catch((err: unknown) => {
      this.#options.log.warn({ err }, "the shards could not be handed over; the others will notice");
    });
    this.#options.announce();
  }

  /** Another replica says that the record has changed. */
  poke(): void {
    this.#poked = true;
    this.#wake.abort();
  }

  async #run(): Promise<void> {
    const { clock, log } = this.#options;
    while (!this.#stop.signal.aborted) {
      if (!this.#poked) {
        this.#wake = new AbortController();
        await clock.sleep(BEAT_MS, this.#wake.signal).catch(() => undefined);
      }
      if (this.#stop.signal.aborted) return;
      const poked = this.#poked;
      this.#poked = false;
      try {
        await this.#round();
        // A round out of turn says nothing of the time that the others had for theirs.
        if (!poked) this.#liveness.advance();
      } catch (err) {
        log.warn({ err }, "shards: the record could not be brought up to date; trying again");
      }
    }
  }

  async #round(): Promise<void> {
    const { me, announce, log } = this.#options;
    const written = await this.#change((record) => {
      this.#liveness.observe(record);
      return signOfLife(record, this.#member(), this.#liveness);
    });
    await this.#follow(written);
    const given = excess(written, me, this.#liveness);
    if (given.size === 0) return;
    const shards = new Set(given.keys());
    await this.#options.disown(shards);
    for (const shard of shards) this.#held.delete(shard);
    await this.#follow(await this.#change((record) => handOver(record, me, given)));
    log.info({ shards: shards.size }, "shards handed over");
    announce();
  }

  /** Brings what is decided here in line with the record. */
  async #follow(record: ClusterRecord): Promise<void> {
    const { me, log } = this.#options;
    this.#record = record;
    const owned = ownedBy(record, me);
    const lost = new Set(
      [...this.#held.keys()].filter((shard) => owned.get(shard) !== this.#held.get(shard)),
    );
    if (lost.size > 0) {
      log.warn({ shards: lost.size }, "shards lost to another replica");
      await this.#options.disown(lost);
      for (const shard of lost) this.#held.delete(shard);
    }
    const gained = new Map([...owned].filter(([shard]) => !this.#held.has(shard)));
    if (gained.size === 0) return;
    try {
      await this.#options.own(gained, record.epochFloor ?? 0);
    } catch (err) {
      // Half owned would be forgotten here and decided for there, also after another replica has taken over.
      await this.#options.disown(new Set(gained.keys()));
      throw err;
    }
    for (const [shard, epoch] of gained) this.#held.set(shard, epoch);
    log.info({ gained: gained.size, owned: this.#held.size }, "shards taken over");
  }

  async #change(decide: (record: ClusterRecord) => ClusterRecord): Promise<ClusterRecord> {
    const { store, fingerprint } = this.#options;
    for (let round = 1; ; round++) {
      const current = await store.read();
      if (current && current.record.fingerprint !== fingerprint) throw otherSecrets();
      const next = decide(current?.record ?? emptyRecord(fingerprint));
      try {
        await store.write(next, current?.revision);
        return next;
      } catch (err) {
        if (!(err instanceof InsituError) || err.code !== "conflict" || round >= WRITE_ROUNDS) throw err;
      }
    }
  }

  #member(): Member {
    this.#beat += 1;
    return { ...this.#options.me, beat: this.#beat };
  }

  #isAlive(id: string): boolean {
    return id === this.#options.me.id || this.#liveness.isAlive(id);
  }
}

function otherSecrets(): InsituError {
  return new InsituError(
    "conflict",
    "the replicas that use this NATS have another CA or another key for offers: give this one their directory (--secrets DIR), or another NATS",
  );
}
