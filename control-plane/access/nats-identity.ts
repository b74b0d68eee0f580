/** Lets agents into their environment's account on NATS, and out again. */
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { isPublicNkey } from "../../shared/wire/nkey.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import type { NatsAccounts } from "./nats-accounts.ts";
import type { NatsOperator } from "./nats-operator.ts";
import { type Grant, grant, type NatsUsers, revocationsOf, revoke } from "./nats-users.ts";

/** Where a revocation is told at once. */
export const VALID_FOR_S = 24 * 3_600;
/** Where it is not: so long an agent that was put out may go on pulling. It is renewed while it is at the gateway. */
export const VALID_UNTOLD_FOR_S = 15 * 60;
const WATCH_RETRY_MS = 1_000;

export interface NatsPeer {
  environment: string;
  name: string;
  spkiSha256: string;
  /** Of its certificate. */
  notAfterMs: number;
}

export interface NatsPeerAccess {
  userJwt: string;
  /** Wall time. */
  renewAtMs: number;
  /** False once another key signs. */
  isCurrent(): boolean;
}

/** What the gateway needs: a user of NATS for an agent's own key. */
export interface NatsIdentity {
  /** @throws request.invalid for a key that is none; auth.denied for an identity that was revoked or replaced meanwhile */
  accessFor(peer: NatsPeer, userKey: string): Promise<NatsPeerAccess>;
  /** Cuts what the agent has open, for good; `keep` names the keys of it that stay. Safe twice. */
  revoke(agent: { environment: string; name: string }, keep: readonly string[]): Promise<void>;
}

export interface AccountTelling {
  operator: NatsOperator;
  /** Tells all NATS servers of an account. Resolves when one of them has stored it. */
  push(accountJwt: string): Promise<void>;
}

export interface NatsIdentityOptions {
  accounts: NatsAccounts;
  /** Undefined where accounts are signed by somebody else, who is not told of revocations. */
  telling: AccountTelling | undefined;
  /** How long an agent can pull without a word from the gateway, if its certificate lasts as long. */
  validForS: number;
  users: KvStore<NatsUsers>;
  /** SPKI of the identities with which the agent is let in now. */
  keysOf(agent: { environment: string; name: string }): readonly string[];
  clock: Clock;
  log: Logger;
}

export class NatsIdentityService implements NatsIdentity {
  readonly #options: NatsIdentityOptions;
  readonly #environments = new Set<string>();
  /** Revocations as they were told last, by environment. */
  readonly #told = new Map<string, string>();
  readonly #stop = new AbortController();
  #pushing: Promise<void> = Promise.resolve();
  #following: Promise<void> = Promise.resolve();

  constructor(options: NatsIdentityOptions) {
    this.#options = options;
  }

  /** Follows what other replicas revoke: one that starts may have told the servers an older state since. */
  start(): void {
    this.#following = this.#follow();
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    await this.#following;
    await this.#pushing.catch(() => undefined);
  }

  /** Resolves when NATS knows the accounts of all of them. */
  async setEnvironments(environments: readonly string[]): Promise<void> {
    const fresh = environments.filter((environment) => !this.#environments.has(environment));
    for (const environment of fresh) {
      // Also told of by whoever tells all while this is under way, perhaps with other keys by then.
      this.#environments.add(environment);
      await this.#push(environment).catch((err: unknown) => {
        this.#environments.delete(environment);
        throw err;
      });
    }
  }

  /** After a connection was lost: a server may have come without its directory of accounts. And after keys have changed. */
  async pushAll(): Promise<void> {
    await this.#pushCentral();
    for (const environment of this.#environments) await this.#push(environment);
  }

  async accessFor(peer: NatsPeer, userKey: string): Promise<NatsPeerAccess> {
    if (!isPublicNkey("user", userKey))
      throw new InsituError("request.invalid", "the agent's NATS key is not the public nkey of a user");
    const { accounts, users, clock, keysOf, validForS } = this.#options;
    const { environment, name, spkiSha256, notAfterMs } = peer;
    const request: Grant = {
      environment,
      name,
      userKey,
      spkiSha256,
      nowS: Math.floor(clock.wallMs() / 1_000),
      validForS,
      notAfterS: Math.floor(notAfterMs / 1_000),
      signedBy: accounts.accountGeneration,
    };
    const denied = new InsituError(
      "auth.denied",
      `the agent ${environment}/${name} has not this key any more`,
    );
    const { value } = await changeKv(users, keyOf(peer), (current) => {
      // An older identity must not take the place of the one that came after it.
      if (!keysOf(peer).includes(spkiSha256)) throw denied;
      const { next } = grant(current, request);
      return next === current ? undefined : next;
    });
    // Revoked while it was written: whoever did it may have looked for something to void before that.
    const keys = keysOf(peer);
    if (!keys.includes(spkiSha256)) {
      await this.revoke(peer, keys);
      throw denied;
    }
    const { user } = grant(value, request);
    return {
      userJwt: accounts.agentJwt({ environment, name, ...user }),
      isCurrent: () => accounts.accountGeneration === user.signedBy,
      renewAtMs: Math.floor((user.issuedAtS + (user.expiresAtS - user.issuedAtS) * 0.6) * 1_000),
    };
  }

  async revoke(agent: { environment: string; name: string }, keep: readonly string[]): Promise<void> {
    const { users, clock } = this.#options;
    let changed = false;
    await changeKv(users, keyOf(agent), (current) => {
      const next = current && revoke(current, keep, Math.floor(clock.wallMs() / 1_000));
      changed = next !== undefined;
      return next;
    });
    if (changed) await this.#push(agent.environment);
  }

  /** They are in the configuration of the servers, as they were before any key has changed. */
  #pushCentral(): Promise<void> {
    return this.#inTurn(async () => {
      const { telling } = this.#options;
      if (telling === undefined || telling.operator.isFirst) return;
      const { operator, push } = telling;
      for (const jwt of Object.values(operator.centralAccounts)) await push(jwt);
    });
  }

  /** One after another, each with what is stored then: a later one never says less. */
  #push(environment: string): Promise<void> {
    return this.#inTurn(async () => {
      const { telling, users, clock } = this.#options;
      if (telling === undefined) return;
      const { operator, push } = telling;
      const entries = await users.list();
      const records = entries
        .map(({ value }) => value)
        .filter((record) => record.environment === environment);
      const revocations = revocationsOf(records);
      await push(operator.environmentJwt(environment, revocations, Math.floor(clock.wallMs() / 1_000)));
      this.#told.set(environment, JSON.stringify(revocations));
    });
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const pushed = this.#pushing.then(work);
    this.#pushing = pushed.catch(() => undefined); // the caller has the error; the next in line must still run
    return pushed;
  }

  async #follow(): Promise<void> {
    const { users, clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        for await (const change of users.watch(signal)) {
          if (change.kind !== "put") continue;
          const { environment } = change.value;
          const told = JSON.parse(this.#told.get(environment) ?? "{}") as Record<string, number>;
          const isNews = Object.entries(revocationsOf([change.value])).some(
            ([key, atS]) => told[key] !== atS,
          );
          if (isNews) await this.#push(environment);
        }
      } catch (err) {
        if (!signal.aborted) log.warn({ err }, "watch of the NATS users was lost");
      }
      await clock.sleep(WATCH_RETRY_MS, signal).catch(() => undefined); // aborted: the loop sees it
    }
  }
}

function keyOf({ environment, name }: { environment: string; name: string }): string {
  return `${environment}.${name}`;
}
