/**
 * What a power cut would leave of some files: the record of each sync, kept in a directory.
 *
 * The strictest disk that POSIX allows: of a file, what it held when it was last synced; of a directory, the entries
 * that it had when it was last synced; nothing that others synced, or that the kernel wrote by itself.
 *
 * As `--import` of a Node process, with SYNC_RECORD as the directory of the record and SYNC_ROOT as the one of the
 * files, it records what that process syncs.
 */
import {
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";

/** Gives what to call when the sync has ended: it covers what the file held before it began. */
export function beginFile(record, fd) {
  const { ino } = fstatSync(fd);
  // Anew: the descriptor may be for writing alone, and the name may be another file's by now.
  const content = readFileSync(`/proc/self/fd/${fd}`);
  return () => put(record, `file-${ino}`, content);
}

/** Likewise, of a directory. */
export function beginDirectory(record, path) {
  const entries = readdirSync(path).flatMap((name) => {
    const stats = lstatSync(join(path, name), { throwIfNoEntry: false });
    return stats ? [{ name, ino: stats.ino, directory: stats.isDirectory() }] : [];
  });
  return () => put(record, `directory-${lstatSync(path).ino}`, JSON.stringify(entries));
}

function put(record, name, content) {
  mkdirSync(record, { recursive: true });
  writeFileSync(join(record, `${name}.new`), content);
  renameSync(join(record, `${name}.new`), join(record, name));
}

/** Copies into `target`, which is not there yet, what is left of the directory `root`. */
export function restoreImage(record, root, target, luck = () => false) {
  copyDirectory(record, lstatSync(root).ino, root, target, luck);
}

function copyDirectory(record, ino, from, target, luck) {
  mkdirSync(target);
  const listed = join(record, `directory-${ino}`);
  const entries = existsSync(listed) ? JSON.parse(readFileSync(listed, "utf8")) : [];
  const names = new Set(entries.map(({ name }) => name));
  for (const entry of entries) {
    const path = join(from, entry.name);
    const to = join(target, entry.name);
    if (entry.directory) {
      copyDirectory(record, entry.ino, path, to, luck);
      continue;
    }
    const synced = join(record, `file-${entry.ino}`);
    writeFileSync(
      to,
      luck(path) && existsSync(path) ? readFileSync(path) : existsSync(synced) ? readFileSync(synced) : "",
    );
  }
  if (!existsSync(from)) return;
  for (const name of readdirSync(from)) {
    const path = join(from, name);
    if (names.has(name) || !luck(path)) continue;
    const stats = lstatSync(path);
    if (stats.isDirectory()) copyDirectory(record, stats.ino, path, join(target, name), luck);
    else writeFileSync(join(target, name), readFileSync(path));
  }
}

const { SYNC_RECORD, SYNC_ROOT } = process.env;
if (SYNC_RECORD && SYNC_ROOT) {
  const handle = await open(process.execPath);
  const prototype = Object.getPrototypeOf(handle);
  await handle.close();
  const isOurs = (fd) => readlinkSync(`/proc/self/fd/${fd}`).startsWith(SYNC_ROOT);
  const { datasync, sync } = prototype;
  const recorded = (call) =>
    async function () {
      const { fd } = this;
      if (!isOurs(fd)) return await call.call(this);
      const path = readlinkSync(`/proc/self/fd/${fd}`);
      const end = fstatSync(fd).isDirectory()
        ? beginDirectory(SYNC_RECORD, path)
        : beginFile(SYNC_RECORD, fd);
      await call.call(this);
      end();
    };
  prototype.datasync = recorded(datasync);
  prototype.sync = recorded(sync);
}
