/** Reads a file that only root or the agent's own user can have written. */
import { closeSync, constants, fstatSync, lstatSync, openSync, readFileSync, realpathSync } from "node:fs";
import { dirname } from "node:path";
import { InsituError } from "../../shared/errors.ts";

const OWNED_FILE_MAX_BYTES = 1024 * 1024;
const GROUP_OR_OTHERS_WRITE = 0o022;
const STICKY = 0o1000;

export interface OwnedFile {
  text: string;
  bytes: Buffer;
}

/**
 * Looks at the file that is open, not at its name again, and at every directory above it: who can write to one of
 * those can put another file in its place.
 *
 * @throws request.invalid, with what to do
 */
export function readOwnedFile(path: string, uid: number): OwnedFile {
  let descriptor: number;
  let real: string;
  try {
    real = realpathSync(path);
    // A pipe that nobody writes to would hold the agent here.
    descriptor = openSync(real, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (err) {
    throw new InsituError("request.invalid", `the site policy ${path} cannot be read: ${messageOf(err)}`);
  }
  try {
    const info = fstatSync(descriptor);
    if (!info.isFile()) throw new InsituError("request.invalid", `the site policy ${path} is no file`);
    checkOwner(real, info, uid);
    if (info.size > OWNED_FILE_MAX_BYTES)
      throw new InsituError(
        "request.invalid",
        `the site policy ${path} has ${info.size} bytes; ${OWNED_FILE_MAX_BYTES} are allowed`,
      );
    for (let above = dirname(real); ; above = dirname(above)) {
      checkOwner(above, lstatSync(above), uid);
      if (above === dirname(above)) break;
    }
    const bytes = readFileSync(descriptor);
    return { bytes, text: bytes.toString("utf8") };
  } finally {
    closeSync(descriptor);
  }
}

function checkOwner(
  path: string,
  info: { uid: number; mode: number; isDirectory(): boolean },
  uid: number,
): void {
  if (info.uid !== 0 && info.uid !== uid)
    throw new InsituError(
      "request.invalid",
      `the site policy is refused: ${path} belongs to user ${info.uid}, who is neither root nor the agent's user; run: chown root ${path}`,
    );
  // As in /tmp: others make files there, and replace none that is not theirs.
  const kept = info.isDirectory() && (info.mode & STICKY) !== 0;
  if ((info.mode & GROUP_OR_OTHERS_WRITE) !== 0 && !kept)
    throw new InsituError(
      "request.invalid",
      `the site policy is refused: others than its owner may write to ${path}; run: chmod go-w ${path}`,
    );
}

function messageOf(err: unknown): string {
  return err instanceof Error ? err.message : String(err);
}
