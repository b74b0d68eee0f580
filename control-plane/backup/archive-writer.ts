/** Writes a tar file, piece by piece: durable and under its name only when it is complete. */
import { createHash, type Hash } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, link, open, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { newSecret } from "../../shared/system.ts";
import { BLOCK, encodeHeader, paddingOf } from "./tar.ts";

export interface WrittenMember {
  name: string;
  bytes: number;
  sha256: string;
}

export class ArchiveWriter implements AsyncDisposable {
  readonly #path: string;
  readonly #draft: string;
  readonly #file: FileHandle;
  readonly #mtimeS: number;
  #position = 0;
  #member: { name: string; at: number; bytes: number; hash: Hash } | undefined;

  private constructor(path: string, draft: string, file: FileHandle, mtimeS: number) {
    this.#path = path;
    this.#draft = draft;
    this.#file = file;
    this.#mtimeS = mtimeS;
  }

  /** @throws conflict when the file exists: a backup replaces none */
  static async create(path: string, atMs: number): Promise<ArchiveWriter> {
    const draft = join(dirname(path), `.${basename(path)}.${newSecret(6)}.part`);
    // `finish` looks again, but that would be late.
    if (await stat(path).catch(() => undefined)) throw exists(path);
    try {
      const file = await open(draft, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
      return new ArchiveWriter(path, draft, file, Math.floor(atMs / 1_000));
    } catch (err) {
      throw unwritable(path, err);
    }
  }

  begin(name: string): void {
    this.#member = { name, at: this.#position, bytes: 0, hash: createHash("sha256") };
    // The header is written over this place when the size is known.
    this.#position += BLOCK;
  }

  /** Bytes of the member that was begun. */
  get memberBytes(): number {
    return this.#member?.bytes ?? 0;
  }

  async write(bytes: Uint8Array): Promise<void> {
    const member = this.#member!;
    member.hash.update(bytes);
    member.bytes += bytes.length;
    await this.#append(bytes);
  }

  async end(): Promise<WrittenMember> {
    const { name, at, bytes, hash } = this.#member!;
    this.#member = undefined;
    await this.#append(Buffer.alloc(paddingOf(bytes)));
    await this.#put(encodeHeader({ name, size: bytes }, this.#mtimeS), at);
    return { name, bytes, sha256: hash.digest("hex") };
  }

  async add(name: string, bytes: Uint8Array): Promise<WrittenMember> {
    this.begin(name);
    await this.write(bytes);
    return await this.end();
  }

  /** Gives the size of the file. */
  async finish(): Promise<number> {
    await this.#append(Buffer.alloc(2 * BLOCK));
    try {
      await this.#file.sync();
      // A link fails when the name is taken, where a rename would replace a backup.
      await link(this.#draft, this.#path);
      await rm(this.#draft);
      const directory = await open(dirname(this.#path), constants.O_RDONLY);
      await directory.sync().finally(() => directory.close());
    } catch (err) {
      throw unwritable(this.#path, err);
    }
    return this.#position;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
    await rm(this.#draft, { force: true });
  }

  async #append(bytes: Uint8Array): Promise<void> {
    await this.#put(bytes, this.#position);
    this.#position += bytes.length;
  }

  async #put(bytes: Uint8Array, at: number): Promise<void> {
    try {
      for (let done = 0; done < bytes.length; ) {
        const { bytesWritten } = await this.#file.write(bytes, done, bytes.length - done, at + done);
        done += bytesWritten;
      }
    } catch (err) {
      throw unwritable(this.#path, err);
    }
  }
}

function exists(path: string): InsituError {
  return new InsituError("conflict", `${path} exists already; choose another name`);
}

function unwritable(path: string, err: unknown): InsituError {
  const { code, message } = err as NodeJS.ErrnoException;
  if (code === "EEXIST") return exists(path);
  return new InsituError("request.invalid", `the backup ${path} cannot be written: ${code ?? message}`, {
    cause: err,
  });
}
