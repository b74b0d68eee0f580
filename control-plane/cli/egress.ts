/** Adds up what the egress gates of the sites counted. Pure. */
import type { StepView } from "../api/schemas.ts";

export interface SiteEgress {
  site: string;
  /** Bytes that left, by what they were. */
  output: number;
  log: number;
  error: number;
  artifact: number;
  /** To the targets that steps were let out to. */
  network: number;
  sent: number;
  /** Bytes that policy kept at the site. */
  kept: number;
}

/** By site, in order of their names; of every attempt, failed ones too. */
export function egressBySite(steps: readonly StepView[]): SiteEgress[] {
  const sites = new Map<string, SiteEgress>();
  for (const { environment, egress } of steps.flatMap(({ attempts }) => attempts)) {
    const site = sites.get(environment) ?? {
      site: environment,
      output: 0,
      log: 0,
      error: 0,
      artifact: 0,
      network: 0,
      sent: 0,
      kept: 0,
    };
    for (const { kind, sentBytes, keptBytes } of egress) {
      site[kind] += sentBytes;
      site.sent += sentBytes;
      site.kept += keptBytes;
    }
    sites.set(environment, site);
  }
  return [...sites.values()].sort((a, b) => (a.site < b.site ? -1 : 1));
}

/** What one step had to do with one target, all its attempts together. */
export interface TargetUse {
  step: string;
  site: string;
  /** "others": not on its list. */
  target: string;
  connections: number;
  failures: number;
  sent: number;
  received: number;
}

export function networkUses(steps: readonly StepView[]): TargetUse[] {
  const uses = new Map<string, TargetUse>();
  for (const { id: step, attempts } of steps) {
    for (const { environment: site, egress } of attempts) {
      for (const { kind, name: target, ...figures } of egress) {
        if (kind !== "network") continue;
        const key = JSON.stringify([step, site, target]);
        const none = { step, site, target, connections: 0, failures: 0, sent: 0, received: 0 };
        const use = uses.get(key) ?? none;
        use.connections += figures.connections ?? 0;
        use.failures += figures.failures ?? 0;
        use.sent += figures.sentBytes;
        use.received += figures.receivedBytes ?? 0;
        uses.set(key, use);
      }
    }
  }
  return [...uses.values()];
}
