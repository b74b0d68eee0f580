/**
 * What an author signs of a pipeline, and how an agent sees that a step is of it.
 *
 * The signed statement names the pipeline, its version and its parameters, and the root of a Merkle tree (RFC 6962)
 * over its steps. A leaf is the canonical JSON of all that decides what a step does: the step itself, the digests of
 * the files that it brings along, and the outputs that it may be handed. So an offer carries the statement and one
 * path of the tree, however many steps there are.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { canonicalJson, digestOf } from "../model/canonical.ts";
import { Digest, FieldName, Name } from "../model/names.ts";
import { OutputSpec, ParamSpec, type PipelineSpec, type StepSpec } from "../model/spec.ts";
import { Envelope, seal } from "./dsse.ts";
import { fromBase64, fromHex, toHex, utf8Bytes } from "./encoding.ts";
import { inclusionProof, leafHash, type NodeReader, readerOf, rootHash, verifyInclusion } from "./merkle.ts";

export const PIPELINE_PAYLOAD = "application/vnd.insitu.pipeline.v1+json";
/** Envelopes beside one pipeline, and signatures in one of them: each costs an agent a verification. */
export const PIPELINE_ENVELOPES_MAX = 4;
export const PIPELINE_SIGNATURES_MAX = 4;
/** Of the statement, which is in every offer of the pipeline: what grows it are the parameters. */
export const STATEMENT_MAX_BYTES = 16 * 1024;

export const PipelineStatement = z.strictObject({
  v: z.literal(1),
  name: Name,
  version: Digest,
  /** Whatever a run gives is held against it. */
  params: z.record(FieldName, ParamSpec),
  steps: z.int().min(1),
  /** Of the tree over the steps, in their order. */
  root: Digest,
  /** By the clock of who signed. */
  signedAtMs: z.int().min(0),
  /** Missing: for as long as the site trusts the key. */
  expiresAtMs: z.int().min(0).optional(),
});
export type PipelineStatement = z.infer<typeof PipelineStatement>;

/** Outputs that a step may be handed, by the step that gives them. */
export const HandedOutputs = z.record(Name, z.record(FieldName, OutputSpec));
export type HandedOutputs = z.infer<typeof HandedOutputs>;

export const PipelineEnvelopes = z
  .array(
    Envelope.refine(
      ({ payload, signatures }) =>
        payload.length <= Math.ceil(STATEMENT_MAX_BYTES / 3) * 4 &&
        signatures.length <= PIPELINE_SIGNATURES_MAX,
      "larger than a signature of a pipeline is",
    ),
  )
  .min(1)
  .max(PIPELINE_ENVELOPES_MAX);

/** What an offer says of the signatures of its pipeline. */
export const SignedStep = z.strictObject({
  envelopes: PipelineEnvelopes,
  /** Of the step among the pipeline's. */
  index: z.int().min(0),
  inputs: HandedOutputs,
  /** Base64 hashes from the leaf upwards. */
  path: z.array(z.string().max(64)).max(53),
});
export type SignedStep = z.infer<typeof SignedStep>;

/** `files`: content by path, of those that the step names. */
export function stepLeaf(
  step: StepSpec,
  files: Readonly<Record<string, string>>,
  inputs: HandedOutputs,
): Uint8Array {
  const digests = Object.entries(files).map(([path, content]) => [path, textDigest(content)] as const);
  return leafHash(utf8Bytes(canonicalJson({ files: Object.fromEntries(digests), inputs, step })));
}

export interface PipelineTree {
  root: string;
  steps: number;
  /** Undefined when there is no such step. */
  provenStep(id: string): Omit<SignedStep, "envelopes"> | undefined;
}

export function pipelineTree(spec: PipelineSpec): PipelineTree {
  const outputs = new Map(spec.steps.map((step) => [step.id, step.outputs]));
  const inputsOf = (step: StepSpec): HandedOutputs => {
    const given = step.needs.map((need) => [need, outputs.get(need) ?? {}] as const);
    return Object.fromEntries(given.filter(([, names]) => Object.keys(names).length > 0));
  };
  const indexOf = new Map(spec.steps.map((step, index) => [step.id, index]));
  const read: NodeReader = readerOf(
    spec.steps.map((step) => stepLeaf(step, filesOf(spec, step), inputsOf(step))),
  );
  const { length } = spec.steps;
  return {
    steps: length,
    root: `sha256:${toHex(rootHash(read, length))}`,
    provenStep(id) {
      const index = indexOf.get(id);
      if (index === undefined) return undefined;
      const path = inclusionProof(read, index, length).map((hash) => Buffer.from(hash).toString("base64"));
      return { index, inputs: inputsOf(spec.steps[index]!), path };
    },
  };
}

/** Whether the step, with these files and inputs, is the one at its place in the tree of the statement. */
export function coversStep(
  statement: PipelineStatement,
  step: StepSpec,
  files: Readonly<Record<string, string>>,
  { index, inputs, path }: Omit<SignedStep, "envelopes">,
): boolean {
  const root = fromHex(statement.root.slice("sha256:".length));
  const hashes = path.map((text) => fromBase64(text));
  if (!root || hashes.some((hash) => hash === undefined)) return false;
  let leaf: Uint8Array;
  try {
    leaf = stepLeaf(step, files, inputs);
  } catch {
    return false; // no canonical JSON: nobody can have signed it
  }
  return verifyInclusion({ leaf, index, size: statement.steps, root }, hashes as Uint8Array[]);
}

export function statementOf(
  spec: PipelineSpec,
  times: { signedAtMs: number; expiresAtMs?: number | undefined },
): PipelineStatement {
  const { steps, root } = pipelineTree(spec);
  const { signedAtMs, expiresAtMs } = times;
  const version = digestOf(spec);
  const statement = { v: 1 as const, name: spec.name, version, params: spec.params, steps, root, signedAtMs };
  return expiresAtMs === undefined ? statement : { ...statement, expiresAtMs };
}

export function sealStatement(
  statement: PipelineStatement,
  signer: { keyid: string; sign: (message: Uint8Array) => Uint8Array },
): Envelope {
  return seal(PIPELINE_PAYLOAD, utf8Bytes(canonicalJson(statement)), signer);
}

/** What the envelope says, whoever signed it. Undefined when it is no statement about a pipeline. */
export function readStatement({ payloadType, payload }: Envelope): PipelineStatement | undefined {
  if (payloadType !== PIPELINE_PAYLOAD) return undefined;
  const bytes = fromBase64(payload);
  if (!bytes || bytes.length > STATEMENT_MAX_BYTES) return undefined;
  try {
    return PipelineStatement.safeParse(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)))
      .data;
  } catch {
    return undefined; // not JSON
  }
}

/** Whether two statements differ in their times alone: both are about the same version of the same pipeline. */
export function saysTheSame(a: PipelineStatement, b: PipelineStatement): boolean {
  const { signedAtMs, expiresAtMs } = a;
  return canonicalJson(a) === canonicalJson({ ...b, signedAtMs, expiresAtMs });
}

function filesOf(spec: PipelineSpec, step: StepSpec): Record<string, string> {
  return Object.fromEntries(step.files.map((path) => [path, spec.files[path] ?? ""]));
}

function textDigest(text: string): string {
  return `sha256:${createHash("sha256").update(text, "utf8").digest("hex")}`;
}
