/** What a bundle says of pipelines, datasets, environments and policies, held against the digests in the ledger. */
import { digestOf } from "../../../shared/model/canonical.ts";
import { expandResidency } from "../../../shared/model/jurisdictions.ts";
import type { DatasetSpec, EnvironmentSpec } from "../../../shared/model/spec.ts";
import type { LedgerDecision } from "../../../shared/provenance/ledger-entry.ts";
import { type AttemptBook, type KnownAttempt, nameOf } from "./attempt-book.ts";
import type { Findings } from "./findings.ts";
import type { RecordOf } from "./records.ts";

/** Digested once, for all attempts of it. */
interface KnownVersion {
  name: string;
  steps: ReadonlyMap<string, { step: RecordOf<"pipeline">["spec"]["steps"][number]; digest: string }>;
}

type Applied = Extract<LedgerDecision, { kind: "resources.applied" }>;
export interface Change {
  atMs: number;
  leaf: number;
  by: string;
  digest: string | null;
}

/** Two streams are written to the ledger beside each other: around a change, either state may have held. */
const CHANGE_MARGIN_MS = 5_000;

export class FactsCheck {
  readonly #findings: Findings;
  readonly #pipelines = new Map<string, KnownVersion>();
  readonly #specs = new Map<string, DatasetSpec | EnvironmentSpec>();
  readonly policies = new Set<string>();
  /** `kind/name` → what was applied, in its order. */
  readonly changes = new Map<string, Change[]>();

  constructor(findings: Findings) {
    this.#findings = findings;
  }

  applied(leaf: number, atMs: number, { by, changes }: Applied): void {
    for (const { kind, name, digest } of changes) {
      const known = this.changes.get(`${kind}/${name}`);
      const change = { atMs, leaf, by, digest };
      if (known) known.push(change);
      else this.changes.set(`${kind}/${name}`, [change]);
    }
  }

  pipeline({ version, spec }: RecordOf<"pipeline">): void {
    const wrong = digestOf(spec) === version ? undefined : `its digest is ${digestOf(spec)}`;
    this.#findings.look("pipeline", `version ${version}`, wrong);
    if (wrong === undefined)
      this.#pipelines.set(version, {
        name: spec.name,
        steps: new Map(spec.steps.map((step) => [step.id, { step, digest: digestOf(step) }])),
      });
  }

  /** Believed when it is what was applied last before an attempt: looked at then. */
  resource({ kind, spec }: RecordOf<"dataset"> | RecordOf<"environment">): void {
    this.#specs.set(`${kind}/${spec.name}/${digestOf(spec)}`, spec);
  }

  policy({ version, schema, rules }: RecordOf<"policy">): void {
    const wrong = digestOf({ schema, rules }) === version ? undefined : "its text has another digest";
    this.#findings.look("policy", `policy ${version}`, wrong);
    if (wrong === undefined) this.policies.add(version);
  }

  /** Of attempts that read or write the dataset. */
  finish(book: AttemptBook, dataset: string): void {
    const missing = new Map<string, number>();
    const count = (what: string): void => void missing.set(what, (missing.get(what) ?? 0) + 1);
    for (const known of book.attempts.values()) {
      const { placed } = known;
      if (!placed) continue;
      const touches = placed.reads.includes(dataset) || placed.writes.includes(dataset);
      const spec = this.#pipelines.get(placed.version);
      if (spec) this.#findings.look("pipeline", nameOf(known.key), notAsVersion(known, spec));
      if (!touches) continue;
      if (!spec) count(`version ${placed.version}: its text is not in the bundle`);
      if (!this.policies.has(placed.policyVersion))
        count(`policy ${placed.policyVersion}: its rules are not in the bundle`);
      const states = this.#statesThen(placed.atMs, dataset, placed.environment);
      if (states === undefined)
        count(`dataset ${dataset} or environment ${placed.environment} as it was then is not in the bundle`);
      else this.#findings.look("residency", nameOf(known.key), notAllowed(states, placed.environment));
    }
    for (const [what, attempts] of missing) {
      const check = what.startsWith("version")
        ? "pipeline"
        : what.startsWith("policy")
          ? "policy"
          : "residency";
      this.#findings.add("unchecked", check, what, `attempts of the dataset that rest on it: ${attempts}`);
    }
  }

  #statesThen(
    atMs: number,
    dataset: string,
    environment: string,
  ): { datasets: DatasetSpec[]; environments: EnvironmentSpec[] } | undefined {
    const datasets = this.#then(`dataset/${dataset}`, atMs);
    const environments = this.#then(`environment/${environment}`, atMs);
    if (!datasets || !environments) return undefined;
    return { datasets: datasets as DatasetSpec[], environments: environments as EnvironmentSpec[] };
  }

  /** Every state that may have held; undefined when one of them is not there. */
  #then(resource: string, atMs: number): (DatasetSpec | EnvironmentSpec)[] | undefined {
    const changes = this.changes.get(resource) ?? [];
    const last = changes.findLastIndex((change) => change.atMs <= atMs - CHANGE_MARGIN_MS);
    const near = changes.filter(
      (change, at) => at === last || Math.abs(change.atMs - atMs) < CHANGE_MARGIN_MS,
    );
    const specs = near.flatMap(({ digest }) => {
      const spec = digest === null ? undefined : this.#specs.get(`${resource}/${digest}`);
      return spec ? [spec] : [];
    });
    return near.length > 0 && specs.length === near.length ? specs : undefined;
  }
}

/** What of an attempt is not as its version of the pipeline says. */
function notAsVersion({ key, placed, receipts }: KnownAttempt, version: KnownVersion): string | undefined {
  const { step, digest } = version.steps.get(key.stepId) ?? {};
  if (version.name !== placed?.pipeline)
    return `the version is of ${version.name}, and ${placed?.pipeline} was placed`;
  if (!step) return `the version has no step ${key.stepId}`;
  for (const side of ["reads", "writes"] as const)
    if (JSON.stringify(step[side]) !== JSON.stringify(placed[side]))
      return `the version says that the step ${side} ${JSON.stringify(step[side])}`;
  const environments = step.environments;
  if (Array.isArray(environments) && environments.length > 0 && !environments.includes(placed.environment))
    return `the version does not let the step run in ${placed.environment}`;
  const other = receipts.find(({ receipt }) => receipt.step.digest !== digest);
  return other ? `the receipt in leaf ${other.leaf} is of another step than the version has` : undefined;
}

/** Holds when one of the states that may have held allows it. */
function notAllowed(
  { datasets, environments }: { datasets: DatasetSpec[]; environments: EnvironmentSpec[] },
  environment: string,
): string | undefined {
  const fits = datasets.some((dataset) =>
    environments.some(
      ({ jurisdiction }) =>
        dataset.environments.includes(environment) && expandResidency(dataset.residency).has(jurisdiction),
    ),
  );
  if (fits) return undefined;
  const [dataset] = datasets;
  return `${environment} (${environments[0]!.jurisdiction}): the dataset is held by ${dataset!.environments.join(", ") || "nobody"} and must stay in ${dataset!.residency.join(", ")}`;
}
