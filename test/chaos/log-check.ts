/**
 * The numbered lines that steps print: of a finished attempt each one once and in order,
 * except those that its outcome owns up to have dropped; of any other none twice.
 */
import type { RunEvent } from "../../shared/engine/events.ts";
import type { Expectation } from "./workload.ts";

export interface LogPiece {
  step: string;
  attempt: number;
  epoch: number;
  seq: number;
  stream: string;
  text: string;
  droppedBytes: number;
}

type Say = (kind: "log line lost" | "log line doubled", message: string) => void;

export function checkLogs(
  events: readonly RunEvent[],
  steps: Readonly<Record<string, Expectation>>,
  logs: readonly LogPiece[],
  say: Say,
): void {
  const grants = new Map<string, LogPiece[]>();
  const keyOf = (of: { step: string; attempt: number; epoch: number }): string =>
    `${of.step} ${of.attempt}.${of.epoch}`;
  for (const piece of logs) {
    const key = keyOf(piece);
    grants.set(key, [...(grants.get(key) ?? []), piece]);
  }
  for (const [grant, pieces] of grants) {
    const numbers = numbersOf(pieces);
    const doubled = numbers.filter((number, i) => numbers.indexOf(number) !== i);
    if (doubled.length > 0) say("log line doubled", `${grant}: line ${doubled.join(", ")} more than once`);
    if (numbers.some((number, i) => number < (numbers[i - 1] ?? 0)) && doubled.length === 0)
      say("log line lost", `${grant}: lines out of order: ${numbers.join(", ")}`);
  }
  for (const event of events) {
    if (event.kind !== "attempt.finished") continue;
    const { status, exitCode } = event.outcome;
    const complete = status === "succeeded" || (status === "failed" && exitCode !== null);
    const expected = steps[event.step];
    if (!complete || !expected) continue;
    const numbers = new Set(numbersOf(grants.get(keyOf(event)) ?? []));
    const missing = Array.from({ length: expected.lines }, (_, i) => i + 1).filter((i) => !numbers.has(i));
    // What a full disk costs is said in the outcome: known loss is no lost line.
    const missingBytes = missing.reduce(
      (sum, i) => sum + `line ${i} of ${event.attempt}.${event.epoch}\n`.length,
      0,
    );
    if (missingBytes > event.outcome.logDroppedBytes)
      say("log line lost", `${keyOf(event)}: ${missing.length} of ${expected.lines}: ${missing.join(", ")}`);
  }
}

/** Of the lines of standard output, in the order of their sequence. */
function numbersOf(pieces: readonly LogPiece[]): number[] {
  const text = pieces
    .filter(({ stream }) => stream === "stdout")
    .sort((a, b) => a.seq - b.seq)
    .map((piece) => piece.text)
    .join("");
  return [...text.matchAll(/^line (\d+) of /gm)].map(([, number]) => Number(number));
}
