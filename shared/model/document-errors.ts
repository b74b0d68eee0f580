/** What is wrong with documents, for people: where, what, what would do. */

export interface DocumentError {
  file: string;
  /** From 1. */
  line: number;
  /** From 1, in UTF-16 code units. */
  column: number;
  /** Where in the document: `steps[2].needs[0]`; empty for the document itself. */
  path: string;
  /** A whole sentence without its full stop. */
  message: string;
  /** What would be right. */
  expected?: string;
  /** What was probably meant, or what to do; a list has a line for each item. */
  hint?: string;
  /** For programs: one of a small set, like "name.unknown", "cycle", "limit.depth". */
  code?: string;
  /** How many columns the mark spans. */
  length?: number;
}

export interface Position {
  line: number;
  column: number;
  length: number;
}

export type DocumentPath = readonly (string | number)[];

/** `steps[2].needs[0]`; keys that are no plain words are put in quotes. */
export function pathText(path: DocumentPath): string {
  let text = "";
  for (const part of path) {
    if (typeof part === "number") text += `[${part}]`;
    else if (/^[A-Za-z_][\w-]*$/.test(part)) text += text === "" ? part : `.${part}`;
    else text += `[${JSON.stringify(part)}]`;
  }
  return text;
}

const TAB_WIDTH = 4;
const SHOWN_COLUMNS_MAX = 160;

export interface FormatOptions {
  color: boolean;
  /** Texts by file: where they are given, the line is shown with a mark under what is meant. */
  sources?: ReadonlyMap<string, string>;
}

/** One block for each error, in order of file and place, and a last line with their number. */
export function formatDocumentErrors(errors: readonly DocumentError[], options: FormatOptions): string {
  const lines = new Map<string, string[]>();
  for (const [file, text] of options.sources ?? [])
    lines.set(file, text.replace(/^\uFEFF/, "").split(/\r?\n/));
  const blocks = inOrder(errors).map((error) => formatOne(error, lines.get(error.file), options.color));
  const files = new Set(errors.map((error) => error.file)).size;
  const count = errors.length === 1 ? "1 error" : `${errors.length} errors`;
  return `${blocks.join("\n\n")}\n\n${count} in ${files === 1 ? "1 file" : `${files} files`}\n`;
}

/** By file, line and column; the order of finding otherwise. */
export function inOrder(errors: readonly DocumentError[]): DocumentError[] {
  return [...errors].sort((a, b) => {
    if (a.file !== b.file) return a.file < b.file ? -1 : 1;
    return a.line - b.line || a.column - b.column;
  });
}

function formatOne(error: DocumentError, source: readonly string[] | undefined, color: boolean): string {
  const paint = (code: string, text: string): string => (color ? `\u001b[${code}m${text}\u001b[0m` : text);
  const where = paint("1", `${printable(error.file)}:${error.line}:${error.column}:`);
  const out = [`${where} ${paint("1;31", "error:")} ${printable(error.message)}`];
  const line = source?.[error.line - 1];
  const gutter = " ".repeat(String(error.line).length);
  if (line !== undefined && error.column <= SHOWN_COLUMNS_MAX) {
    const shown = untabbed(line).slice(0, SHOWN_COLUMNS_MAX);
    const before = untabbed(line.slice(0, error.column - 1)).length;
    const width = Math.max(1, Math.min(error.length ?? 1, shown.length - before));
    out.push(`  ${paint("34", `${error.line} |`)} ${printable(shown)}`);
    out.push(`  ${paint("34", `${gutter} |`)} ${" ".repeat(before)}${paint("1;31", "^".repeat(width))}`);
  }
  for (const line of error.hint?.split("\n") ?? [])
    out.push(`  ${paint("34", `${gutter} =`)} ${printable(line)}`);
  return out.join("\n");
}

function untabbed(text: string): string {
  return text.replaceAll("\t", " ".repeat(TAB_WIDTH));
}

/** A document must not be able to move the cursor of the terminal that shows its errors. */
function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones to show
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "\uFFFD");
}
