/** An error as a person reads it: what happened, each fault with its place, what to do. */
import type { InsituError } from "../../shared/errors.ts";
import type { Terminal } from "./terminal.ts";
import { oneLine, type Paint, painter, printable } from "./text.ts";

interface Fault {
  file?: string;
  line?: number;
  column?: number;
  length?: number;
  pointer?: string;
  detail: string;
  hint?: string;
}

/** Writes it to stderr. Errors in documents show the line that they mean, as a compiler does. */
export async function reportError(error: InsituError, terminal: Terminal): Promise<void> {
  if (error.code === "cancelled") return; // whoever pressed Ctrl-C knows
  const color = terminal.colorAllowed && terminal.err.isTty;
  const paint = painter(color);
  const faults = faultsOf(error);
  const placed = faults.filter(isPlaced);
  const lines: string[] = [];
  if (placed.length > 0) {
    const { formatDocumentErrors } = await import("../../shared/model/document-errors.ts");
    const sources = error.details.sources instanceof Map ? error.details.sources : undefined;
    const errors = placed.map(({ detail, pointer, ...rest }) => ({
      ...rest,
      path: pointer ?? "",
      message: detail,
    }));
    lines.push(formatDocumentErrors(errors, { color, ...(sources ? { sources } : {}) }).trimEnd());
  }
  // A single fault is the message already.
  const inMessage = ({ detail }: Fault): boolean => error.message.includes(detail);
  const said = placed.length > 0 && faults.some(inMessage);
  if (!said) lines.push(`${paint("red", "error:")} ${printable(error.message)}`);
  for (const fault of faults) {
    if (isPlaced(fault)) continue;
    if (said || !inMessage(fault)) lines.push(...faultLines(fault, paint));
    else if (fault.hint) lines.push(hintLine(fault.hint, paint));
  }
  if (error.code === "internal" && error.cause instanceof Error && error.cause.stack) {
    lines.push(paint("dim", error.cause.stack));
  }
  // A terminal that has gone cannot be told anything.
  await terminal.err.write(`${lines.join("\n")}\n`).catch(() => undefined);
}

function isPlaced(fault: Fault): fault is Fault & { file: string; line: number; column: number } {
  return fault.file !== undefined && fault.line !== undefined && fault.column !== undefined;
}

function faultLines(fault: Fault, paint: Paint): string[] {
  const where = fault.file ?? fault.pointer ?? "";
  const head = `  ${where === "" ? "" : `${paint("bold", oneLine(where))}: `}${printable(fault.detail)}`;
  return fault.hint ? [head, hintLine(fault.hint, paint)] : [head];
}

function hintLine(hint: string, paint: Paint): string {
  return `    ${paint("cyan", "hint:")} ${printable(hint)}`;
}

function faultsOf(error: InsituError): Fault[] {
  const { errors } = error.details;
  return Array.isArray(errors) ? (errors as Fault[]) : [];
}
