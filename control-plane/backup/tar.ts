/** The 512-byte headers of the ustar format (POSIX.1-1988), for regular files. Pure. */
import { InsituError } from "../../shared/errors.ts";

export const BLOCK = 512;
/** Eleven octal digits hold more; a member of this size is still handled in one piece by every tool. */
export const MEMBER_MAX_BYTES = 1024 ** 3;
const NAME_MAX_BYTES = 100;

export interface Member {
  name: string;
  size: number;
}

/** @param mtimeS seconds since the Unix epoch */
export function encodeHeader({ name, size }: Member, mtimeS: number): Buffer {
  const header = Buffer.alloc(BLOCK);
  if (Buffer.byteLength(name) > NAME_MAX_BYTES)
    throw new InsituError("internal", `${name} is too long a name for a member of a tar file`);
  header.write(name, 0);
  header.write("0000600\0", 100);
  header.write("0000000\0", 108);
  header.write("0000000\0", 116);
  header.write(octal(size, 11), 124);
  header.write(octal(mtimeS, 11), 136);
  header.write("        ", 148);
  header.write("0", 156);
  header.write("ustar\u000000", 257);
  header.write(sumField(sumOf(header)), 148);
  return header;
}

/** `end` for a block of zeros; undefined when it is no header. */
export function decodeHeader(block: Buffer): Member | "end" | undefined {
  if (block.every((byte) => byte === 0)) return "end";
  const blank = Buffer.from(block);
  blank.fill(" ", 148, 156);
  // Byte by byte: a number that other bytes spell too would let a change of one pass.
  const sum = Buffer.from(sumField(sumOf(blank)));
  const size = number(block, 124, 12);
  if (
    !block.subarray(148, 156).equals(sum) ||
    size === undefined ||
    block.toString("latin1", 257, 262) !== "ustar"
  )
    return undefined;
  return { name: text(block, 0, NAME_MAX_BYTES), size };
}

/** Bytes that follow a member of this size up to the next header. */
export function paddingOf(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK;
}

function sumField(sum: number): string {
  return `${octal(sum, 6)} `;
}

function octal(value: number, digits: number): string {
  return `${value.toString(8).padStart(digits, "0")}\0`;
}

function text(block: Buffer, at: number, length: number): string {
  const end = block.indexOf(0, at);
  return block.toString("utf8", at, end < 0 ? at + length : Math.min(end, at + length));
}

function number(block: Buffer, at: number, length: number): number | undefined {
  const digits = text(block, at, length).trim();
  return /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : undefined;
}

function sumOf(header: Buffer): number {
  return header.reduce((sum, byte) => sum + byte, 0);
}
