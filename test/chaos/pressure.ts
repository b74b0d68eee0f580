/** Whether the machine kept up: what is late because of it is no fault of those who were late. */
import { readFileSync } from "node:fs";
import { type Clock, systemClock } from "../../shared/system.ts";

const EVERY_MS = 10_000;
const FILE = "/proc/pressure/cpu";

export interface Pressure {
  /** From the start of the faults. */
  atMs: number;
  /** Of the ten seconds before, in which somebody waited for a processor; null where the kernel does not say. */
  waitedPercent: number | null;
}

/** Looks every ten seconds until it is disposed of. */
export class PressureGauge implements Disposable {
  readonly samples: Pressure[] = [];
  readonly #timer: ReturnType<Clock["every"]>;

  constructor(nowMs: () => number) {
    this.#timer = systemClock.every(EVERY_MS, () => {
      this.samples.push({ atMs: nowMs(), waitedPercent: waitedPercent(readPressure()) });
    });
  }

  [Symbol.dispose](): void {
    this.#timer.cancel();
  }
}

/** From `some avg10=97.75 avg60=…`, of the kernel's Documentation/accounting/psi.rst. */
export function waitedPercent(text: string | undefined): number | null {
  const match = /^some avg10=([\d.]+)/m.exec(text ?? "");
  return match ? Number(match[1]) : null;
}

/** For the report; empty where nothing is known. */
export function pressureLine(samples: readonly Pressure[]): string {
  const known = samples.flatMap(({ waitedPercent: percent }) => (percent === null ? [] : [percent]));
  if (known.length === 0) return "";
  known.sort((a, b) => a - b);
  const median = known[Math.floor(known.length / 2)]!;
  return `Somebody waited for a processor ${median.toFixed(0)} % of the time (median of ten seconds), ${known.at(-1)!.toFixed(0)} % at worst.`;
}

function readPressure(): string | undefined {
  try {
    return readFileSync(FILE, "utf8");
  } catch {
    return undefined; // a kernel without it
  }
}
