/**
 * Whether NATS stores what it is given, as those see it who give it something.
 *
 * A server whose disk was full answers pings and no write, and to the client a write without an answer is one that came
 * too late: only that none is answered for a while tells them apart. Nothing is written to find out. Who has something
 * to store tries again and again, so a stream that nobody has failed at for a while is one that nobody knows of.
 */
import type { NatsConnection } from "nats";
import type { Clock } from "../../shared/system.ts";
import { isFull, passes } from "./jetstream.ts";

/** Longer than a cluster takes to elect leaders. */
export const FAILS_AFTER_MS = 15_000;
/** Longer than anybody waits before the next try. */
export const FORGOTTEN_AFTER_MS = 60_000;

interface Failing {
  sinceMs: number;
  lastMs: number;
  said: boolean;
}

export interface WriteHealthOptions {
  clock: Pick<Clock, "monotonicMs">;
  log: { error(fields: object, text: string): void; info(fields: object, text: string): void };
}

const watched = new WeakMap<NatsConnection, WriteHealth>();

export class WriteHealth {
  readonly #options: WriteHealthOptions;
  readonly #failing = new Map<string, Failing>();

  constructor(options: WriteHealthOptions) {
    this.#options = options;
  }

  /** Is told of each write over the connection from now on. */
  watch(connection: NatsConnection): this {
    watched.set(connection, this);
    return this;
  }

  /** Streams that have stored nothing for `FAILS_AFTER_MS`, though it was tried. */
  failing(): string[] {
    const nowMs = this.#options.clock.monotonicMs();
    return [...this.#failing]
      .filter(([, { sinceMs, lastMs }]) => lastMs - sinceMs >= FAILS_AFTER_MS && isFresh(lastMs, nowMs))
      .map(([stream]) => stream);
  }

  stored(stream: string): void {
    const was = this.#failing.get(stream);
    this.#failing.delete(stream);
    if (was?.said) this.#options.log.info({ stream }, "NATS stores again");
  }

  failed(stream: string, err: unknown): void {
    const nowMs = this.#options.clock.monotonicMs();
    const before = this.#failing.get(stream);
    const failing =
      before && isFresh(before.lastMs, nowMs) ? before : { sinceMs: nowMs, lastMs: nowMs, said: false };
    failing.lastMs = nowMs;
    this.#failing.set(stream, failing);
    if (failing.said || nowMs - failing.sinceMs < FAILS_AFTER_MS) return;
    failing.said = true;
    this.#options.log.error(
      { stream, err },
      "NATS stores nothing of this stream any more: agents keep their reports, and nothing is lost. When a disk of NATS was full, make room and start that nats-server again: see docs/runbooks/nats-disk-full.md",
    );
  }
}

function isFresh(lastMs: number, nowMs: number): boolean {
  return nowMs - lastMs <= FORGOTTEN_AFTER_MS;
}

/** The outcome of one write: nothing when it was answered, also with a conflict. */
export function noteWrite(connection: NatsConnection, stream: string, err?: unknown): void {
  const health = watched.get(connection);
  if (!health) return;
  if (err === undefined) return health.stored(stream);
  // A stream at its limit, and a message that is refused for good, were answered.
  if (isFull(err) || !passes(err)) return;
  health.failed(stream, err);
}
