/** Results on stdout: a table for people, JSON or YAML for programs. */
import { InsituError } from "../../shared/errors.ts";
import type { Terminal } from "./terminal.ts";
import { cut, oneLine, type Paint, pad, painter, widthOf } from "./text.ts";

export const FORMATS = ["table", "json", "yaml"] as const;
export type Format = (typeof FORMATS)[number];

export interface Column<T> {
  title: string;
  /** As text that may be painted; strings of others go through `oneLine` here. */
  value(item: T): string;
  /** Colours a cell after it has been measured. */
  hue?(item: T): Parameters<Paint>[0] | null;
  right?: boolean;
}

const GAP = "   ";

export class Output {
  readonly format: Format;
  readonly terminal: Terminal;
  /** For stdout. */
  readonly paint: Paint;
  /** For stderr. */
  readonly paintErr: Paint;

  constructor(terminal: Terminal, format: Format) {
    this.terminal = terminal;
    this.format = format;
    this.paint = painter(terminal.colorAllowed && terminal.out.isTty);
    this.paintErr = painter(terminal.colorAllowed && terminal.err.isTty);
  }

  get people(): boolean {
    return this.format === "table";
  }

  async line(text = ""): Promise<void> {
    await this.terminal.out.write(`${text}\n`);
  }

  /** Progress, advice, whatever is no result. */
  async note(text: string): Promise<void> {
    await this.terminal.err.write(`${text}\n`);
  }

  /** The value as JSON or YAML; only when people are not the readers. */
  async data(value: unknown): Promise<void> {
    if (this.format === "yaml") {
      const { yamlText } = await import("./yaml-text.ts");
      await this.terminal.out.write(yamlText(value));
      return;
    }
    await this.terminal.out.write(`${JSON.stringify(value, null, 2)}\n`);
  }

  async table<T>(items: readonly T[], columns: readonly Column<T>[]): Promise<void> {
    const width = this.terminal.out.isTty ? this.terminal.out.columns() : Number.POSITIVE_INFINITY;
    for (const line of tableLines(items, columns, { width, paint: this.paint })) await this.line(line);
  }
}

/** Every column as wide as it needs; what does not fit the terminal is cut off the last one. */
export function tableLines<T>(
  items: readonly T[],
  columns: readonly Column<T>[],
  { width, paint }: { width: number; paint: Paint },
): string[] {
  const cells = items.map((item) => columns.map((column) => oneLine(column.value(item))));
  const widths = columns.map((column, at) =>
    Math.max(widthOf(column.title), ...cells.map((row) => widthOf(row[at]!))),
  );
  const draw = (row: readonly string[], hueOf: (at: number) => Parameters<Paint>[0] | null) => {
    const parts = row.map((cell, at) => {
      const space = " ".repeat(Math.max(0, widths[at]! - widthOf(cell)));
      const hue = hueOf(at);
      const painted = hue === null ? cell : paint(hue, cell);
      if (columns[at]!.right) return space + painted;
      return at === row.length - 1 ? painted : painted + space;
    });
    return cut(parts.join(GAP).trimEnd(), width);
  };
  const head = draw(
    columns.map(({ title }) => title),
    () => "dim",
  );
  return [head, ...cells.map((row, index) => draw(row, (at) => columns[at]!.hue?.(items[index]!) ?? null))];
}

/** `name: value` lines with the values in one column. Long values go on below themselves. */
export function fieldLines(fields: readonly (readonly [string, string])[], paint: Paint): string[] {
  const width = Math.max(...fields.map(([name]) => widthOf(name)));
  return fields.flatMap(([name, value]) =>
    value
      .split("\n")
      .map((line, index) => `${index === 0 ? paint("dim", pad(name, width)) : " ".repeat(width)}  ${line}`),
  );
}

export function parseFormat(text: string): Format {
  const format = FORMATS.find((known) => known === text);
  if (format) return format;
  throw new InsituError("request.invalid", `-o takes ${FORMATS.join(", ")}, not "${text}"`);
}
