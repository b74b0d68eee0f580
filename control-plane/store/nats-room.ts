/**
 * Watches the disk of the nats-server that we start, and starts it again once a full one has room.
 *
 * A server whose write has failed answers nothing more for that stream, also when there is room again: 2.15 says so in
 * its log; 2.9 says nothing, answers for no stream any more, and does not even end when it is asked to. Started again it
 * reads what is on the disk, and goes on from there.
 */
import { statfs } from "node:fs/promises";
import type { Clock } from "../../shared/system.ts";
import type { NatsServer } from "./nats-server.ts";
import { type Look, look, ROOM_AT_START } from "./room.ts";

const LOOK_MS = 1_000;
const WRITE_FAILED = /no space left on device|disk quota exceeded/i;

export interface NatsRoomOptions {
  /** One that `keepNatsServerRunning` starts again when it ends. */
  server: Pick<NatsServer, "recycle" | "onLine">;
  /** Where it keeps its streams. */
  directory: string;
  clock: Clock;
  log: {
    error(fields: object, text: string): void;
    warn(fields: object, text: string): void;
  };
}

export class NatsRoom implements AsyncDisposable {
  readonly #options: NatsRoomOptions;
  readonly #stop = new AbortController();
  #room = ROOM_AT_START;
  #writeFailed = false;
  #watching: Promise<void> | undefined;

  constructor(options: NatsRoomOptions) {
    this.#options = options;
  }

  /** False while the disk is full: nothing is acknowledged then. */
  get hasRoom(): boolean {
    return !this.#room.full;
  }

  start(): void {
    this.#watching ??= this.#watch();
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#watching;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #watch(): Promise<void> {
    const { clock, log, server, directory } = this.#options;
    const { signal } = this.#stop;
    const off = server.onLine((line) => {
      if (WRITE_FAILED.test(line)) this.#writeFailed = true;
    });
    while (!signal.aborted) {
      try {
        await this.#look();
      } catch (err) {
        log.warn({ directory, err }, "cannot see how much room the disk of nats-server has");
      }
      await clock.sleep(LOOK_MS, signal).catch(() => undefined); // closed, which the loop sees
    }
    off();
  }

  async #look(): Promise<void> {
    const { clock, log, server, directory } = this.#options;
    const seen: Look = {
      ...(await spaceOf(directory)),
      writeFailed: this.#writeFailed,
      nowMs: clock.monotonicMs(),
    };
    this.#writeFailed = false;
    const { room, effect } = look(this.#room, seen);
    this.#room = room;
    const { freeBytes } = seen;
    if (effect === "say full")
      log.error(
        { directory, freeBytes },
        "the disk of nats-server is full: nothing is acknowledged until there is room; nothing that was is lost. See docs/runbooks/nats-disk-full.md",
      );
    if (effect !== "start again") return;
    log.warn({ directory, freeBytes }, "the disk of nats-server has room again; starting it again");
    await server.recycle();
    this.#writeFailed = false; // what the old one said
  }
}

async function spaceOf(directory: string): Promise<Pick<Look, "freeBytes" | "inodesLeft">> {
  const { bavail, bsize, files, ffree } = await statfs(directory);
  // File systems that make inodes as they need them say 0 of 0.
  return { freeBytes: bavail * bsize, inodesLeft: files === 0 || ffree > 0 };
}
