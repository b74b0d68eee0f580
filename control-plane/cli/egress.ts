/** Adds up what the egress gates of the sites counted. Pure. */
import type { StepView } from "../api/schemas.ts";

export interface SiteEgress {
  site: string;
  /** Bytes that left, by what they were. */
  output: number;
  log: number;
  error: number;
  artifact: number;
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
