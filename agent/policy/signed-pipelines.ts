/**
 * The rule that only signed pipelines run here. Pure.
 *
 * The control plane passes signatures on and is not trusted with them: what is started must be a step of a pipeline
 * that a trusted key has signed, as it was signed, and what a run adds to it must be what the author left open.
 */

import type { ParamSpec, ParamValue } from "../../shared/model/spec.ts";
import { formatDuration } from "../../shared/model/units.ts";
import type { AuthorKey } from "../../shared/provenance/author-key.ts";
import { unseal } from "../../shared/provenance/dsse.ts";
import {
  coversStep,
  PIPELINE_PAYLOAD,
  type PipelineStatement,
  readStatement,
  type SignedStep,
} from "../../shared/provenance/signed-pipeline.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import { matchesAny } from "./pattern.ts";

export interface SignedPipelinesRule {
  keys: readonly { name: string; publicKey: AuthorKey; pipelines: readonly string[] }[];
  /** How old a signature may be, whatever it says itself. */
  maxAge?: number | undefined;
}

/** What of an offer is held against the signature: all that decides what is started, with what, and where. */
export type SignedOffer = Pick<
  Offer,
  | "lease"
  | "environment"
  | "pipeline"
  | "version"
  | "step"
  | "files"
  | "params"
  | "inputs"
  | "traceparent"
  | "signed"
>;

/** Of scripts, these are texts that the control plane chooses; held to their shape, they can say nothing. */
const RUN_ID_PATTERN = /^[A-Za-z0-9_-]{1,64}$/;
const TRACEPARENT_PATTERN = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;

/** Empty when it may run. `wallMs`: by the clock of the site. */
export function signatureFaults(rule: SignedPipelinesRule, offer: SignedOffer, wallMs: number): string[] {
  const { signed, pipeline } = offer;
  if (signed === undefined) return [`pipeline ${pipeline} is not signed, and only signed ones run here`];
  const faults: string[] = [];
  for (const { statement, fault } of signatories(rule, signed)) {
    const found = statement === undefined ? [fault] : faultsOf(rule, offer, signed, statement, wallMs);
    // One that holds is enough: others may be for other sites.
    if (found.length === 0) return [];
    faults.push(...found.filter((text) => !faults.includes(text)));
  }
  return faults.length === 0
    ? [`no signature of pipeline ${pipeline} is by a key that is trusted here`]
    : faults;
}

type Signatory = { statement: SignedStatement; fault: "" } | { statement: undefined; fault: string };
interface SignedStatement extends PipelineStatement {
  /** What the key may sign. */
  allowed: readonly string[];
  keyId: string;
}

/** One for each signature by a trusted key. The id only picks the key: who lies in it is found out by the signature. */
function signatories({ keys }: SignedPipelinesRule, { envelopes }: SignedStep): Signatory[] {
  return envelopes.flatMap((envelope) =>
    envelope.signatures.flatMap((signature): Signatory[] => {
      const key = keys.find(({ publicKey }) => publicKey.id === signature.keyid);
      if (key === undefined) return [];
      const { id } = key.publicKey;
      const one = { ...envelope, signatures: [signature] };
      const statement = readStatement(envelope);
      const holds = unseal(one, PIPELINE_PAYLOAD, (message, sig) => key.publicKey.verify(message, sig));
      if (holds === undefined || statement === undefined)
        return [{ statement: undefined, fault: `a signature by key ${id} is not valid` }];
      return [{ statement: { ...statement, allowed: key.pipelines, keyId: id }, fault: "" }];
    }),
  );
}

function faultsOf(
  { maxAge }: SignedPipelinesRule,
  offer: SignedOffer,
  signed: SignedStep,
  statement: SignedStatement,
  wallMs: number,
): string[] {
  const { pipeline, version, step, environment, lease } = offer;
  if (!matchesAny(statement.allowed, statement.name))
    return [`key ${statement.keyId} may not sign pipeline ${statement.name} here`];
  if (statement.name !== pipeline || statement.version !== version)
    return [`what is signed is pipeline ${statement.name} in version ${statement.version}`];
  const { expiresAtMs, signedAtMs } = statement;
  if (expiresAtMs !== undefined && wallMs >= expiresAtMs)
    return [`the signature of pipeline ${pipeline} has expired at ${instant(expiresAtMs)}`];
  if (maxAge !== undefined && wallMs - signedAtMs > maxAge)
    return [
      `the signature of pipeline ${pipeline} is of ${instant(signedAtMs)}, older than ${formatDuration(maxAge)}`,
    ];
  if (!coversStep(statement, step, offer.files, signed))
    return [
      `step ${step.id} is not as it was signed: its command, variables, files, data or more was changed`,
    ];
  if (step.environments.length > 0 && !step.environments.includes(environment))
    return [`step ${step.id} was not signed for environment ${environment}`];
  const faults = [...paramFaults(statement, offer), ...inputFaults(signed, offer)];
  if (lease.stepId !== step.id) faults.push(`the attempt is of step ${lease.stepId} and not of ${step.id}`);
  if (!RUN_ID_PATTERN.test(lease.runId)) faults.push("the run has an id that is none");
  if (!TRACEPARENT_PATTERN.test(offer.traceparent)) faults.push("its traceparent is none");
  return faults;
}

/** Exactly the parameters that were signed: one that is missing could make a script do more as well as one too many. */
function paramFaults({ params }: PipelineStatement, offer: SignedOffer): string[] {
  const names = new Set([...Object.keys(params), ...Object.keys(offer.params)]);
  return [...names].flatMap((name) => {
    const spec = own(params, name);
    const value = own(offer.params, name);
    if (spec === undefined) return [`parameter ${name} was not signed`];
    if (value === undefined) return [`parameter ${name} has no value`];
    return isAllowed(spec, value)
      ? []
      : [`parameter ${name} has a value that its signed type or list does not allow`];
  });
}

function isAllowed({ type, enum: values }: ParamSpec, value: ParamValue): boolean {
  return typeof value === type && (values === undefined || values.some((one) => one === value));
}

/** What is handed to it is what steps said at run time; which, of what type and how large, was signed. */
function inputFaults({ inputs }: SignedStep, offer: SignedOffer): string[] {
  return Object.entries(offer.inputs).flatMap(([step, outputs]) =>
    Object.entries(outputs).flatMap(([name, { type, text = "" }]) => {
      const spec = own(own(inputs, step) ?? {}, name);
      if (spec === undefined) return [`input ${step}/${name} was not signed`];
      const fits = spec.type === type && Buffer.byteLength(text, "utf8") <= spec.maxBytes;
      return fits ? [] : [`input ${step}/${name} is of another type or larger than was signed`];
    }),
  );
}

function own<T>(record: Readonly<Record<string, T>>, key: string): T | undefined {
  return Object.hasOwn(record, key) ? record[key] : undefined;
}

function instant(ms: number): string {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? `${ms} ms` : date.toISOString();
}
