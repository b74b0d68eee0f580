/** What Cedar policies of a site are asked about an offer, and what they answer. Pure. */
import { z } from "zod";
import { digestOfImage } from "../../shared/model/image.ts";
import { type Asked, wordsOf } from "./allow-lists.ts";

const Texts = z.array(z.string());

/** Without the content of files: no policy sees it. */
export const CedarQuestion = z.strictObject({
  pipeline: z.string(),
  /** As the schema in `cedar-policies.ts` names it. */
  context: z.strictObject({
    /** Missing: the pipeline names none, or the control plane does not say. */
    owner: z.string().optional(),
    datasetOwners: Texts,
    executor: z.string(),
    image: z.string(),
    command: z.string(),
    program: z.string(),
    step: z.string(),
    reads: Texts,
    writes: Texts,
    classifications: Texts,
    env: Texts,
    files: Texts,
    outputs: Texts,
    artifacts: Texts,
    network: Texts,
    timeoutMs: z.int(),
  }),
});
export type CedarQuestion = z.infer<typeof CedarQuestion>;

export const CedarAnswer = z.strictObject({ allowed: z.boolean(), message: z.string() });
export type CedarAnswer = z.infer<typeof CedarAnswer>;

/** The port: policies that were found valid. */
export interface CedarPolicies {
  /** Never rejects: what cannot be evaluated is refused. */
  answer(question: CedarQuestion): Promise<CedarAnswer>;
  /** What was asked before is still answered. */
  close(): void;
}

/** @throws request.invalid when a policy does not parse or asks for what there is not */
export type OpenCedar = (file: string, text: string) => Promise<CedarPolicies>;

export function questionOf({ pipeline, step, datasets, files, owners }: Asked): CedarQuestion {
  const { executor } = step;
  const argv = wordsOf(executor);
  return {
    pipeline,
    context: {
      ...(typeof owners?.pipeline === "string" ? { owner: owners.pipeline } : {}),
      datasetOwners: [...new Set(Object.values(owners?.datasets ?? {}))],
      executor: executor.kind,
      image: executor.kind === "container" ? digestOfImage(executor.image) : "",
      command: argv.join(" "),
      program: argv[0] ?? "",
      step: step.id,
      reads: step.reads,
      writes: step.writes,
      classifications: [...new Set(datasets.map(({ classification }) => classification))],
      env: Object.keys(step.env),
      files: Object.keys(files),
      outputs: Object.keys(step.outputs),
      artifacts: Object.keys(step.artifacts),
      network: step.network?.allow ?? [],
      timeoutMs: step.timeoutMs,
    },
  };
}
