/** Takes over what `insitu nats rotate` writes, while the replica runs. */
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { NatsOperator } from "./nats-operator.ts";

const LOOK_EVERY_MS = 2_000;

export interface NatsKeyFollowerOptions {
  operator: NatsOperator;
  /** The keys as they lie there now. */
  load(): Promise<NatsOperator | undefined>;
  /** Tells NATS of all accounts. */
  tell(): Promise<void>;
  clock: Clock;
  log: Logger;
}

/** What this replica says when it is asked, so that no step is taken before all are ready for it. */
export interface NatsKeyState {
  /** Of the keys that it signs with. */
  digest: string;
  /** NATS was told of the accounts as these keys sign them. */
  told: boolean;
}

export class NatsKeyFollower {
  readonly #options: NatsKeyFollowerOptions;
  readonly #stop = new AbortController();
  #told: string | undefined;
  #following: Promise<void> = Promise.resolve();

  constructor(options: NatsKeyFollowerOptions) {
    this.#options = options;
  }

  get state(): NatsKeyState {
    const { digest } = this.#options.operator;
    return { digest, told: this.#told === digest };
  }

  start(): void {
    this.#following = this.#follow();
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    await this.#following;
  }

  async #follow(): Promise<void> {
    const { clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        await this.#look();
      } catch (err) {
        // With the keys of before it goes on as it did, and no step of a rotation is taken until it has these.
        if (!signal.aborted) log.error({ err }, "keys of NATS not taken over yet");
      }
      await clock.sleep(LOOK_EVERY_MS, signal).catch(() => undefined); // aborted: the loop sees it
    }
  }

  async #look(): Promise<void> {
    const { operator, load, tell, log } = this.#options;
    const found = await load();
    if (found === undefined) throw new InsituError("internal", "the keys of NATS are gone from the secrets");
    if (found.digest !== operator.digest) {
      operator.adopt(found.book);
      const { operator: ofOperator, accounts } = found.book;
      log.info({ operatorKey: ofOperator.signs, accountKey: accounts.signs }, "keys of NATS taken over");
    }
    const { digest } = operator;
    if (this.#told === digest) return;
    await tell();
    this.#told = digest;
  }
}
