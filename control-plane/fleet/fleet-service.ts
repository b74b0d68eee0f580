/** The agents that there are: enrolled, connected now, and as they were last seen. */
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import { agentId } from "../access/spiffe.ts";
import type { AgentView } from "../api/schemas.ts";
import type { FleetQueries } from "../api/services.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import { type AgentRecord, agentKey, idOfKey, type SeenRecord } from "./agent-record.ts";
import type { AgentRegistry } from "./agent-registry.ts";

/** What an agent says when its session begins. */
export interface AgentHello {
  software: string;
  hostname: string;
  slots: number;
  executors: string[];
  datasets: string[];
  labels: Record<string, string>;
  instanceId: string;
  held: LeaseKey[];
}

/** What an agent says every few seconds. */
export interface AgentPulse {
  sentAtMs: number;
  held: LeaseKey[];
  freeSlots: number;
  spoolBytes: number;
  droppedLogBytes: number;
  notTakingWork: string;
}

export interface ConnectedAgent {
  id: string;
  environment: string;
  slots: number;
  freeSlots: number;
  executors: readonly string[];
  datasets: readonly string[];
  /** Empty, or why it pulls nothing now. */
  notTakingWork: string;
}

export interface FleetChange {
  kind: "enrolled" | "connected" | "updated" | "disconnected" | "removed";
  agent: string;
  environment: string;
  /** Agents of the environment that are connected to this replica after the change. */
  connectedAgents: number;
}

/** Tells the fleet about one session. Handed to the gateway; does nothing after `end`. */
export interface Presence {
  pulse(pulse: AgentPulse): void;
  end(): void;
}

export interface Fleet extends FleetQueries, AsyncDisposable {
  start(signal: AbortSignal): Promise<void>;
  /** Writes down when agents were last seen. */
  close(): Promise<void>;
  /** Agents of the environment that are connected now, by id. Empty: nobody would take work there. */
  agentsOf(environment: string): ConnectedAgent[];
  /** Called after each change, in order. Gives the way to stop. The listener must not throw. */
  onChange(listener: (change: FleetChange) => void): () => void;
  /** For the gateway. A newer session of the same agent takes the older one's place. */
  connected(agent: { id: string; environment: string; name: string }, hello: AgentHello): Presence;
}

interface Live {
  id: string;
  environment: string;
  hello: AgentHello;
  sinceMs: number;
  lastSeenMs: number;
  skewMs: number | null;
  pulse: AgentPulse | undefined;
}

export function createFleet(deps: {
  registry: AgentRegistry;
  seen: KvStore<SeenRecord>;
  clock: Clock;
  log: Logger;
}): Fleet {
  return new FleetService(deps);
}

class FleetService implements Fleet {
  readonly #deps: { registry: AgentRegistry; seen: KvStore<SeenRecord>; clock: Clock; log: Logger };
  readonly #live = new Map<string, Live>();
  readonly #byEnvironment = new Map<string, Map<string, Live>>();
  readonly #seen = new Map<string, SeenRecord>();
  readonly #listeners = new Set<(change: FleetChange) => void>();
  readonly #writes = new Set<Promise<void>>();
  #unsubscribe: (() => void) | undefined;

  constructor(deps: { registry: AgentRegistry; seen: KvStore<SeenRecord>; clock: Clock; log: Logger }) {
    this.#deps = deps;
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    for (const entry of await this.#deps.seen.list()) {
      // A session may have begun while the list was read; what it says is newer.
      const id = idOfKey(entry.key);
      if (!this.#seen.has(id)) this.#seen.set(id, entry.value);
    }
    this.#unsubscribe = this.#deps.registry.onChange((record) => {
      const kind = record.removedAtMs === null ? "enrolled" : "removed";
      this.#tell(kind, agentId(record), record.environment);
    });
  }

  async close(): Promise<void> {
    this.#unsubscribe?.();
    this.#listeners.clear();
    for (const live of this.#live.values()) this.#remember(live);
    this.#live.clear();
    this.#byEnvironment.clear();
    await Promise.all(this.#writes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  list(): AgentView[] {
    return this.#deps.registry
      .list()
      .filter((record) => record.removedAtMs === null)
      .map((record) => this.#view(record))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  get(id: string): AgentView | undefined {
    const record = this.#deps.registry.known(id);
    return record === undefined || record.removedAtMs !== null ? undefined : this.#view(record);
  }

  agentsOf(environment: string): ConnectedAgent[] {
    const agents = [...(this.#byEnvironment.get(environment)?.values() ?? [])];
    return agents
      .map((live) => ({
        id: live.id,
        environment,
        slots: live.hello.slots,
        freeSlots: freeSlots(live),
        executors: live.hello.executors,
        datasets: live.hello.datasets,
        notTakingWork: live.pulse?.notTakingWork ?? "",
      }))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  onChange(listener: (change: FleetChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  connected(agent: { id: string; environment: string }, hello: AgentHello): Presence {
    const nowMs = this.#deps.clock.wallMs();
    const live: Live = {
      id: agent.id,
      environment: agent.environment,
      hello,
      sinceMs: nowMs,
      lastSeenMs: nowMs,
      skewMs: null,
      pulse: undefined,
    };
    this.#live.set(live.id, live);
    const peers = this.#byEnvironment.get(live.environment) ?? new Map<string, Live>();
    this.#byEnvironment.set(live.environment, peers.set(live.id, live));
    this.#remember(live);
    this.#track(this.#deps.registry.confirm(live.id), live.id, "first session not stored");
    this.#tell("connected", live.id, live.environment);
    return {
      pulse: (pulse) => this.#pulse(live, pulse),
      end: () => this.#end(live),
    };
  }

  #pulse(live: Live, pulse: AgentPulse): void {
    if (this.#live.get(live.id) !== live) return;
    const before = { free: freeSlots(live), why: live.pulse?.notTakingWork ?? "" };
    live.lastSeenMs = this.#deps.clock.wallMs();
    live.skewMs = pulse.sentAtMs - live.lastSeenMs;
    live.pulse = pulse;
    if (before.free !== freeSlots(live) || before.why !== pulse.notTakingWork) {
      this.#tell("updated", live.id, live.environment);
    }
  }

  #end(live: Live): void {
    if (this.#live.get(live.id) !== live) return;
    this.#live.delete(live.id);
    const peers = this.#byEnvironment.get(live.environment);
    peers?.delete(live.id);
    if (peers?.size === 0) this.#byEnvironment.delete(live.environment);
    this.#remember(live);
    this.#tell("disconnected", live.id, live.environment);
  }

  #tell(kind: FleetChange["kind"], agent: string, environment: string): void {
    const connectedAgents = this.#byEnvironment.get(environment)?.size ?? 0;
    for (const listener of this.#listeners) listener({ kind, agent, environment, connectedAgents });
  }

  /** In memory at once, in the store when it gets there: losing it costs a line on a screen. */
  #remember(live: Live): void {
    const { hello } = live;
    const record: SeenRecord = {
      v: 1,
      lastSeenMs: live.lastSeenMs,
      software: hello.software,
      hostname: hello.hostname,
      slots: hello.slots,
      executors: hello.executors,
      datasets: hello.datasets,
      labels: hello.labels,
    };
    this.#seen.set(live.id, record);
    const write = changeKv(this.#deps.seen, agentKey(live.id), (stored) =>
      stored !== undefined && stored.lastSeenMs > record.lastSeenMs ? undefined : record,
    );
    this.#track(write, live.id, "last sight not stored");
  }

  #track(write: Promise<unknown>, id: string, failure: string): void {
    const settled = write.then(
      () => {},
      (err: unknown) => this.#deps.log.debug({ agentId: id, err: InsituError.from(err) }, failure),
    );
    this.#writes.add(settled);
    void settled.finally(() => this.#writes.delete(settled));
  }

  #view(record: AgentRecord): AgentView {
    const id = agentId(record);
    const live = this.#live.get(id);
    const seen = this.#seen.get(id);
    return {
      id,
      name: record.name,
      environment: record.environment,
      connected: live !== undefined,
      connectedSinceMs: live?.sinceMs ?? null,
      lastSeenMs: live?.lastSeenMs ?? seen?.lastSeenMs ?? null,
      software: seen?.software ?? "",
      hostname: seen?.hostname ?? "",
      slots: seen?.slots ?? 0,
      freeSlots: live === undefined ? 0 : freeSlots(live),
      executors: seen?.executors ?? [],
      datasets: seen?.datasets ?? [],
      labels: seen?.labels ?? {},
      leases: live?.pulse?.held ?? live?.hello.held ?? [],
      clockSkewMs: live?.skewMs ?? null,
      spoolBytes: live?.pulse?.spoolBytes ?? 0,
      droppedLogBytes: live?.pulse?.droppedLogBytes ?? 0,
      notTakingWork: live?.pulse?.notTakingWork ?? "",
      enrolledAtMs: record.enrolledAtMs,
      certificateNotAfterMs: record.certificateNotAfterMs,
    };
  }
}

/** Before the first heartbeat, what the hello leaves. */
function freeSlots(live: Live): number {
  return live.pulse?.freeSlots ?? Math.max(0, live.hello.slots - live.hello.held.length);
}
