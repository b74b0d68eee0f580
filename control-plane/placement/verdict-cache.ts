/** Remembers verdicts by the content of the question, so that steps that are alike are judged once. */
import type { StepSpec } from "../../shared/model/spec.ts";
import type { EnvironmentVerdict, PlacementFacts } from "./placement.ts";

/** Verdicts kept over all entries. One for each environment of a question, at a few hundred bytes each. */
const VERDICTS_MAX = 20_000;

/**
 * Everything that a verdict depends on, as one string; equal strings mean equal verdicts.
 *
 * Built from content and not from the identity of objects: a dataset whose residency changed in place must
 * not find the verdict of yesterday.
 */
export function verdictKey(pipeline: string, step: StepSpec, facts: PlacementFacts): string {
  let key = part(pipeline) + list(step.environments) + list(step.reads) + list(step.writes);
  for (const name of step.reads) key += datasetPart(name, facts);
  for (const name of step.writes) key += datasetPart(name, facts);
  for (const environment of facts.environments)
    key += part(environment.name) + part(environment.jurisdiction);
  return key;
}

function datasetPart(name: string, facts: PlacementFacts): string {
  const dataset = facts.datasets.get(name);
  if (dataset === undefined) return "?";
  return (
    part(dataset.name) + part(dataset.classification) + list(dataset.residency) + list(dataset.environments)
  );
}

/** The length in front keeps two texts apart whatever they contain. */
function part(text: string): string {
  return `${text.length}:${text}`;
}

function list(texts: readonly string[]): string {
  let out = `[${texts.length}]`;
  for (const text of texts) out += part(text);
  return out;
}

export class VerdictCache {
  readonly #entries = new Map<string, EnvironmentVerdict[]>();
  #verdicts = 0;

  get(key: string): EnvironmentVerdict[] | undefined {
    return this.#entries.get(key);
  }

  /** Freezes the verdicts, since every later caller shares them. The oldest questions give way. */
  set(key: string, verdicts: EnvironmentVerdict[]): void {
    for (const verdict of verdicts) {
      for (const reason of verdict.reasons) Object.freeze(reason);
      Object.freeze(verdict.reasons);
      Object.freeze(verdict);
    }
    this.#entries.set(key, Object.freeze(verdicts) as EnvironmentVerdict[]);
    this.#verdicts += verdicts.length;
    for (const [oldest, held] of this.#entries) {
      if (this.#verdicts <= VERDICTS_MAX || this.#entries.size === 1) break;
      this.#entries.delete(oldest);
      this.#verdicts -= held.length;
    }
  }
}
