/** Which targets a site lets its steps out to. Pure. */
import { parseTarget, type Target } from "../../shared/model/target.ts";

export const TARGET_RULE_EXPECTED =
  "host:port, where the host may be * or begin with *., and the port may be *, such as db.site.example:5432, *.site.example:443 or 10.20.0.7:*";

const ANY = "*";
const BELOW = "*.";
/** Stands for `*` where a whole target is wanted. */
const SOME_PORT = "1";

interface TargetRule {
  host: string;
  /** Undefined: any. */
  port: number | undefined;
}

export function isTargetRule(text: string): boolean {
  return parseRule(text) !== undefined;
}

/** `*.site.example` is all names below it, and not itself. No `*.` rule speaks of addresses, and `*` speaks of all. */
export function matchesTarget(rule: string, { host, port, isAddress }: Target): boolean {
  const parsed = parseRule(rule);
  if (parsed === undefined || (parsed.port !== undefined && parsed.port !== port)) return false;
  if (parsed.host === ANY || parsed.host === host) return true;
  return !isAddress && parsed.host.startsWith(BELOW) && host.endsWith(parsed.host.slice(1));
}

/** Whether the rule is of this very address: only then may it be one of the host itself. */
export function namesAddress(rule: string, target: Target): boolean {
  return target.isAddress && parseRule(rule)?.host === target.host && matchesTarget(rule, target);
}

function parseRule(text: string): TargetRule | undefined {
  const at = text.lastIndexOf(":");
  const [host, port] = [text.slice(0, at), text.slice(at + 1)];
  if (at < 0) return undefined;
  const stem = host === ANY ? "any" : host.startsWith(BELOW) ? host.slice(BELOW.length) : host;
  const target = parseTarget(`${stem}:${port === ANY ? SOME_PORT : port}`);
  if (target === undefined || (stem !== host && target.isAddress)) return undefined;
  const kept = host === ANY ? ANY : stem === host ? target.host : `${BELOW}${target.host}`;
  return { host: kept, port: port === ANY ? undefined : target.port };
}
