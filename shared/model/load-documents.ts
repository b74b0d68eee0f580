/** From texts to resources: every error of every file at once, each with its place. */
import type { z } from "zod";
import { readStatement, saysTheSame, statementOf } from "../provenance/signed-pipeline.ts";
import {
  type DocumentError,
  type DocumentPath,
  inOrder,
  type Position,
  pathText,
} from "./document-errors.ts";
import { type AnyDocument, DOCUMENT_SCHEMAS, isRelativePath } from "./documents.ts";
import { type Explained, explainIssue, valueAt } from "./explain-issue.ts";
import { didYouMean } from "./nearest.ts";
import { ERRORS_PER_DOCUMENT_MAX, type ParsedDocument, parseYaml } from "./parse-yaml.ts";
import { KINDS, type Kind, type Resource } from "./spec.ts";
import { normalPath, retrySpec, specOf } from "./specs.ts";
import { formatSize } from "./units.ts";

export const STEPS_MAX = 20_000;
/** Content of all files of one pipeline together: each offer carries those of its step. */
export const FILES_MAX_BYTES = 512 * 1024;
export type LocatedResource = Resource & {
  file: string;
  /** As it was written, before sets were sorted and defaults filled in: what paths point into. */
  document: AnyDocument;
  locate(path: DocumentPath, on?: "key" | "value"): Position;
};

export interface LoadedDocuments {
  resources: LocatedResource[];
  errors: DocumentError[];
  /** Content of every file that steps name, by the path that `readAttachment` was asked for. */
  attachments: Record<string, string>;
  /** Documents with errors whose kind and name can still be read: they are not unknown, only wrong. */
  broken: { kind: Kind; name: string }[];
}

export interface DocumentSource {
  files: readonly { file: string; text: string }[];
  /** Content by the document's directory joined with the step's path; undefined when there is no such file. */
  readAttachment(path: string): string | undefined;
  /** Signatures of another version are no error: they are about to be replaced. */
  staleSignatures?: "allowed";
}

/** Never throws for what is in the documents. */
export function loadDocuments(source: DocumentSource): LoadedDocuments {
  const loaded: LoadedDocuments = { resources: [], errors: [], attachments: {}, broken: [] };
  for (const { file, text } of source.files) {
    const { documents, errors } = parseYaml(file, text);
    for (const error of errors) loaded.errors.push(error);
    for (const parsed of documents) loadOne(file, parsed, source, loaded);
  }
  loaded.errors = inOrder(loaded.errors);
  return loaded;
}

function loadOne(
  file: string,
  parsed: ParsedDocument,
  source: DocumentSource,
  loaded: LoadedDocuments,
): void {
  const faults: Explained[] = [];
  const document = readDocument(parsed.value, faults);
  let resource: Resource | undefined;
  if (document !== undefined) {
    checkMeaning(document, faults);
    const files = document.kind === "pipeline" ? collectFiles(file, document, source, loaded, faults) : {};
    if (faults.length === 0) resource = specOf(document, files);
    if (resource?.kind === "pipeline" && source.staleSignatures === undefined) {
      checkSignatures(document, resource, faults);
      if (faults.length > 0) resource = undefined;
    }
  }
  if (resource !== undefined && document !== undefined) {
    loaded.resources.push({ ...resource, file, document, locate: parsed.locate });
    return;
  }
  const kind = valueAt(parsed.value, ["kind"]);
  const name = valueAt(parsed.value, ["name"]);
  if (isKind(kind) && typeof name === "string") loaded.broken.push({ kind, name });
  for (const { path, on, ...rest } of faults.slice(0, ERRORS_PER_DOCUMENT_MAX)) {
    loaded.errors.push({ file, ...parsed.locate(path, on), path: pathText(path), ...rest });
  }
  const more = faults.length - ERRORS_PER_DOCUMENT_MAX;
  if (more > 0) {
    const message = `${more} more errors in this document are not shown`;
    // Where the last one is that is shown, so that it is read after them.
    const { line, column } = loaded.errors.at(-1) ?? parsed.locate([]);
    loaded.errors.push({ file, line, column, path: "", message, code: "limit.errors" });
  }
}

function isKind(kind: unknown): kind is Kind {
  return KINDS.some((known) => known === kind);
}

/** Undefined when it does not fit the schema of its kind. */
function readDocument(value: unknown, faults: Explained[]): AnyDocument | undefined {
  const kinds = `one of ${KINDS.join(", ")}`;
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    const message = `a document must be a mapping with kind and name; this is ${Array.isArray(value) ? "a list" : "a single value"}`;
    faults.push({ path: [], on: "value", message, code: "value.invalid" });
    return undefined;
  }
  const kind = valueAt(value, ["kind"]);
  if (!isKind(kind)) {
    const message =
      kind === undefined ? `kind is missing; it must be ${kinds}` : `kind is '${kind}'; it must be ${kinds}`;
    const hint = typeof kind === "string" ? didYouMean(kind, KINDS) : {};
    faults.push({ path: ["kind"], on: "value", message, expected: kinds, code: "kind.unknown", ...hint });
    return undefined;
  }
  const steps = valueAt(value, ["steps"]);
  if (Array.isArray(steps) && steps.length > STEPS_MAX) {
    const message = `the pipeline has ${steps.length} steps; ${STEPS_MAX} are allowed`;
    faults.push({ path: ["steps"], on: "key", message, code: "limit.steps" });
    return undefined;
  }
  const schema: z.ZodType<AnyDocument> = DOCUMENT_SCHEMAS[kind];
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const keysAt = (path: DocumentPath): readonly string[] => keysOf(schema, path);
  for (const issue of result.error.issues)
    for (const fault of explainIssue(issue, value, keysAt)) faults.push(fault);
  return undefined;
}

/** What a schema of one field cannot say. */
function checkMeaning(document: AnyDocument, faults: Explained[]): void {
  if (document.kind !== "pipeline") return;
  const fault = (path: DocumentPath, message: string, hint?: string): void => {
    faults.push({
      path,
      on: "value",
      message,
      code: "value.invalid",
      ...(hint === undefined ? {} : { hint }),
    });
  };
  for (const [name, { type, default: fallback, enum: values }] of Object.entries(document.params ?? {})) {
    const at = ["params", name];
    if (fallback !== undefined && typeof fallback !== type) {
      fault(
        [...at, "default"],
        `the default of parameter ${name} is ${JSON.stringify(fallback)}; its type is ${type}`,
      );
    } else if (fallback !== undefined && values && !values.some((value) => value === fallback)) {
      fault([...at, "default"], `the default of parameter ${name} is none of ${values.join(", ")}`);
    }
    const odd = (values ?? []).findIndex((value) => typeof value !== type);
    if (odd >= 0)
      fault(
        [...at, "enum", odd],
        `a value of parameter ${name} is ${JSON.stringify(values?.[odd])}; its type is ${type}`,
      );
  }
  for (const [index, step] of document.steps.entries()) {
    const at = ["steps", index];
    const [first, second] = (["run", "container", "uses"] as const).filter((key) => step[key] !== undefined);
    if (first === undefined) {
      fault(
        at,
        `step ${step.id} has nothing to do`,
        "give it 'run' or 'container', or 'uses: noop' when it only joins others",
      );
    } else if (second !== undefined) {
      fault([...at, second], `step ${step.id} has both '${first}' and '${second}'; only one can be`);
    }
    const retry = retrySpec(step.retries ?? 0);
    if (retry.backoffMs > retry.backoffMaxMs) {
      fault(
        [...at, "retries"],
        `step ${step.id} has a backoff that is longer than its maxBackoff`,
        "raise maxBackoff (default 1m)",
      );
    }
  }
}

/** Whether they are about the pipeline as it stands here. Who may sign it, the sites decide that run it. */
function checkSignatures(
  document: AnyDocument,
  { spec }: Extract<Resource, { kind: "pipeline" }>,
  faults: Explained[],
): void {
  if (document.kind !== "pipeline" || document.signatures === undefined) return;
  if (document.signatures.length === 0) return;
  const current = statementOf(spec, { signedAtMs: 0 });
  for (const [index, envelope] of document.signatures.entries()) {
    const statement = readStatement(envelope);
    if (statement !== undefined && saysTheSame(statement, current)) continue;
    const message =
      statement === undefined
        ? `the payload of signature ${index + 1} is no statement about a pipeline`
        : `signature ${index + 1} is of pipeline ${statement.name} in version ${statement.version}, and this is ${spec.name} in version ${current.version}`;
    const hint = "sign it anew with `insitu sign`, or take the signature out";
    faults.push({ path: ["signatures", index], on: "value", message, code: "signature.stale", hint });
  }
}

/** Content of the files that the steps name, by normal path. */
function collectFiles(
  file: string,
  document: Extract<AnyDocument, { kind: "pipeline" }>,
  source: DocumentSource,
  loaded: LoadedDocuments,
  faults: Explained[],
): Record<string, string> {
  const files = new Map<string, string>();
  for (const [path, content] of Object.entries(document.files ?? {})) files.set(normalPath(path), content);
  const missing = new Set<string>();
  for (const [index, step] of document.steps.entries()) {
    for (const [position, named] of (step.files ?? []).entries()) {
      const path = normalPath(named);
      if (files.has(path) || !isRelativePath(path)) continue;
      const joined = joinDirectory(file, path);
      const content = missing.has(path) ? undefined : source.readAttachment(joined);
      const at = ["steps", index, "files", position];
      if (content === undefined) {
        missing.add(path);
        const message = `step ${step.id} brings the file ${path}, which does not exist (looked for ${joined})`;
        faults.push({ path: at, on: "value", message, code: "file.missing" });
      } else if (/\0|\uFFFD|\p{Surrogate}/u.test(content)) {
        const message = `step ${step.id} brings the file ${path}, which is not UTF-8 text`;
        faults.push({ path: at, on: "value", message, code: "file.binary" });
        files.set(path, "");
      } else {
        files.set(path, content);
        loaded.attachments[joined] = content;
      }
    }
  }
  let bytes = 0;
  for (const content of files.values()) bytes += Buffer.byteLength(content, "utf8");
  if (bytes > FILES_MAX_BYTES) {
    const message = `the files of the pipeline have ${formatSize(bytes)} together; ${formatSize(FILES_MAX_BYTES)} are allowed`;
    faults.push({ path: [document.files ? "files" : "steps"], on: "key", message, code: "limit.files" });
  }
  return Object.fromEntries([...files].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** The path that an attachment is asked for by: the document's directory, then the path of the step. */
function joinDirectory(file: string, path: string): string {
  const cut = file.lastIndexOf("/");
  return cut < 0 ? path : `${file.slice(0, cut)}/${path}`;
}

/** Keys that a schema allows in the mapping at a path: for hints alone. */
function keysOf(schema: z.core.$ZodType, path: DocumentPath): string[] {
  const def = (schema as z.ZodType).def as unknown as {
    type: string;
    innerType?: z.core.$ZodType;
    options?: z.core.$ZodType[];
    shape?: Record<string, z.core.$ZodType>;
    element?: z.core.$ZodType;
    valueType?: z.core.$ZodType;
  };
  if (def.innerType) return keysOf(def.innerType, path);
  if (def.options) return def.options.flatMap((option) => keysOf(option, path));
  const [first, ...rest] = path;
  if (first === undefined) return Object.keys(def.shape ?? {});
  const next = def.shape?.[String(first)] ?? def.element ?? def.valueType;
  return next ? keysOf(next, rest) : [];
}
