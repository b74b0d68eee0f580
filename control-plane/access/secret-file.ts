/** Files that hold secrets: created once, readable by their owner alone. */
import { constants } from "node:fs";
import { chmod, link, mkdir, open, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { newSecret } from "../../shared/system.ts";

/**
 * Gives the file's text; creates it (0600, in a directory 0700) from `make` when it does not exist.
 * When two processes create it at once, both get the text of the one that was first.
 *
 * @throws InsituError `internal` when others than the owner can read it.
 */
export async function loadOrCreateSecret(
  path: string,
  make: () => string | Promise<string>,
): Promise<string> {
  const found = await loadSecret(path);
  if (found !== undefined) return found;
  await writeSecret(path, await make());
  const made = await loadSecret(path);
  if (made === undefined) throw new InsituError("internal", `${path} vanished right after it was written`);
  return made;
}

/** Gives the file's text, or undefined when there is none. Refuses one that others can read. */
export async function loadSecret(path: string): Promise<string | undefined> {
  let text: string;
  try {
    const { mode } = await stat(path);
    if ((mode & 0o077) !== 0) {
      throw new InsituError(
        "internal",
        `${path} holds a secret and others can read it (mode ${(mode & 0o777).toString(8)}): if nobody else has seen it, run chmod 600 ${path}; else delete it and start again`,
      );
    }
    text = await readFile(path, "utf8");
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw err;
  }
  return text;
}

/** Durable and all at once: readers see the former text or this one. */
export async function replaceSecret(path: string, text: string): Promise<void> {
  await writeSecret(path, text, rename);
}

/**
 * Durable and all at once: the file is complete or absent.
 *
 * @param place a link fails when the name is taken, and an existing file stays as it is; a rename replaces it
 */
async function writeSecret(
  path: string,
  text: string,
  place: (from: string, to: string) => Promise<void> = link,
): Promise<void> {
  const directory = dirname(path);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  await chmod(directory, 0o700);
  const draft = `${path}.${newSecret(6)}.new`;
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
  try {
    const file = await open(draft, flags, 0o600);
    try {
      await file.writeFile(text, "utf8");
      await file.sync();
    } finally {
      await file.close();
    }
    await place(draft, path);
    const parent = await open(directory, constants.O_RDONLY);
    try {
      await parent.sync();
    } finally {
      await parent.close();
    }
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code !== "EEXIST") throw err;
  } finally {
    await rm(draft, { force: true });
  }
}
