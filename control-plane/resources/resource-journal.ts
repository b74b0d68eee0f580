/** The port behind which resources are kept. */
import type { Plan } from "../../shared/engine/plan.ts";
import type {
  AccessPolicySpec,
  DatasetSpec,
  EnvironmentSpec,
  Kind,
  PipelineSpec,
  PoolSpec,
} from "../../shared/model/spec.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import type { StoredResource } from "../api/services.ts";

export type ResourceChange =
  | { action: "deleted"; kind: Kind; name: string }
  | { action: "set"; kind: "pipeline"; name: string; version: string; signatures?: Envelope[] | undefined }
  | { action: "set"; kind: "dataset"; name: string; spec: DatasetSpec }
  | { action: "set"; kind: "environment"; name: string; spec: EnvironmentSpec }
  | { action: "set"; kind: "pool"; name: string; spec: PoolSpec }
  | { action: "set"; kind: "access-policy"; name: string; spec: AccessPolicySpec };

export interface PipelineVersion {
  version: string;
  appliedAtMs: number;
  appliedBy: string;
}

export interface ResourceJournal {
  /** Sequence of the last apply that is visible: what a change is planned against. */
  readonly seq: number;
  get(kind: Kind, name: string): StoredResource | undefined;
  /** Sorted by name. */
  list(kind: Kind): StoredResource[];
  /** By `kind/name`. */
  all(): ReadonlyMap<string, StoredResource>;
  /** By name, as last applied; those that were deleted since too. */
  pipelinesEver(): ReadonlyMap<string, PipelineSpec>;
  /** Newest first. */
  versionsOf(pipeline: string): PipelineVersion[];
  /** @throws not-found, internal when the stored body does not have its digest */
  load(version: string): Promise<Plan>;
  /** Keeps a pipeline's body; safe to repeat, and harmless when no apply follows. */
  keepVersion(version: string, spec: PipelineSpec): Promise<void>;
  /**
   * Appends one apply if nothing was applied since `expectedSeq`; all or nothing. Resolves when reads see it.
   *
   * @throws conflict when something was: plan again
   */
  append(
    changes: ResourceChange[],
    options: { by: string; atMs: number; expectedSeq: number; id: string },
  ): Promise<void>;
}
