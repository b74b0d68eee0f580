/** What the doctor found, as text for people and as JSON for programs. */

/** `skip`: it cannot be known before something else works. */
export type Level = "ok" | "warn" | "fail" | "skip";

export const CHECKS = [
  "name",
  "proxy",
  "tcp",
  "tls",
  "clock",
  "nats",
  "grpc",
  "identity",
  "disk",
  "sandbox",
  "datasets",
] as const;
export type Check = (typeof CHECKS)[number];

export interface Finding {
  check: Check;
  level: Level;
  /** What was seen, and what to do when that is the agent's own matter. */
  seen: string;
  /** What to send to the network team. */
  ask?: string;
}

/** In the order of `CHECKS`, in which one rests on those before it. */
export function inOrder(findings: readonly Finding[]): Finding[] {
  return [...findings].sort((a, b) => CHECKS.indexOf(a.check) - CHECKS.indexOf(b.check));
}

/** 1 when something fails. */
export function exitCodeOf(findings: readonly Finding[]): 0 | 1 {
  return findings.some(({ level }) => level === "fail") ? 1 : 0;
}

export function asJson(gateway: string, findings: readonly Finding[]): string {
  return `${JSON.stringify({ gateway, ok: exitCodeOf(findings) === 0, checks: findings }, null, 2)}\n`;
}

/** Names in certificates and what a proxy says are of others: they give a terminal no orders. */
const CONTROL_CHARACTERS = /[^\P{Cc}\n]/gu;

export function asText(gateway: string, findings: readonly Finding[]): string {
  const lines = findings.map(({ level, check, seen }) => `${level.padEnd(5)} ${check.padEnd(9)} ${seen}`);
  const asks = [...new Set(findings.flatMap(({ ask }) => (ask === undefined ? [] : [ask])))];
  const failed = findings.filter(({ level }) => level === "fail").map(({ check }) => check);
  return [
    `Gateway ${gateway === "" ? "unknown" : gateway}`,
    "",
    ...lines,
    ...(asks.length === 0 ? [] : ["", "For the network team:", ...asks.map((ask) => `\n${indented(ask)}`)]),
    "",
    failed.length === 0 ? "Nothing is in the way." : `In the way: ${failed.join(", ")}.`,
    "",
  ]
    .join("\n")
    .replace(CONTROL_CHARACTERS, "?");
}

function indented(text: string): string {
  return text
    .split("\n")
    .map((line) => `  ${line}`)
    .join("\n");
}
