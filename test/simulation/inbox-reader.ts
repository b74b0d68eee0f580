/** The inbox as one replica reads it, in the order and with the failures of `jetstream-inbox.ts`. */
import type { Inbox, InboxItem } from "../../control-plane/shards/ports.ts";
import { InsituError } from "../../shared/errors.ts";
import type { Process } from "./timeline.ts";
import type { World } from "./world.ts";

const SWEEP_MS = 5_000;

export interface InboxReaderOptions {
  world: World;
  name: string;
  process: Process;
  ask<T>(what: string, work: () => T): Promise<T>;
  accept(item: InboxItem): Promise<boolean>;
}

export class InboxReader implements Inbox {
  readonly #options: InboxReaderOptions;
  #last: Promise<void> = Promise.resolve();
  #pending = 0;

  constructor(options: InboxReaderOptions) {
    this.#options = options;
  }

  put(_shard: number, item: InboxItem): Promise<void> {
    const { world, ask } = this.#options;
    return ask("put into the inbox", () => world.inbox.put(item));
  }

  start(): void {
    const { world, name, process } = this.#options;
    const send = world.network.stream("nats", name, () => process.alive);
    const tail = (seq: number): void => {
      if (process.alive) send(() => this.#enqueue(seq));
      else world.inbox.tails.delete(tail);
    };
    world.inbox.tails.add(tail);
    process.clock.every(SWEEP_MS, () => {
      if (this.#pending === 0) this.drain().catch(() => undefined);
    });
  }

  async drain(): Promise<void> {
    const { world, ask } = this.#options;
    const seqs = await ask("read the inbox", () => [...world.inbox.items.keys()]);
    for (const seq of seqs) this.#enqueue(seq);
  }

  #enqueue(seq: number): void {
    this.#pending += 1;
    this.#last = this.#last
      .then(() => this.#handle(seq))
      .finally(() => {
        this.#pending -= 1;
      });
  }

  async #handle(seq: number): Promise<void> {
    const { world, accept, ask, name } = this.#options;
    const item = world.inbox.items.get(seq);
    if (!item) return;
    try {
      if (!(await accept(item))) return;
      await ask("remove from the inbox", () => {
        if (world.inbox.items.delete(seq) && !world.forger.made(item)) world.witness.removedFromInbox(item);
      });
    } catch (thrown) {
      world.note(() => `${name} leaves a report in the inbox: ${InsituError.from(thrown).message}`);
    }
  }
}
