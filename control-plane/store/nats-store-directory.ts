/** Streams on disk lie below the name of their account. */
import { constants } from "node:fs";
import { open, readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";

/** Of a server without accounts. */
const DEFAULT_ACCOUNT = "$G";

/**
 * Gives the account the streams that were made while the server had none. The server must not run.
 * One rename: after a crash they lie at one of the two places.
 *
 * @throws conflict when both have streams: nothing here can tell which are the true ones
 */
export async function adoptDefaultAccount(directory: string, account: string): Promise<void> {
  const root = join(directory, "jetstream");
  const former = join(root, DEFAULT_ACCOUNT);
  const [there, here] = [await streamsIn(former), await streamsIn(join(root, account))];
  if (there === 0) return;
  if (here > 0) {
    throw new InsituError(
      "conflict",
      `${root} holds the streams of two accounts, ${DEFAULT_ACCOUNT} and ${account}: an older insitu server has worked here since. Move the one away that is out of date`,
    );
  }
  await rename(former, join(root, account));
  const parent = await open(root, constants.O_RDONLY);
  await parent.sync().finally(() => parent.close());
}

async function streamsIn(account: string): Promise<number> {
  try {
    return (await readdir(join(account, "streams"))).length;
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code === "ENOENT") return 0;
    throw err;
  }
}
