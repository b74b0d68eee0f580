/** What the engine needs of a pipeline, indexed once per version and shared by its runs. */
import { InvariantError } from "../errors.ts";
import type { PipelineSpec, StepSpec } from "../model/spec.ts";

export interface Plan {
  readonly spec: PipelineSpec;
  readonly steps: readonly StepSpec[];
  /** Position of a step in `steps`. */
  readonly indexOf: ReadonlyMap<string, number>;
  /** Positions of the steps that need a step. */
  readonly dependents: readonly (readonly number[])[];
}

/** @throws InvariantError when a need is unknown; documents are checked before they become pipelines. */
export function compile(spec: PipelineSpec): Plan {
  const indexOf = new Map(spec.steps.map((step, index) => [step.id, index]));
  const dependents: number[][] = spec.steps.map(() => []);
  spec.steps.forEach((step, index) => {
    for (const need of step.needs) {
      const upstream = indexOf.get(need);
      if (upstream === undefined) throw new InvariantError(`step ${step.id} needs unknown step ${need}`);
      dependents[upstream]!.push(index);
    }
  });
  return { spec, steps: spec.steps, indexOf, dependents };
}
