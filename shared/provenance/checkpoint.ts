/** The ledger's head: how many leaves, and their root (C2SP tlog-checkpoint, https://c2sp.org/tlog-checkpoint). */
import { equalBytes, fromBase64, toBase64 } from "./encoding.ts";
import { EMPTY_ROOT, HASH_BYTES } from "./merkle.ts";
import { type NoteKey, openNote } from "./signed-note.ts";

export interface Checkpoint {
  /** Whose log: also the name of its key. */
  origin: string;
  size: number;
  /** 32 bytes. */
  root: Uint8Array;
}

/** The text to be signed: three lines, and no extension. */
export function formatCheckpoint({ origin, size, root }: Checkpoint): string {
  return `${origin}\n${size}\n${toBase64(root)}\n`;
}

/** Undefined for anything but a checkpoint. Extension lines are passed over. */
export function parseCheckpoint(text: string): Checkpoint | undefined {
  if (!text.endsWith("\n")) return undefined;
  const [origin, decimal, encoded, ...extensions] = text.slice(0, -1).split("\n");
  if (!origin || decimal === undefined || encoded === undefined || extensions.includes("")) return undefined;
  if (!/^(?:0|[1-9][0-9]*)$/.test(decimal)) return undefined;
  const size = Number(decimal);
  const root = fromBase64(encoded);
  if (!Number.isSafeInteger(size) || root?.length !== HASH_BYTES) return undefined;
  if (size === 0 && !equalBytes(root, EMPTY_ROOT)) return undefined;
  return { origin, size, root };
}

export type OpenedCheckpoint =
  | { kind: "verified"; checkpoint: Checkpoint; text: string; witnesses: readonly NoteKey[] }
  | { kind: "refused"; reason: string };

/** A checkpoint signed by the log's own key; `witnesses` are those of the given ones that have cosigned it. */
export function openCheckpoint(
  note: string,
  log: NoteKey,
  witnesses: readonly NoteKey[] = [],
): OpenedCheckpoint {
  const opened = openNote(note, [log, ...witnesses]);
  if (opened.kind === "refused") return opened;
  if (!opened.by.includes(log)) return { kind: "refused", reason: `${log.name} has not signed it` };
  const checkpoint = parseCheckpoint(opened.text);
  if (!checkpoint) return { kind: "refused", reason: "it is no checkpoint" };
  if (checkpoint.origin !== log.name)
    return { kind: "refused", reason: `it is of ${checkpoint.origin}, not of ${log.name}` };
  return {
    kind: "verified",
    checkpoint,
    text: opened.text,
    witnesses: opened.by.filter((key) => key !== log),
  };
}
