/** Text for a terminal: colour, width, and what may be shown of strings that others wrote. */

const CODES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, blue: 34, magenta: 35, cyan: 36 } as const;
export type Hue = keyof typeof CODES;

/** Wraps text in a colour, or does nothing. */
export type Paint = (hue: Hue, text: string) => string;

const ESC = "\u001b";
const plain: Paint = (_hue, text) => text;
const coloured: Paint = (hue, text) => (text === "" ? "" : `${ESC}[${CODES[hue]}m${text}${ESC}[0m`);

export function painter(color: boolean): Paint {
  return color ? coloured : plain;
}

const SGR = new RegExp(`${ESC}\\[[0-9;]*m`, "g");
/** C0 but tab and newline, DEL, C1, and the marks that reorder text (CVE-2021-42574). */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
const UNPRINTABLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Makes a string that somebody else wrote harmless for a terminal: control characters become visible. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (char) => {
    const code = char.charCodeAt(0);
    if (code < 0x20) return `^${String.fromCharCode(code + 64)}`;
    return code === 0x7f ? "^?" : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** The same on one line. */
export function oneLine(text: string): string {
  return printable(
    text
      .trim()
      .replace(/\s*[\r\n]+\s*/g, " · ")
      .replace(/\t/g, " "),
  );
}

/** Cells that a text takes, colour not counted. */
export function widthOf(text: string): number {
  let width = 0;
  for (const char of text.replace(SGR, "")) width += cellsOf(char.codePointAt(0)!);
  return width;
}

function cellsOf(code: number): number {
  if (code < 0x300) return 1;
  if (code <= 0x36f || code === 0x200d || (code >= 0xfe00 && code <= 0xfe0f)) return 0;
  const wide =
    (code >= 0x1100 && code <= 0x115f) ||
    (code >= 0x2e80 && code <= 0xa4cf) ||
    (code >= 0xac00 && code <= 0xd7a3) ||
    (code >= 0xf900 && code <= 0xfaff) ||
    (code >= 0xfe30 && code <= 0xfe6f) ||
    (code >= 0xff00 && code <= 0xff60) ||
    (code >= 0x1f300 && code <= 0x1faff) ||
    (code >= 0x20000 && code <= 0x3fffd);
  return wide ? 2 : 1;
}

/** Cuts to `width` cells, with an ellipsis; colour codes survive and are closed. */
export function cut(text: string, width: number): string {
  if (widthOf(text) <= width) return text;
  if (width <= 0) return "";
  let used = 0;
  let result = "";
  let painted = false;
  for (const part of text.split(new RegExp(`(${ESC}\\[[0-9;]*m)`))) {
    if (part.startsWith(`${ESC}[`)) {
      result += part;
      painted = !part.endsWith("[0m");
      continue;
    }
    for (const char of part) {
      const cells = cellsOf(char.codePointAt(0)!);
      if (used + cells > width - 1) return `${result}…${painted ? `${ESC}[0m` : ""}`;
      result += char;
      used += cells;
    }
  }
  return result;
}

export function pad(text: string, width: number): string {
  return text + " ".repeat(Math.max(0, width - widthOf(text)));
}

/** Breaks at spaces so that no line is wider than `width`; words that are wider stay whole. */
export function wrap(text: string, width: number): string[] {
  return text.split("\n").flatMap((paragraph) => {
    const lines: string[] = [];
    let line = "";
    for (const word of paragraph.split(" ")) {
      if (line !== "" && widthOf(line) + 1 + widthOf(word) > width) {
        lines.push(line);
        line = word;
      } else line = line === "" ? word : `${line} ${word}`;
    }
    return [...lines, line];
  });
}

/** `850 ms`, `2.4 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`. */
export function duration(ms: number): string {
  const clamped = Math.max(0, ms);
  if (clamped < 1_000) return `${Math.round(clamped)} ms`;
  if (clamped < 59_950) return `${(clamped / 1_000).toFixed(1)} s`;
  const seconds = Math.round(clamped / 1_000);
  if (seconds < 3_600) return two(seconds, 60, "min", 1, "s");
  if (seconds < 86_400) return two(seconds, 3_600, "h", 60, "min");
  return two(seconds, 86_400, "d", 3_600, "h");
}

function two(seconds: number, major: number, majorUnit: string, minor: number, minorUnit: string): string {
  const rest = Math.floor((seconds % major) / minor);
  const head = `${Math.floor(seconds / major)} ${majorUnit}`;
  return rest === 0 ? head : `${head} ${rest} ${minorUnit}`;
}

/** `612 B`, `12.3 KiB`. */
export function bytes(count: number): string {
  if (count < 1_024) return `${count} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = count / 1_024;
  let unit = 0;
  while (value >= 1_024 && unit < units.length - 1) {
    value /= 1_024;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** `2026-11-24 01:15:01Z`: one zone everywhere, so that two people read the same. */
export function instant(atMs: number): string {
  return `${new Date(atMs).toISOString().slice(0, 19).replace("T", " ")}Z`;
}

/** The digest as people quote it. */
export function shortDigest(digest: string): string {
  return digest.replace(/^(sha256:[0-9a-f]{12})[0-9a-f]{52}$/, "$1…");
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}
