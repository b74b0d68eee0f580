/** Where a step may run, and why not elsewhere. */
import type { DatasetSpec, EnvironmentSpec, StepSpec } from "../../shared/model/spec.ts";

export interface PlacementFacts {
  environments: readonly EnvironmentSpec[];
  datasets: ReadonlyMap<string, DatasetSpec>;
}

export interface PlacementReason {
  /** The rule that decided: "residency", "holds", "pinned", "unknown-dataset", … */
  policy: string;
  dataset: string | null;
  message: string;
}

export interface EnvironmentVerdict {
  environment: string;
  allowed: boolean;
  reasons: PlacementReason[];
}

/** The port. Fails closed: an error inside a policy denies, and says so. Synchronous and pure. */
export interface Placement {
  /** Digest of the policy set. */
  readonly version: string;
  /** One verdict for each environment in `facts`, in the order of their names. */
  explain(pipeline: string, step: StepSpec, facts: PlacementFacts): EnvironmentVerdict[];
}
