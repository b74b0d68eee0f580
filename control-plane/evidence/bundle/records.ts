/**
 * A bundle: what an auditor takes away about a dataset, as lines of canonical JSON, each a record.
 *
 * First `bundle`, then `ledger`; then the leaves of the ledger from the first to the last, in their order, where `nodes`
 * stand for leaves that are left out; then what the leaves speak of; `end` last. Nothing in it is trusted for being there.
 */
import { z } from "zod";
import { canonicalJson } from "../../../shared/model/canonical.ts";
import { DatasetSpec, EnvironmentSpec } from "../../../shared/model/spec.ts";

const AtMs = z.int().min(0);

const Header = z.strictObject({
  kind: z.literal("bundle"),
  v: z.literal(1),
  dataset: z.string(),
  /** By the control plane's clock; null: without that limit. */
  fromMs: AtMs.nullable(),
  toMs: AtMs.nullable(),
  madeAtMs: AtMs,
  software: z.string(),
});

const Ledger = z.strictObject({
  kind: z.literal("ledger"),
  /** C2SP signed note, and the key as the server gave it. */
  checkpoint: z.string(),
  verifierKey: z.string(),
  trustDomain: z.string(),
  rootsPem: z.array(z.string()),
});

export const BundleRecord = z.discriminatedUnion("kind", [
  Header,
  Ledger,
  /** Base64, which `readLeaf` looks at. */
  z.strictObject({ kind: z.literal("leaf"), leaf: z.string() }),
  /** Complete subtrees, one after the other: 2 to the power of `level` leaves each. */
  z.strictObject({
    kind: z.literal("nodes"),
    nodes: z.array(z.strictObject({ level: z.int().min(0).max(52), hash: z.base64() })),
  }),
  /** A version of a pipeline: `spec` is one when its digest is `version`. */
  z.strictObject({
    kind: z.literal("pipeline"),
    version: z.string(),
    spec: z.looseObject({ name: z.string(), steps: z.array(z.looseObject({ id: z.string() })) }),
  }),
  z.strictObject({ kind: z.literal("dataset"), spec: DatasetSpec }),
  z.strictObject({ kind: z.literal("environment"), spec: EnvironmentSpec }),
  /** Rules of placement, in Cedar. */
  z.strictObject({
    kind: z.literal("policy"),
    version: z.string(),
    schema: z.string(),
    rules: z.record(z.string(), z.string()),
  }),
  /** As the server says: the ledger has no leaves about it. */
  z.strictObject({
    kind: z.literal("revocation"),
    agent: z.string(),
    atMs: AtMs,
    by: z.string(),
    reason: z.string(),
  }),
  /** `records`: those before this one. */
  z.strictObject({ kind: z.literal("end"), records: z.int().min(0) }),
]);
export type BundleRecord = z.infer<typeof BundleRecord>;
export type RecordOf<K extends BundleRecord["kind"]> = Extract<BundleRecord, { kind: K }>;

/** Longest line: a leaf in base64, or a pipeline with its files. */
export const LINE_MAX_CHARS = 16 * 1024 * 1024;

export function formatRecord(record: BundleRecord): string {
  return `${canonicalJson(record)}\n`;
}

/** A line without its end as a record, or why it is none. */
export function parseRecord(line: string): BundleRecord | string {
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch {
    return "it is not JSON";
  }
  const parsed = BundleRecord.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  return `${issue?.path.join(".") || "it"}: ${issue?.message}`;
}
