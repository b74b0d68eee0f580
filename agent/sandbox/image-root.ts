/**
 * How the unpacked files of an image become the root of a box.
 *
 * They are shown read-only, so that nothing can be made in them to lay a dataset or a working directory on. Where
 * something is to be laid, the image's directory is therefore not shown as a whole, but made anew in memory and
 * filled with its entries one by one.
 */
import type { Dirent } from "node:fs";
import { isWithin } from "./box-plan.ts";
import { LAUNCHER_DIRECTORY } from "./launcher.ts";

export type LaidEntry =
  | { kind: "directory"; path: string }
  | { kind: "bind"; path: string; source: string }
  | { kind: "link"; path: string; target: string };

export interface ImageFiles {
  /** Entries of a directory below the image's root, by its path in the image. */
  list(directory: string): readonly Pick<Dirent, "name" | "isDirectory" | "isFile" | "isSymbolicLink">[];
  targetOf(link: string): string;
}

/**
 * Ours in every box, whatever the image has there. setpriv and its loader ask those of /etc while they may still
 * become any user: an image's own could have them load its code.
 */
const OURS = [
  ...["/proc", "/dev", "/tmp", "/run"],
  ...["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/ld.so.preload"],
];
/** More would make the start of a step slow, and its command line too long. */
const ENTRIES_MAX = 4096;

/**
 * `laid`: what is shown in the box besides the image, at its path there. A message: it does not go together.
 */
export function layImage(
  rootfs: string,
  laid: readonly string[],
  files: ImageFiles,
): readonly LaidEntry[] | string {
  const covers = laid.find((path) => [...OURS, LAUNCHER_DIRECTORY].some((ours) => isWithin(path, ours)));
  if (covers !== undefined)
    return `a box of an image has files of its own below ${covers}, where a step's would be`;
  const targets = [...OURS, ...laid];
  const entries: LaidEntry[] = [];
  const fill = (directory: string): string | undefined => {
    for (const entry of files.list(directory === "" ? "/" : directory)) {
      const path = `${directory}/${entry.name}`;
      if (targets.includes(path)) continue;
      const below = targets.find((target) => target.startsWith(`${path}/`));
      if (below !== undefined) {
        if (!entry.isDirectory())
          return `the image has ${path}, which is no directory, where ${below} is to be`;
        entries.push({ kind: "directory", path });
        const trouble = fill(path);
        if (trouble !== undefined) return trouble;
      } else if (entry.isSymbolicLink()) entries.push({ kind: "link", path, target: files.targetOf(path) });
      else if (entry.isDirectory() || entry.isFile())
        entries.push({ kind: "bind", path, source: `${rootfs}${path}` });
      // Sockets, pipes and devices of an image are of no use in a box.
    }
    return entries.length > ENTRIES_MAX
      ? `the image has more than ${ENTRIES_MAX} files beside those that the step is given; mount its datasets elsewhere`
      : undefined;
  };
  return fill("") ?? entries;
}
