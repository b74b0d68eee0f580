/** Reads a tar file from front to back, in pieces. */
import { type FileHandle, open } from "node:fs/promises";
import { InsituError } from "../../shared/errors.ts";
import { BLOCK, decodeHeader, type Member, paddingOf } from "./tar.ts";

const PIECE_BYTES = 128 * 1024;

export interface ReadMember extends Member {
  /** To be read before the next member is asked for; what is left unread is passed over. */
  content(): AsyncGenerator<Uint8Array>;
}

/** What is wrong with a backup, and in which of its members. */
export function damaged(file: string, member: string, what: string): InsituError {
  return new InsituError("backup.damaged", `${file} is damaged: ${member}: ${what}`, {
    details: { file, member },
  });
}

/**
 * @throws backup.damaged naming the member when the file is cut off or is no tar file
 * @throws not-found when there is no such file
 */
export async function* readArchive(path: string): AsyncGenerator<ReadMember> {
  const file = await openFile(path);
  try {
    let last = "its beginning";
    for (let position = 0; ; ) {
      const header = Buffer.alloc(BLOCK);
      if ((await fill(file, header, position)) < BLOCK)
        throw damaged(path, last, "the file ends behind it, without the mark of its end");
      const member = decodeHeader(header);
      if (member === "end") {
        await expectZeros(path, file, { name: "its end", from: position, size: 2 * BLOCK });
        const { size } = await file.stat();
        if (size > position + 2 * BLOCK)
          throw damaged(path, "its end", "something follows the mark of its end");
        return;
      }
      if (member === undefined)
        throw damaged(path, last, `what follows it, at byte ${position}, is no header of a tar file`);
      last = member.name;
      const from = position + BLOCK;
      yield { ...member, content: () => contentOf(path, file, member, from) };
      position = from + member.size + paddingOf(member.size);
      const { name } = member;
      await expectZeros(path, file, { name, from: from + member.size, size: paddingOf(member.size) });
    }
  } finally {
    await file.close();
  }
}

async function* contentOf(
  path: string,
  file: FileHandle,
  member: Member,
  from: number,
): AsyncGenerator<Uint8Array> {
  for (let done = 0; done < member.size; ) {
    const piece = Buffer.alloc(Math.min(PIECE_BYTES, member.size - done));
    const got = await fill(file, piece, from + done);
    if (got < piece.length) {
      throw damaged(path, member.name, `the file ends after ${done + got} of its ${member.size} bytes`);
    }
    done += got;
    yield piece;
  }
}

async function expectZeros(
  path: string,
  file: FileHandle,
  at: { name: string; from: number; size: number },
): Promise<void> {
  const padding = Buffer.alloc(at.size, 1);
  if ((await fill(file, padding, at.from)) < at.size) throw damaged(path, at.name, "the file ends too early");
  if (padding.some((byte) => byte !== 0)) throw damaged(path, at.name, "something follows its content");
}

/** @throws backup.damaged when it is larger than `maxBytes` */
export async function wholeOf(path: string, member: ReadMember, maxBytes: number): Promise<Buffer> {
  if (member.size > maxBytes)
    throw damaged(path, member.name, `it has ${member.size} bytes, more than any that is written`);
  const pieces: Uint8Array[] = [];
  for await (const piece of member.content()) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    return await open(path, "r");
  } catch (err) {
    const { code } = err as NodeJS.ErrnoException;
    throw new InsituError("not-found", `the backup ${path} cannot be read (${code})`, { cause: err });
  }
}

async function fill(file: FileHandle, target: Buffer, at: number): Promise<number> {
  let done = 0;
  while (done < target.length) {
    const { bytesRead } = await file.read(target, done, target.length - done, at + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}
