/** What the verification of a bundle looks at, and what it finds. */

export const CHECKS = {
  format: "the bundle is whole, and its lines are records",
  checkpoint: "the checkpoint is signed by the key of the ledger",
  kept: "the ledger begins with each checkpoint that was kept earlier",
  tree: "the leaves are those of the checkpoint: all of them, in their order, unchanged",
  order: "each leaf comes after the one before it in its stream, and none is there twice",
  signature: "each receipt is signed by a key that leads, over its agent's certificate, to a trusted root",
  validity: "certificates were valid when the attempts ended",
  revocation: "nothing was taken from an agent after it was revoked",
  attempt: "each receipt is of an attempt as it was placed: where, version, step, policy, datasets, agent",
  epoch: "epochs of a step grow, and one outcome of an attempt counts",
  receipt: "each attempt has the receipt that the ledger says it has, once",
  time: "agents' times fit the control plane's",
  veto: "nothing was run that the site's policy had refused",
  pipeline: "versions of pipelines are what their digests say, and of their steps what was placed",
  policy: "rules of placement are what their digests say",
  residency: "attempts were placed where the dataset was held, and may be, by law",
} as const;
export type Check = keyof typeof CHECKS;

/** `failed`: it contradicts itself. `open`: an item for a person. `unchecked`: what it takes to check it is not there. */
export type Level = "failed" | "open" | "unchecked";

export interface Finding {
  level: Level;
  check: Check;
  /** The leaf, the line, the attempt, the agent or the version. */
  where: string;
  detail: string;
}

/** Of each level. What is beyond is counted. */
const KEPT_MAX = 10_000;

export class Findings {
  readonly kept: Finding[] = [];
  readonly counts: Record<Level, number> = { failed: 0, open: 0, unchecked: 0 };
  readonly #passed = new Map<Check, number>();
  readonly #failed = new Map<Check, number>();

  passed(check: Check, times = 1): void {
    this.#passed.set(check, (this.#passed.get(check) ?? 0) + times);
  }

  add(level: Level, check: Check, where: string, detail: string): void {
    this.counts[level] += 1;
    if (level === "failed") this.#failed.set(check, (this.#failed.get(check) ?? 0) + 1);
    if (this.counts[level] <= KEPT_MAX) this.kept.push({ level, check, where, detail });
  }

  /** Counts as passed when nothing is wrong with it, else as a failure. */
  look(check: Check, where: string, wrong: string | undefined): void {
    if (wrong === undefined) this.passed(check);
    else this.add("failed", check, where, wrong);
  }

  get table(): { check: Check; what: string; passed: number; failed: number }[] {
    return (Object.keys(CHECKS) as Check[]).map((check) => ({
      check,
      what: CHECKS[check],
      passed: this.#passed.get(check) ?? 0,
      failed: this.#failed.get(check) ?? 0,
    }));
  }
}
