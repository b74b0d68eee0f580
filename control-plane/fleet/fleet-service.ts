/** The agents that there are: enrolled, connected now, and as they were last seen. */
import type { Logger } from "pino";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { LeaseKey } from "../../shared/wire/attempt.ts";
import { agentId } from "../access/spiffe.ts";
import type { AgentView } from "../api/schemas.ts";
import type { FleetQueries } from "../api/services.ts";
import { changeKv, type KvStore } from "../store/kv.ts";
import {
  type AgentRecord,
  agentKey,
  type Cordon,
  idOfKey,
  SandboxFacts,
  type SeenRecord,
} from "./agent-record.ts";
import type { AgentRegistry } from "./agent-registry.ts";
import { cordonView, type LastWord } from "./cordon-view.ts";

/** What the agent's site allows by a policy of its own. Missing or null: it has none, or the agent is older. */
type SitePolicyState = AgentView["sitePolicy"];

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
  sitePolicy?: SitePolicyState | undefined;
  /** Null: an agent of a release before it was asked. */
  sandbox: SandboxFacts | null;
  /** Of the cordon that it will not forget; 0: none, or an agent of a release that does not say. */
  cordonRevision: number;
}

/** What an agent says every few seconds. */
export interface AgentPulse {
  sentAtMs: number;
  held: LeaseKey[];
  freeSlots: number;
  spoolBytes: number;
  droppedLogBytes: number;
  notTakingWork: string;
  sitePolicy?: SitePolicyState | undefined;
  /** Since its process started. */
  refusedOffers: number;
  /** The checkpoint of the ledger that it holds, and how the ledger contradicts that. Missing: it asks nothing now. */
  ledger?: { size: number; trouble: string } | null | undefined;
  /** As in the hello. */
  cordonRevision: number;
}

export interface ConnectedAgent {
  id: string;
  environment: string;
  slots: number;
  freeSlots: number;
  executors: readonly string[];
  datasets: readonly string[];
  sandbox: SandboxFacts | null;
  /** Empty, or why it pulls nothing now. */
  notTakingWork: string;
  /** Who wants that it takes no new work, whether or not it knows yet; null: nobody. */
  cordon: Pick<Cordon, "by" | "reason"> | null;
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

const SitePolicyMessage = z.object({ digest: z.string(), trouble: z.string() }).nullish();
/** Since the replica that counted them started. */
const RefusedReports = z.object({ unsigned: z.int().min(0), forged: z.int().min(0) });
type RefusedReports = z.infer<typeof RefusedReports>;

/** What replicas tell each other of the agents that are connected to them. */
export const PresenceMessage = z.object({
  kind: z.literal("presence"),
  from: z.string(),
  id: z.string(),
  environment: z.string(),
  sinceMs: z.int(),
  /** Null: the agent has gone from that replica. */
  hello: z
    .object({
      software: z.string(),
      hostname: z.string(),
      slots: z.int(),
      executors: z.array(z.string()),
      datasets: z.array(z.string()),
      labels: z.record(z.string(), z.string()),
      instanceId: z.string(),
      held: z.array(LeaseKey),
      sitePolicy: SitePolicyMessage,
      // A replica of the release before leaves it out.
      sandbox: SandboxFacts.nullable().default(null),
      cordonRevision: z.number().default(0),
    })
    .nullable(),
  pulse: z
    .object({
      sentAtMs: z.number(),
      held: z.array(LeaseKey),
      freeSlots: z.int(),
      spoolBytes: z.number(),
      droppedLogBytes: z.number(),
      notTakingWork: z.string(),
      sitePolicy: SitePolicyMessage,
      refusedOffers: z.number().default(0),
      ledger: z.object({ size: z.number(), trouble: z.string() }).nullish(),
      cordonRevision: z.number().default(0),
    })
    .nullable(),
  /** Reports of it that were refused for good there. */
  refusedReports: RefusedReports.default({ unsigned: 0, forged: 0 }),
});
export type PresenceMessage = z.infer<typeof PresenceMessage>;

export interface Fleet extends FleetQueries, AsyncDisposable {
  /** Another replica speaks of an agent that is connected there. */
  heard(message: PresenceMessage): void;
  start(signal: AbortSignal): Promise<void>;
  /** Writes down when agents were last seen. */
  close(): Promise<void>;
  /** Agents of the environment that are connected now, to whichever replica, by id. Empty: nobody would take work there. */
  agentsOf(environment: string): ConnectedAgent[];
  /** Called after each change, in order. Gives the way to stop. The listener must not throw. */
  onChange(listener: (change: FleetChange) => void): () => void;
  /** A report of the agent, or one that says so, was refused for good. */
  refusedReport(agent: string, code: "report.unsigned" | "report.forged"): void;
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

/** An agent of another replica that was not spoken of for so long is not counted any more. */
const HEARD_MAX_MS = 30_000;

interface FleetDeps {
  registry: AgentRegistry;
  seen: KvStore<SeenRecord>;
  clock: Clock;
  log: Logger;
  /** Tells the other replicas, if there are any. */
  share(message: Omit<PresenceMessage, "from" | "kind">): void;
}

export function createFleet(deps: FleetDeps): Fleet {
  return new FleetService(deps);
}

class FleetService implements Fleet {
  readonly #deps: FleetDeps;
  /** Connected to other replicas, with the monotonic time at which we heard so. */
  readonly #heard = new Map<string, { live: Live; from: string; atMs: number; refused: RefusedReports }>();
  /** Here. Of agents that are enrolled, so of no more than there are. */
  readonly #refused = new Map<string, RefusedReports>();
  readonly #live = new Map<string, Live>();
  readonly #byEnvironment = new Map<string, Map<string, Live>>();
  readonly #seen = new Map<string, SeenRecord>();
  readonly #listeners = new Set<(change: FleetChange) => void>();
  readonly #writes = new Set<Promise<void>>();
  #unsubscribe: (() => void) | undefined;

  constructor(deps: FleetDeps) {
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
      .map((record) => this.#view(record))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  get(id: string): AgentView | undefined {
    const record = this.#deps.registry.known(id);
    return record === undefined ? undefined : this.#view(record);
  }

  agentsOf(environment: string): ConnectedAgent[] {
    const elsewhere = [...this.#heard.values()]
      .filter(({ live }) => live.environment === environment && this.#elsewhere(live.id) !== undefined)
      .map(({ live }) => live);
    const agents = [...(this.#byEnvironment.get(environment)?.values() ?? []), ...elsewhere];
    return agents
      .map((live) => ({
        id: live.id,
        environment,
        slots: live.hello.slots,
        freeSlots: freeSlots(live),
        executors: live.hello.executors,
        datasets: live.hello.datasets,
        sandbox: live.hello.sandbox,
        notTakingWork: live.pulse?.notTakingWork ?? "",
        cordon: this.#deps.registry.known(live.id)?.cordon ?? null,
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
    this.#heard.delete(live.id);
    this.#share(live);
    this.#tell("connected", live.id, live.environment);
    return {
      pulse: (pulse) => this.#pulse(live, pulse),
      end: () => this.#end(live),
    };
  }

  heard(message: PresenceMessage): void {
    const { from, id, environment, sinceMs, hello, pulse, refusedReports: refused } = message;
    const known = this.#heard.get(id);
    if (hello === null) {
      // A late farewell of the replica that the agent has left for another one says nothing.
      if (known?.from === from) {
        this.#heard.delete(id);
        this.#seen.set(id, seenOf(known.live));
      }
      this.#tell("disconnected", id, environment);
      return;
    }
    const nowMs = this.#deps.clock.wallMs();
    const skewMs = pulse === null ? null : pulse.sentAtMs - nowMs;
    const live: Live = {
      id,
      environment,
      hello,
      sinceMs,
      lastSeenMs: nowMs,
      skewMs,
      pulse: pulse ?? undefined,
    };
    this.#heard.set(id, { live, from, atMs: this.#deps.clock.monotonicMs(), refused });
    this.#tell(known ? "updated" : "connected", id, environment);
  }

  /** Undefined when it is connected here, or when nothing was heard for long. */
  #elsewhere(id: string): Live | undefined {
    if (this.#live.has(id)) return undefined;
    const heard = this.#heard.get(id);
    if (heard === undefined) return undefined;
    if (this.#deps.clock.monotonicMs() - heard.atMs <= HEARD_MAX_MS) return heard.live;
    this.#heard.delete(id);
    return undefined;
  }

  #share(live: Live, gone = false): void {
    const { id, environment, sinceMs, hello, pulse } = live;
    const said = { hello: gone ? null : hello, pulse: pulse ?? null };
    const refusedReports = this.#refused.get(id) ?? { unsigned: 0, forged: 0 };
    this.#deps.share({ id, environment, sinceMs, ...said, refusedReports });
  }

  refusedReport(agent: string, code: "report.unsigned" | "report.forged"): void {
    if (this.#deps.registry.known(agent) === undefined) return;
    const { unsigned, forged } = this.#refused.get(agent) ?? { unsigned: 0, forged: 0 };
    const more =
      code === "report.unsigned" ? { unsigned: unsigned + 1, forged } : { unsigned, forged: forged + 1 };
    this.#refused.set(agent, more);
  }

  #refusedReports(id: string): RefusedReports {
    const here = this.#refused.get(id) ?? { unsigned: 0, forged: 0 };
    const there = this.#heard.get(id)?.refused ?? { unsigned: 0, forged: 0 };
    return { unsigned: here.unsigned + there.unsigned, forged: here.forged + there.forged };
  }

  #pulse(live: Live, pulse: AgentPulse): void {
    if (this.#live.get(live.id) !== live) return;
    const before = { free: freeSlots(live), why: live.pulse?.notTakingWork ?? "" };
    live.lastSeenMs = this.#deps.clock.wallMs();
    live.skewMs = pulse.sentAtMs - live.lastSeenMs;
    live.pulse = pulse;
    this.#share(live);
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
    this.#share(live, true);
    this.#tell("disconnected", live.id, live.environment);
  }

  #tell(kind: FleetChange["kind"], agent: string, environment: string): void {
    const connectedAgents = this.#byEnvironment.get(environment)?.size ?? 0;
    for (const listener of this.#listeners) listener({ kind, agent, environment, connectedAgents });
  }

  /** In memory at once, in the store when it gets there: losing it costs a line on a screen. */
  #remember(live: Live): void {
    const record = seenOf(live);
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
    const live = this.#live.get(id) ?? this.#elsewhere(id);
    const seen = live?.hello ?? this.#seen.get(id);
    return {
      id,
      name: record.name,
      environment: record.environment,
      connected: live !== undefined,
      connectedSinceMs: live?.sinceMs ?? null,
      lastSeenMs: live?.lastSeenMs ?? this.#seen.get(id)?.lastSeenMs ?? null,
      software: seen?.software ?? "",
      hostname: seen?.hostname ?? "",
      slots: seen?.slots ?? 0,
      freeSlots: live === undefined ? 0 : freeSlots(live),
      executors: seen?.executors ?? [],
      datasets: seen?.datasets ?? [],
      labels: seen?.labels ?? {},
      sandbox: seen?.sandbox ?? null,
      leases: live?.pulse?.held ?? live?.hello.held ?? [],
      clockSkewMs: live?.skewMs ?? null,
      spoolBytes: live?.pulse?.spoolBytes ?? 0,
      droppedLogBytes: live?.pulse?.droppedLogBytes ?? 0,
      notTakingWork: live?.pulse?.notTakingWork ?? "",
      sitePolicy: (live?.pulse ?? live?.hello)?.sitePolicy ?? null,
      reports: record.reportKeys.length > 0 ? "signed" : "unsigned",
      refusedReports: this.#refusedReports(id),
      refusedOffers: live?.pulse?.refusedOffers ?? 0,
      ledgerTrouble: live?.pulse?.ledger?.trouble ?? "",
      enrolledAtMs: record.enrolledAtMs,
      certificateNotAfterMs: record.certificateNotAfterMs,
      revoked:
        record.removedAtMs === null
          ? null
          : { atMs: record.removedAtMs, by: record.removedBy, reason: record.removedReason },
      cordon: cordonView(record, live ? lastWord(live) : wordOf(this.#seen.get(id))),
    };
  }
}

function seenOf(live: Live): SeenRecord {
  const { hello } = live;
  const { cordonRevision, held } = lastWord(live);
  return {
    v: 1,
    lastSeenMs: live.lastSeenMs,
    software: hello.software,
    hostname: hello.hostname,
    slots: hello.slots,
    executors: hello.executors,
    datasets: hello.datasets,
    labels: hello.labels,
    sandbox: hello.sandbox,
    cordonRevision,
    held,
  };
}

function lastWord({ hello, pulse }: Live): LastWord {
  const { cordonRevision, held } = pulse ?? hello;
  return { cordonRevision, held: held.length, notTakingWork: pulse?.notTakingWork ?? "" };
}

function wordOf(seen: SeenRecord | undefined): LastWord | undefined {
  if (seen?.cordonRevision === undefined || seen.held === undefined) return undefined;
  return { cordonRevision: seen.cordonRevision, held: seen.held, notTakingWork: "" };
}

/** Before the first heartbeat, what the hello leaves. */
function freeSlots(live: Live): number {
  return live.pulse?.freeSlots ?? Math.max(0, live.hello.slots - live.hello.held.length);
}
