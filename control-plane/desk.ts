/** Placement's view of the rest: resources, policies and the fleet as they are now. */
import type { DatasetSpec, DisconnectSpec, EnvironmentSpec, PoolSpec } from "../shared/model/spec.ts";
import type { Envelope } from "../shared/provenance/dsse.ts";
import type { Fleet } from "./fleet/fleet-service.ts";
import { chooseEnvironment, type EnvironmentLoad } from "./placement/choose.ts";
import type { Placement } from "./placement/placement.ts";
import { withSandbox } from "./placement/with-sandbox.ts";
import type { Resources } from "./resources/resource-service.ts";
import type { PlacementDesk } from "./runs/ports.ts";
import type { ResourceLog } from "./store/resource-log.ts";

/** The facts that placement rests on, kept until something changes. */
export class Desk implements PlacementDesk {
  readonly #placement: Placement;
  readonly #resources: Resources;
  readonly #log: ResourceLog;
  readonly #fleet: Fleet;
  readonly #outstanding: (environment: string) => number;
  #facts: ReturnType<Resources["facts"]> | undefined;

  constructor(
    placement: Placement,
    resources: Resources,
    log: ResourceLog,
    fleet: Fleet,
    outstanding: (environment: string) => number,
  ) {
    this.#placement = placement;
    this.#resources = resources;
    this.#log = log;
    this.#fleet = fleet;
    this.#outstanding = outstanding;
  }

  get policyVersion(): string {
    return this.#placement.version;
  }

  refresh(): void {
    this.#facts = undefined;
  }

  explain(...[pipeline, step]: Parameters<PlacementDesk["explain"]>): ReturnType<PlacementDesk["explain"]> {
    this.#facts ??= this.#resources.facts();
    const verdicts = this.#placement.explain(pipeline, step, this.#facts);
    return withSandbox(verdicts, step, {
      classificationOf: (dataset) => this.classificationOf(dataset),
      agentsOf: (environment) => this.#fleet.agentsOf(environment),
    });
  }

  choose(...[verdicts]: Parameters<PlacementDesk["choose"]>): string | null {
    const loads = new Map<string, EnvironmentLoad>();
    for (const { environment, allowed } of verdicts) {
      if (!allowed) continue;
      const agents = this.#fleet.agentsOf(environment).filter(({ cordon }) => cordon === null);
      const freeSlots = agents.reduce((sum, agent) => sum + agent.freeSlots, 0);
      loads.set(environment, {
        agents: agents.length,
        freeSlots,
        outstandingOffers: this.#outstanding(environment),
      });
    }
    return chooseEnvironment(verdicts, loads);
  }

  disconnectOf(environment: string): DisconnectSpec | undefined {
    return (this.#log.get("environment", environment)?.spec as EnvironmentSpec | undefined)?.disconnect;
  }

  signaturesOf(version: string): readonly Envelope[] {
    return this.#log.signaturesOf(version);
  }

  poolCapacity(pool: string): number | undefined {
    return (this.#log.get("pool", pool)?.spec as PoolSpec | undefined)?.capacity;
  }

  /** A dataset that has been deleted meanwhile is treated as the most secret one. */
  classificationOf(dataset: string): DatasetSpec["classification"] {
    return (this.#log.get("dataset", dataset)?.spec as DatasetSpec | undefined)?.classification ?? "secret";
  }

  ownerOf(dataset: string): string | undefined {
    return (this.#log.get("dataset", dataset)?.spec as DatasetSpec | undefined)?.owner;
  }
}
