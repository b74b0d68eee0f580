/** A file that nobody but the agent's user can read. */
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { SECRET_MAX_BYTES, SecretError } from "./secret-error.ts";

/** @throws SecretError `missing`: not there, readable by others, or no file of a secret's size */
export async function readPrivateFile(path: string): Promise<Buffer> {
  let file: FileHandle;
  try {
    // Links are followed: Kubernetes hands secrets out as links. Not waited for: a FIFO would hold a thread for ever.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    throw new SecretError("missing", `its file ${path} cannot be read (${code})`);
  }
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new SecretError("missing", `${path} is not a regular file`);
    if ((stat.mode & 0o077) !== 0)
      throw new SecretError("missing", `others may read or write its file ${path}; chmod 600 it`);
    if (stat.size > SECRET_MAX_BYTES)
      throw new SecretError(
        "missing",
        `its file ${path} has ${stat.size} bytes; ${SECRET_MAX_BYTES} are allowed`,
      );
    return await file.readFile();
  } finally {
    await file.close();
  }
}
