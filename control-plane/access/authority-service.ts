/**
 * Changes which issuers there are, and follows what other replicas change.
 *
 * The record in the store is changed by compare-and-set, and every replica does what it says as soon as it hears of it. Keys
 * and certificates go another way: all replicas are given the same directory of secrets.
 */
import type { Logger } from "pino";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { AuthorityView } from "../api/schemas.ts";
import type { AuthorityCommands } from "../api/services.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import type { Authority } from "./authority.ts";
import {
  type AgentTrust,
  type AuthorityRecord,
  activate,
  add,
  type Deed,
  IssuerId,
  retire,
  serving,
  waiting,
} from "./authority-book.ts";
import { readIssuerChain, tryIssuer } from "./authority-chain.ts";
import { type AuthorityFiles, type IssuerFiles, issuerId, pinOf } from "./authority-files.ts";
import { createIssuerKey, createRoot, openIssuer, requestForIssuer } from "./pki.ts";

/** Bucket `agents`, key `authority-replica.<id>`: which issuers' keys a replica has. */
export const ReplicaKeys = z.object({ v: z.literal(1), held: z.array(IssuerId).max(64) });
export type ReplicaKeys = z.infer<typeof ReplicaKeys>;

export const AUTHORITY_PREFIX = "authority.";
export const REPLICA_KEYS_PREFIX = "authority-replica.";
const KEY = "issuers";
const WATCH_RETRY_MS = 1_000;
const SHOWN_MAX = 20;

export interface AuthorityServiceOptions {
  kv: KvStore<AuthorityRecord>;
  replicaKeys: KvStore<ReplicaKeys>;
  authority: Authority;
  files: AuthorityFiles;
  clock: Clock;
  log: Logger;
  replicaId: string;
  /** Beside localhost. */
  serverNames: { dns: string[]; ips: string[] };
  /** Ids of the living ones, also this one. */
  replicas(): string[];
  /** That are enrolled and not revoked. */
  agents(): AgentTrust[];
}

export class AuthorityService implements AuthorityCommands {
  readonly #options: AuthorityServiceOptions;
  readonly #stop = new AbortController();
  #following: Promise<void> = Promise.resolve();
  /** Changes are done one after the other. */
  #applying: Promise<unknown> = Promise.resolve();
  /** In the store of what is done. */
  #revision = 0;

  constructor(options: AuthorityServiceOptions) {
    this.#options = options;
  }

  /**
   * Resolves when this replica does what the record says.
   * @throws InsituError `internal` when keys are missing that it cannot work without
   */
  async start(): Promise<void> {
    const { kv, authority } = this.#options;
    const stored = await kv.get(KEY);
    if (stored) {
      await this.#apply(stored.value, stored.revision);
      const needed = [serving(stored.value).id, stored.value.active];
      const missing = needed.find((id) => !authority.held.includes(id));
      if (missing !== undefined) {
        throw new InsituError(
          "internal",
          `the secrets of this replica hold no key and certificates of the issuer ${missing}, which the others use: give it their secrets directory, or copy ca-${missing}.key.pem and ca-${missing}.crt.pem from there`,
        );
      }
    }
    await this.#sayKeys();
    this.#following = this.#follow();
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    await this.#following;
    await this.#applying.catch(() => undefined);
  }

  /** By which replicas know each other: it stays the same over all changes. */
  get firstPin(): string {
    return this.#options.authority.record.firstPin;
  }

  show(): AuthorityView {
    const { authority, agents } = this.#options;
    const { record } = authority;
    const all = agents();
    const next = waiting(record);
    const wanted = next ?? record.issuers.find(({ id }) => id === record.active)!;
    const isBehind = ({ roots, issuer }: AgentTrust): boolean =>
      !roots?.includes(wanted.rootPin) || (next === undefined && issuer !== wanted.id);
    // Before the first change nobody has anywhere to come along to.
    const notYet = record.revision === 1 ? [] : all.filter(isBehind);
    const caPem = authority.caPem;
    return {
      revision: record.revision,
      issuers: record.issuers.map((entry) => {
        const its = authority.issuers.find(({ id }) => id === entry.id);
        const { id, rootPin, added, activated, retired } = entry;
        const state =
          retired !== null ? "retired" : id === record.active ? "active" : entry === next ? "next" : "former";
        return {
          id,
          state,
          serving: retired === null && id === serving(record).id,
          rootPin,
          ...describe(its),
          added,
          activated,
          retired,
          trustedBy: all.filter(({ roots }) => roots?.includes(rootPin)).length,
          certificates: all.filter(({ issuer }) => issuer === id).length,
        };
      }),
      agents: all.length,
      behind: notYet.map(({ id }) => id).slice(0, SHOWN_MAX),
      behindCount: notYet.length,
      caPem,
    };
  }

  async rotate(by: string): Promise<AuthorityView> {
    const { authority, clock, files } = this.#options;
    const { trustDomain } = authority;
    this.#refuseSecond();
    const made = await files.add(await createRoot({ trustDomain, clock }));
    return await this.#add(made, by);
  }

  /** The same until its certificate has come: a request that was lost is asked for again. */
  async request(): Promise<{ id: string; requestPem: string }> {
    const { authority, files } = this.#options;
    this.#refuseSecond();
    const keyPem = (await files.pendingKey()) ?? (await createIssuerKey());
    const id = await files.addKey(keyPem);
    const { trustDomain } = authority;
    return { id, requestPem: await requestForIssuer(keyPem, { trustDomain, id }) };
  }

  async import({ chainPem, by }: { chainPem: string; by: string }): Promise<AuthorityView> {
    const { authority, clock, files, serverNames } = this.#options;
    const chain = readIssuerChain(chainPem, clock.wallMs());
    const id = issuerId(chain[0]!);
    const keyPem = await files.keyOf(id);
    if (keyPem === undefined) {
      throw new InsituError(
        "request.invalid",
        `the chain is not taken: its first certificate is for the key ${id}, which this server does not have: have the request of \`insitu ca request\` signed, and put that certificate first`,
      );
    }
    if (authority.issuers.some((issuer) => issuer.id === id))
      throw new InsituError("conflict", `the issuer ${id} is there already`);
    this.#refuseSecond();
    const pair = { keyPem, chainPem: chain.map((certificate) => certificate.toString()).join("") };
    await tryIssuer(await openIssuer(pair, `the key ${id}`, authority.options), serverNames);
    return await this.#add(await files.add(pair), by);
  }

  async activate({ force, by }: { force: boolean; by: string }): Promise<AuthorityView> {
    const { agents, log } = this.#options;
    const next = waiting(this.#options.authority.record);
    if (next) await this.#refuseWithoutKeys(next.id);
    const record = await this.#change(by, (current, deed) =>
      activate(current, deed, { agents: agents(), force }),
    );
    log.warn({ issuer: record.active, by, force }, "issuer of certificates activated");
    return this.show();
  }

  async retire({ id, force, by }: { id: string; force: boolean; by: string }): Promise<AuthorityView> {
    const { agents, log, authority } = this.#options;
    await this.#refuseWithoutKeys(authority.record.active);
    await this.#change(by, (current, deed) => retire(current, id, deed, { agents: agents(), force }));
    log.warn({ issuer: id, by, force }, "issuer of certificates retired");
    return this.show();
  }

  async #add(issuer: IssuerFiles, by: string): Promise<AuthorityView> {
    const { files } = this.#options;
    const { id, rootPin } = issuer;
    try {
      await this.#change(by, (current, deed) => add(current, { id, rootPin }, deed));
    } catch (err) {
      // Another replica was first. When it cannot be told, the files stay: the record may name them.
      if (err instanceof InsituError && err.code === "conflict") await files.discard(issuer);
      throw err;
    }
    this.#options.log.warn({ issuer: id, by }, "issuer of certificates added");
    return this.show();
  }

  /** Before keys are made for nothing. */
  #refuseSecond(): void {
    const { record } = this.#options.authority;
    if (waiting(record)) add(record, { id: "", rootPin: "" }, { atMs: 0, by: "" });
  }

  /** An agent that comes to a replica without the key would get nothing there. */
  async #refuseWithoutKeys(id: string): Promise<void> {
    const { replicaKeys, replicas } = this.#options;
    const held = new Map((await replicaKeys.list()).map(({ key, value }) => [key, value.held]));
    const without = replicas().filter((replica) => !held.get(replica)?.includes(id));
    if (without.length === 0) return;
    throw new InsituError(
      "conflict",
      `the replica ${without.join(", ")} has no key of the issuer ${id}: copy ca-${id}.key.pem and ca-${id}.crt.pem to its secrets directory, and restart it`,
    );
  }

  async #change(
    by: string,
    decide: (current: AuthorityRecord, deed: Deed) => AuthorityRecord,
  ): Promise<AuthorityRecord> {
    const { kv, authority, clock } = this.#options;
    const deed = { atMs: clock.wallMs(), by };
    const { value, revision } = await changeKv(kv, KEY, (stored) => {
      const current = stored ?? authority.record;
      const next = decide(current, deed);
      return next === current ? undefined : next;
    });
    if (value === undefined) return authority.record;
    await this.#apply(value, revision);
    return value;
  }

  async #apply(record: AuthorityRecord, revision: number): Promise<void> {
    const { authority, log } = this.#options;
    const mine = this.#applying
      .catch(() => undefined)
      .then(async () => {
        if (revision <= this.#revision) return;
        const missing = await authority.apply(record);
        this.#revision = revision;
        if (missing.length > 0)
          log.error(
            { issuers: missing },
            "keys or certificates of issuers are missing in this replica's secrets: copy them from another replica, and restart this one",
          );
        await this.#sayKeys();
      });
    this.#applying = mine;
    await mine;
  }

  async #sayKeys(): Promise<void> {
    const { replicaKeys, replicaId, authority } = this.#options;
    const held = [...authority.held].sort();
    await changeKv<ReplicaKeys>(replicaKeys, replicaId, (current) =>
      String(current?.held) === String(held) ? undefined : { v: 1, held },
    );
  }

  async #follow(): Promise<void> {
    const { kv, clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        for await (const change of kv.watch(signal)) {
          if (change.kind === "put" && change.key === KEY) await this.#apply(change.value, change.revision);
          else if (change.kind === "malformed")
            log.error({ key: change.key, reason: change.reason }, "record of the issuers is malformed");
        }
      } catch (err) {
        log.warn({ err }, "record of the issuers cannot be followed");
        await clock.sleep(WATCH_RETRY_MS, signal).catch(() => {
          // Aborted: the loop's condition sees it.
        });
      }
    }
  }
}

function describe(its: IssuerFiles | undefined) {
  if (its === undefined) return { subject: null, intermediate: null, notAfterMs: null, pin: null };
  const [issuer] = its.chain;
  return {
    subject: issuer!.subject.split("\n").join(", "),
    intermediate: its.chain.length > 1,
    notAfterMs: Math.min(...its.chain.map(({ validTo }) => Date.parse(validTo))),
    pin: pinOf(issuer!),
  };
}
