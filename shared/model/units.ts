/** Durations and sizes as people write them. */

const DURATION_UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1_000],
  ["ms", 1],
] as const;

/** Eleven digits hold a year in milliseconds. */
export const DURATION_PATTERN = /^(0|[1-9][0-9]{0,10})(ms|s|m|h|d)$/;
export const DURATION_EXPECTED = "a duration such as 500ms, 30s, 5m, 2h or 1d";

/** Milliseconds of a text that fits `DURATION_PATTERN`. */
export function durationMs(text: string): number {
  const [, amount, unit] = DURATION_PATTERN.exec(text) ?? [];
  const factor = DURATION_UNITS.find(([name]) => name === unit)?.[1];
  if (amount === undefined || factor === undefined) {
    throw new TypeError(`${JSON.stringify(text)} is not ${DURATION_EXPECTED}`);
  }
  return Number(amount) * factor;
}

/** The shortest text with one unit: 90000 is `90s`, 120000 is `2m`. */
export function formatDuration(ms: number): string {
  for (const [name, factor] of DURATION_UNITS)
    if (ms >= factor && ms % factor === 0) return `${ms / factor}${name}`;
  return `${ms}ms`;
}

const SIZE_FACTORS: Readonly<Record<string, number>> = {
  B: 1,
  kB: 1_000,
  KB: 1_000,
  MB: 1_000 ** 2,
  GB: 1_000 ** 3,
  KiB: 1_024,
  MiB: 1_024 ** 2,
  GiB: 1_024 ** 3,
};

export const SIZE_PATTERN = /^([1-9][0-9]{0,8}) ?(B|kB|KB|MB|GB|KiB|MiB|GiB)$/;
export const SIZE_EXPECTED = "a size such as 64KiB, 1MiB or 10MB, or a whole number of bytes";

/** Bytes of a number, or of a text that fits `SIZE_PATTERN`. */
export function sizeBytes(size: string | number): number {
  if (typeof size === "number") return size;
  const [, amount, unit = ""] = SIZE_PATTERN.exec(size) ?? [];
  const factor = SIZE_FACTORS[unit];
  if (amount === undefined || factor === undefined) {
    throw new TypeError(`${JSON.stringify(size)} is not ${SIZE_EXPECTED}`);
  }
  return Number(amount) * factor;
}

/** For messages: `64 KiB`, `1.5 MiB`, `300 bytes`. */
export function formatSize(bytes: number): string {
  for (const [name, factor] of [
    ["GiB", 1_024 ** 3],
    ["MiB", 1_024 ** 2],
    ["KiB", 1_024],
  ] as const) {
    if (bytes >= factor) return `${Number((bytes / factor).toFixed(1))} ${name}`;
  }
  return `${bytes} bytes`;
}
