/**
 * The replicas that keep a tail copy, and how they come to terms after a restart of NATS: each says in a mark which
 * sequence it has to put back next, and nobody goes on before all have put back theirs.
 *
 * Marks are kept in memory alone: they are gone with the server that they speak of.
 */
import { type NatsConnection, StorageType } from "nats";
import type { Logger } from "pino";
import { z } from "zod";
import type { Clock } from "../../../shared/system.ts";
import { subjects, TAIL_KEEPERS, TAIL_MARKS } from "../../../shared/wire/subjects.ts";
import { readToEnd } from "../stream-reader.ts";

/**
 * How long the others may take to come back, or to put back the next of theirs: their hosts may start with the one of
 * NATS. Then we go on without.
 */
export const PEERS_MAX_MS = 60_000;
/** A replica that was heard of so much earlier than the last has nothing left that could be missing. */
const RELEVANT_MS = 20 * 60_000;
const POLL_MS = 50;

const Mark = z.object({
  server: z.string(),
  /** Of each stream: the lowest sequence that is still to be put back. */
  next: z.record(z.string(), z.int()),
  done: z.boolean(),
});
type Mark = z.infer<typeof Mark>;

export class Keepers {
  readonly #connection: NatsConnection;
  readonly #me: string;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #peersMaxMs: number;
  #giveUpAtMs: number;
  /** What the others said last. */
  #said = "";
  readonly #signal: AbortSignal;
  readonly #next = new Map<string, number>();
  #others: string[] = [];
  #told = false;

  constructor(options: {
    connection: NatsConnection;
    replicaId: string;
    clock: Clock;
    log: Logger;
    peersMaxMs?: number;
    signal: AbortSignal;
  }) {
    this.#connection = options.connection;
    this.#me = options.replicaId;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#signal = options.signal;
    this.#peersMaxMs = options.peersMaxMs ?? PEERS_MAX_MS;
    this.#giveUpAtMs = options.clock.monotonicMs() + this.#peersMaxMs;
  }

  /** After the stream of keepers has been put back. */
  async begin(next: ReadonlyMap<string, number>): Promise<void> {
    const manager = await this.#connection.jetstreamManager({ checkAPI: false });
    await manager.streams.add({
      name: TAIL_MARKS,
      subjects: [subjects.allTailMarks],
      storage: StorageType.Memory,
      max_msgs_per_subject: 1,
    });
    this.#others = (await keepersOf(this.#connection)).filter((keeper) => keeper !== this.#me);
    for (const [stream, seq] of next) this.#next.set(stream, seq);
    await this.#tell(false);
  }

  /** Resolves when nobody else has to put back a lower sequence of the stream, or those who may have stayed away. */
  async untilLowest(stream: string, seq: number): Promise<void> {
    this.#next.set(stream, seq);
    if (this.#others.length > 0) await this.#tell(false);
    await this.#until("its place", ({ done, next }) => done || (next[stream] ?? Infinity) > seq);
  }

  async passed(stream: string): Promise<void> {
    if (this.#next.delete(stream) && this.#others.length > 0) await this.#tell(false);
  }

  /** All of ours is there again. Resolves when that of the others is too, or they stayed away. */
  async finish(): Promise<void> {
    await this.#tell(true);
    await this.#until("the end", ({ done }) => done);
  }

  async #until(what: string, holds: (mark: Mark) => boolean): Promise<void> {
    while (this.#others.length > 0) {
      const marks = await this.#marks();
      const missing = this.#others.filter((other) => {
        const mark = marks.get(other);
        return !mark || !holds(mark);
      });
      if (missing.length === 0) return;
      const said = JSON.stringify(missing.map((other) => marks.get(other)));
      if (said !== this.#said) this.#giveUpAtMs = this.#clock.monotonicMs() + this.#peersMaxMs;
      this.#said = said;
      if (this.#clock.monotonicMs() >= this.#giveUpAtMs) {
        this.#log.error(
          { replicas: missing, what },
          "other replicas have not put back what NATS may have lost of theirs; going on without them. They say what was lost when they come back",
        );
        this.#others = this.#others.filter((other) => !missing.includes(other));
        return;
      }
      if (!this.#told) this.#log.info({ replicas: missing }, "waiting for what other replicas put back");
      this.#told = true;
      await this.#clock.sleep(POLL_MS, this.#signal);
    }
  }

  async #tell(done: boolean): Promise<void> {
    const mark: Mark = { server: this.#server, next: Object.fromEntries(this.#next), done };
    await this.#connection.jetstream().publish(subjects.tailMark(this.#me), JSON.stringify(mark));
  }

  async #marks(): Promise<Map<string, Mark>> {
    const found = new Map<string, Mark>();
    for await (const { subject, data } of readToEnd({
      connection: this.#connection,
      stream: TAIL_MARKS,
      fromSeq: 1,
    })) {
      const mark = Mark.parse(JSON.parse(Buffer.from(data).toString("utf8")));
      if (mark.server === this.#server) found.set(subject.slice(subjects.tailMark("").length), mark);
    }
    return found;
  }

  get #server(): string {
    return this.#connection.info!.server_id;
  }
}

/** Makes the stream in which each says from time to time that it is there. */
export async function ensureKeepers(connection: NatsConnection): Promise<void> {
  const manager = await connection.jetstreamManager({ checkAPI: false });
  await manager.streams.add({
    name: TAIL_KEEPERS,
    subjects: [subjects.allTailKeepers],
    storage: StorageType.File,
    max_msgs_per_subject: 1,
  });
}

async function keepersOf(connection: NatsConnection): Promise<string[]> {
  const heard: { id: string; atMs: number }[] = [];
  const all = { connection, stream: TAIL_KEEPERS, fromSeq: 1 };
  for await (const { subject, storedAtMs } of readToEnd(all))
    heard.push({ id: subject.slice(subjects.tailKeeper("").length), atMs: storedAtMs });
  // Compared with each other, by the clock of the server: how long all were away says nothing.
  const newestMs = Math.max(...heard.map(({ atMs }) => atMs));
  return heard.filter(({ atMs }) => newestMs - atMs <= RELEVANT_MS).map(({ id }) => id);
}
