/** What steps wrote, made fit to be shown. Pure, but for the decoders' memory of half characters. */
import { StringDecoder } from "node:string_decoder";
import type { LogLine } from "../api/schemas.ts";
import { bytes, type Hue, type Paint, printable } from "./text.ts";

/** A line without end is shown in pieces of this many characters, so that memory stays bounded. */
const LINE_MAX_CHARS = 64 * 1024;
const PREFIX_HUES: readonly Hue[] = ["cyan", "magenta", "blue", "yellow", "green"];
const ESC = "\u001b";
/** Colours and weights alone; nothing that moves, erases, renames or asks. */
const COLOURS = new RegExp(`(${ESC}\\[[0-9;:]*m)`);

export interface LogStyle {
  /** Before each line: which step, when several are shown. */
  prefix: boolean;
  timestamps: boolean;
  /** Control characters are made visible. Set when a terminal reads. */
  harmless: boolean;
  paint: Paint;
}

interface Unfinished {
  decoder: StringDecoder;
  text: string;
  atMs: number;
  entry: LogLine;
}

/** Puts lines together from the pieces of each step and stream, whatever the order in which the pieces mix. */
export class LogLines {
  readonly #style: LogStyle;
  readonly #open = new Map<string, Unfinished>();
  readonly #hues = new Map<string, Hue>();

  constructor(style: LogStyle) {
    this.#style = style;
  }

  /** The lines that are complete with this entry, each with its newline. */
  push(entry: LogLine): string {
    const key = `${entry.step}/${entry.attempt}/${entry.epoch}/${entry.stream}`;
    const open = this.#open.get(key) ?? {
      decoder: new StringDecoder("utf8"),
      text: "",
      atMs: entry.atMs,
      entry,
    };
    this.#open.set(key, open);
    if (open.text === "") open.atMs = entry.atMs;
    const gap = isGap(entry) ? this.#line(open, describeGap(entry)) : "";
    const lines = (open.text + open.decoder.write(Buffer.from(entry.data, "base64"))).split("\n");
    open.text = lines.pop() ?? "";
    let out = gap;
    for (const line of lines) {
      out += this.#line(open, line);
      open.atMs = entry.atMs;
    }
    while (open.text.length >= LINE_MAX_CHARS) {
      out += this.#line(open, open.text.slice(0, LINE_MAX_CHARS));
      open.text = open.text.slice(LINE_MAX_CHARS);
    }
    return out;
  }

  /** What has no newline yet, as lines. */
  flush(): string {
    let out = "";
    for (const open of this.#open.values()) {
      const text = open.text + open.decoder.end();
      if (text !== "") out += this.#line(open, text);
    }
    this.#open.clear();
    return out;
  }

  #line({ entry, atMs }: Unfinished, text: string): string {
    const { paint, prefix, timestamps, harmless } = this.#style;
    const marks: string[] = [];
    if (timestamps) marks.push(paint("dim", new Date(atMs).toISOString()));
    if (prefix) {
      const attempt = entry.attempt > 1 ? `#${entry.attempt}` : "";
      const stream = entry.stream === "stdout" ? "" : ` ${entry.stream}`;
      marks.push(paint(this.#hueOf(entry.step), `${entry.step}${attempt}${stream} |`));
    }
    const body = text.endsWith("\r") ? text.slice(0, -1) : text;
    marks.push(harmless ? harmlessLine(body) : text);
    return `${marks.join(" ")}\n`;
  }

  #hueOf(step: string): Hue {
    const known = this.#hues.get(step);
    if (known) return known;
    const hue = PREFIX_HUES[this.#hues.size % PREFIX_HUES.length]!;
    this.#hues.set(step, hue);
    return hue;
  }
}

function isGap({ droppedBytes, refused }: LogLine): boolean {
  return droppedBytes > 0 || refused !== undefined;
}

/** What is missing where an entry stands. */
function describeGap({ droppedBytes, droppedLines = 0, refused }: LogLine): string {
  if (refused !== undefined) return `-- not shown here: ${refused} --`;
  const size = bytes(droppedBytes);
  if (droppedLines === 0) return `-- ${size} dropped here --`;
  return `-- ${droppedLines} ${droppedLines === 1 ? "line" : "lines"} dropped here (${size}) --`;
}

/** Keeps colours; every other control character becomes visible, so that no log can write elsewhere on the screen. */
export function harmlessLine(text: string): string {
  const parts = text.split(COLOURS);
  const shown = parts.map((part, at) => (at % 2 === 1 ? part : printable(part))).join("");
  return parts.length > 1 ? `${shown}${ESC}[0m` : shown;
}
