/** Which agents are enrolled, and with which key. The truth is the KV bucket; memory follows it. */
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { AgentCertificate } from "../access/pki.ts";
import { type AgentName, agentId } from "../access/spiffe.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import { type AgentRecord, agentKey, type Cordon, idOfKey, keysOf, type ReportKey } from "./agent-record.ts";

export interface AgentRegistry extends AsyncDisposable {
  /** Resolves when everything that is stored is known. */
  start(signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
  list(): AgentRecord[];
  /** From memory, else from the store: an agent that enrolled at another replica a moment ago is known. */
  find(id: string): Promise<AgentRecord | undefined>;
  /** From the store, past memory: for what must not rest on a view that lags. */
  stored(id: string): Promise<AgentRecord | undefined>;
  /** From memory alone. */
  known(id: string): AgentRecord | undefined;
  /**
   * Enrols the agent, again with the same key or for the first time. Durable when it resolves.
   * @throws InsituError `agent.name-taken` when another key holds the name and has been at work.
   */
  register(agent: AgentName, certificate: AgentCertificate): Promise<AgentRecord>;
  /**
   * Takes another key for the agent, beside the one that `presented` is. Durable when it resolves.
   * @throws InsituError `auth.denied` when `presented` is not the agent's any more; `request.invalid` for a key that is not new.
   */
  renew(agent: AgentName, presented: string, certificate: AgentCertificate): Promise<AgentRecord>;
  /** Notes another certificate for a key of the agent. @throws InsituError `auth.denied` when it is not the agent's any more. */
  recover(agent: AgentName, certificate: AgentCertificate): Promise<AgentRecord>;
  /** Notes that the agent uses this key: of two, the other opens nothing from now on. Does nothing when there is one. */
  promote(id: string, spkiSha256: string): Promise<void>;
  /** Notes that the agent has used its certificate. Does nothing when that is known. */
  confirm(id: string): Promise<void>;
  /**
   * Reports signed with the key are this agent's from now on, announced under the certificate's key `spkiSha256`. Durable
   * when it resolves. A key that is known is vouched for by this certificate from now on.
   * @throws InsituError `unavailable` (retryable) when the agent was replaced, or has `REPORT_KEYS_MAX` keys
   */
  addReportKey(id: string, spkiSha256: string, key: ReportKey): Promise<AgentRecord>;
  /** Notes which roots the agent trusts, and whose certificate it has. Does nothing when that is known. */
  noteTrust(id: string, trust: Pick<AgentRecord, "roots" | "issuer">): Promise<void>;
  /** Its certificate opens nothing from now on. Of two, the first stays on the record. @throws InsituError `not-found`. */
  revoke(id: string, why: { by: string; reason: string }): Promise<AgentRecord>;
  /**
   * The agent takes no new work from when it hears of it; null: it may again. Written also when nothing changes, so that
   * an agent which knows of a later state than the store does, as after a restore, hears of this one.
   * @throws InsituError `not-found`; `conflict` for an agent that was revoked
   */
  cordon(id: string, cordon: Omit<Cordon, "atMs"> | null): Promise<AgentRecord>;
  /** Called for each record that is new or has changed, wherever it was changed. Gives the way to stop. */
  onChange(listener: (record: AgentRecord) => void): () => void;
}

const WATCH_RETRY_MS = 1_000;
/** Of one agent. A key is made once for a state directory, so more mean that something makes them anew all the time. */
export const REPORT_KEYS_MAX = 16;
/** Of those who had a name before: what the oldest of them signed cannot be verified any more. */
const FORMER_REPORT_KEYS_MAX = 32;

export function createAgentRegistry(deps: {
  kv: KvStore<AgentRecord>;
  clock: Clock;
  log: Logger;
}): AgentRegistry {
  return new Registry(deps.kv, deps.clock, deps.log);
}

class Registry implements AgentRegistry {
  readonly #kv: KvStore<AgentRecord>;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #records = new Map<string, { record: AgentRecord; revision: number }>();
  readonly #listeners = new Set<(record: AgentRecord) => void>();
  readonly #stop = new AbortController();
  #following: Promise<void> | undefined;

  constructor(kv: KvStore<AgentRecord>, clock: Clock, log: Logger) {
    this.#kv = kv;
    this.#clock = clock;
    this.#log = log;
  }

  async start(signal: AbortSignal): Promise<void> {
    const forward = () => this.#stop.abort(signal.reason);
    signal.addEventListener("abort", forward, { once: true });
    const stopped = new Promise<never>((_, reject) => {
      this.#stop.signal.addEventListener("abort", () => reject(this.#stop.signal.reason), { once: true });
    });
    try {
      signal.throwIfAborted();
      const current = new Promise<void>((resolve) => {
        this.#following = this.#follow(resolve);
      });
      await Promise.race([current, stopped]);
    } finally {
      signal.removeEventListener("abort", forward);
      stopped.catch(() => {
        // Lost on purpose: it only served the race above.
      });
    }
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "the agent registry is closed"));
    await this.#following;
    this.#listeners.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  list(): AgentRecord[] {
    return [...this.#records.values()].map((entry) => entry.record);
  }

  known(id: string): AgentRecord | undefined {
    return this.#records.get(id)?.record;
  }

  async find(id: string): Promise<AgentRecord | undefined> {
    const known = this.known(id);
    return known ?? (await this.stored(id));
  }

  async stored(id: string): Promise<AgentRecord | undefined> {
    const stored = await this.#kv.get(agentKey(id));
    if (stored !== undefined) this.#learn(id, stored.value, stored.revision);
    return stored?.value;
  }

  async register(agent: AgentName, certificate: AgentCertificate): Promise<AgentRecord> {
    const id = agentId(agent);
    const { value, revision } = await changeKv<AgentRecord>(this.#kv, agentKey(id), (current) => {
      refuseTakenName(agent, certificate.spkiSha256, current);
      return {
        v: 1,
        environment: agent.environment,
        name: agent.name,
        spkiSha256: certificate.spkiSha256,
        enrolledAtMs: isSameAgent(current, certificate) ? current.enrolledAtMs : this.#clock.wallMs(),
        certificateNotAfterMs: certificate.notAfterMs,
        next: isSameAgent(current, certificate) ? current.next : null,
        firstSessionAtMs: isSameAgent(current, certificate) ? current.firstSessionAtMs : null,
        removedAtMs: null,
        removedBy: "",
        removedReason: "",
        revokedKeys: current?.revokedKeys ?? [],
        reportKeys: isSameAgent(current, certificate) ? current.reportKeys : [],
        formerReportKeys: isSameAgent(current, certificate)
          ? current.formerReportKeys
          : reportKeysEver(current).slice(-FORMER_REPORT_KEYS_MAX),
        roots: isSameAgent(current, certificate) ? current.roots : null,
        issuer: isSameAgent(current, certificate) ? current.issuer : null,
        cordon: current?.cordon ?? null,
        cordonRevision: current?.cordonRevision ?? 0,
      };
    });
    return this.#learn(id, value!, revision);
  }

  async renew(agent: AgentName, presented: string, certificate: AgentCertificate): Promise<AgentRecord> {
    const id = agentId(agent);
    const { value, revision } = await changeKv(this.#kv, agentKey(id), (stored) => {
      if (stored === undefined || !keysOf(stored).includes(presented))
        throw new InsituError("auth.denied", `the agent ${id} is not enrolled with this key any more`);
      // Whoever comes with the next key uses it, whether or not that was written down already.
      const current = promoted(stored, presented) ?? stored;
      refuseRevokedKey(agent, certificate.spkiSha256, current);
      if (certificate.spkiSha256 === current.spkiSha256)
        throw new InsituError("request.invalid", "a renewal needs a new key");
      const { spkiSha256, notAfterMs } = certificate;
      return { ...current, next: { spkiSha256, certificateNotAfterMs: notAfterMs } };
    });
    return this.#learn(id, value!, revision);
  }

  async recover(agent: AgentName, { spkiSha256, notAfterMs }: AgentCertificate): Promise<AgentRecord> {
    const id = agentId(agent);
    const { value, revision } = await changeKv(this.#kv, agentKey(id), (stored) => {
      if (stored === undefined || !keysOf(stored).includes(spkiSha256))
        throw new InsituError("auth.denied", `the agent ${id} is not enrolled with this key any more`);
      return { ...(promoted(stored, spkiSha256) ?? stored), certificateNotAfterMs: notAfterMs };
    });
    return this.#learn(id, value!, revision);
  }

  async promote(id: string, spkiSha256: string): Promise<void> {
    const known = this.known(id);
    if (known !== undefined && promoted(known, spkiSha256) === undefined) return;
    const { value, revision } = await changeKv(
      this.#kv,
      agentKey(id),
      (current) => current && promoted(current, spkiSha256),
    );
    if (value !== undefined) this.#learn(id, value, revision);
  }

  async confirm(id: string): Promise<void> {
    if (typeof this.known(id)?.firstSessionAtMs === "number") return;
    const { value, revision } = await changeKv(this.#kv, agentKey(id), (current) =>
      current === undefined || current.firstSessionAtMs !== null
        ? undefined
        : { ...current, firstSessionAtMs: this.#clock.wallMs() },
    );
    if (value !== undefined) this.#learn(id, value, revision);
  }

  async addReportKey(id: string, spkiSha256: string, key: ReportKey): Promise<AgentRecord> {
    const { value, revision } = await changeKv(this.#kv, agentKey(id), (current) => {
      if (current === undefined || !keysOf(current).includes(spkiSha256))
        throw new InsituError("unavailable", `the agent ${id} was replaced meanwhile`, { retryable: true });
      const known = current.reportKeys.find((other) => other.id === key.id);
      if (known?.certificate === key.certificate) return undefined;
      if (known)
        return { ...current, reportKeys: current.reportKeys.map((other) => (other === known ? key : other)) };
      if (current.reportKeys.length >= REPORT_KEYS_MAX)
        throw new InsituError("unavailable", tooManyReportKeys(id), { retryable: true });
      return { ...current, reportKeys: [...current.reportKeys, key] };
    });
    return this.#learn(id, value!, revision);
  }

  async noteTrust(id: string, trust: Pick<AgentRecord, "roots" | "issuer">): Promise<void> {
    const isNoted = (record: AgentRecord): boolean =>
      record.issuer === trust.issuer && String(record.roots) === String(trust.roots);
    const known = this.known(id);
    if (known !== undefined && isNoted(known)) return;
    const { value, revision } = await changeKv(this.#kv, agentKey(id), (current) =>
      current === undefined || current.removedAtMs !== null || isNoted(current)
        ? undefined
        : { ...current, ...trust },
    );
    if (value !== undefined) this.#learn(id, value, revision);
  }

  async revoke(id: string, why: { by: string; reason: string }): Promise<AgentRecord> {
    const { value, revision } = await changeKv(this.#kv, agentKey(id), (current) => {
      if (current === undefined) throw new InsituError("not-found", `there is no agent ${id}`);
      return current.removedAtMs === null
        ? revoked(current, { ...why, nowMs: this.#clock.wallMs() })
        : undefined;
    });
    return this.#learn(id, value!, revision);
  }

  async cordon(id: string, cordon: Omit<Cordon, "atMs"> | null): Promise<AgentRecord> {
    const { value, revision } = await changeKv(this.#kv, agentKey(id), (current) => {
      if (current === undefined) throw new InsituError("not-found", `there is no agent ${id}`);
      if (current.removedAtMs !== null)
        throw new InsituError("conflict", `the agent ${id} was revoked: it takes no work anyway`);
      const atMs = this.#clock.wallMs();
      return {
        ...current,
        cordon: cordon && { ...cordon, atMs },
        // By the clock, so that after a restore the next change is later than all that was lost.
        cordonRevision: Math.max(current.cordonRevision + 1, atMs),
      };
    });
    return this.#learn(id, value!, revision);
  }

  onChange(listener: (record: AgentRecord) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Keeps the newest by revision: our own writes, reads and the watch arrive in any order. */
  #learn(id: string, record: AgentRecord, revision: number): AgentRecord {
    const known = this.#records.get(id);
    if (known !== undefined && known.revision >= revision) return known.record;
    this.#records.set(id, { record, revision });
    for (const listener of this.#listeners) listener(record);
    return record;
  }

  async #follow(onCurrent: () => void): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        for await (const change of this.#kv.watch(signal)) {
          if (change.kind === "current") onCurrent();
          else if (change.kind === "put") this.#learn(idOfKey(change.key), change.value, change.revision);
          else if (change.kind === "delete") this.#forget(idOfKey(change.key), change.revision);
          else this.#log.error({ key: change.key, reason: change.reason }, "agent record is malformed");
        }
      } catch (err) {
        this.#log.warn({ err }, "watch of the agents was lost");
        await this.#clock.sleep(WATCH_RETRY_MS, signal).catch(() => {
          // Aborted: the loop's condition sees it.
        });
      }
    }
  }

  /** A record that was deleted with other tools counts as removed. */
  #forget(id: string, revision: number): void {
    const known = this.#records.get(id);
    if (known === undefined || known.revision >= revision) return;
    this.#records.delete(id);
    const removed = { ...known.record, removedAtMs: known.record.removedAtMs ?? this.#clock.wallMs() };
    for (const listener of this.#listeners) listener(removed);
  }
}

/** Undefined when the key is not the next one. */
function promoted(current: AgentRecord, spkiSha256: string): AgentRecord | undefined {
  if (current.removedAtMs !== null || current.next?.spkiSha256 !== spkiSha256) return undefined;
  return { ...current, ...current.next, next: null };
}

function revoked(current: AgentRecord, why: { by: string; reason: string; nowMs: number }): AgentRecord {
  const { by, reason, nowMs } = why;
  const own = [current, ...(current.next ? [current.next] : [])].map((identity) => ({
    spkiSha256: identity.spkiSha256,
    notAfterMs: identity.certificateNotAfterMs,
  }));
  return {
    ...current,
    removedAtMs: nowMs,
    removedBy: by,
    removedReason: reason,
    revokedKeys: [...current.revokedKeys.filter(({ notAfterMs }) => notAfterMs > nowMs), ...own],
  };
}

function reportKeysEver(current: AgentRecord | undefined): ReportKey[] {
  return current === undefined ? [] : [...current.formerReportKeys, ...current.reportKeys];
}

export function tooManyReportKeys(id: string): string {
  return `the agent ${id} has announced ${REPORT_KEYS_MAX} keys for its reports already: revoke it and join it anew, and keep its state directory`;
}

function isSameAgent(
  current: AgentRecord | undefined,
  certificate: AgentCertificate,
): current is AgentRecord {
  return current?.removedAtMs === null && current.spkiSha256 === certificate.spkiSha256;
}

/**
 * @throws InsituError `agent.name-taken` when the name is held by another key that has been at work; `auth.denied` for a
 *   key that was revoked: its certificate, which others may hold, would open everything again.
 */
export function refuseTakenName(
  agent: AgentName,
  spkiSha256: string,
  current: AgentRecord | undefined,
): void {
  refuseRevokedKey(agent, spkiSha256, current);
  if (current === undefined || current.removedAtMs !== null || current.spkiSha256 === spkiSha256) return;
  // The answer to the first enrolment may have been lost, and the key with it: a new token mends that.
  if (current.firstSessionAtMs === null) return;
  throw new InsituError(
    "agent.name-taken",
    `an agent with another key is enrolled as ${agentId(agent)}: choose another name for this one, or start it with the state directory that holds the key it enrolled with`,
    { details: { agentId: agentId(agent) } },
  );
}

function refuseRevokedKey(agent: AgentName, spkiSha256: string, current: AgentRecord | undefined): void {
  if (current?.revokedKeys.some((key) => key.spkiSha256 === spkiSha256)) {
    throw new InsituError(
      "auth.denied",
      `the key that ${agentId(agent)} comes with was revoked: remove the directory "identity" from its state directory, so that it makes another one, and join with a new token`,
      { details: { agentId: agentId(agent) } },
    );
  }
}
