/** A small disk of somebody's own, which can be filled to the last byte and freed again. */
import { spawnSync } from "node:child_process";
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";

const PIECE_BYTES = 64 * 1024;

export class Disk {
  readonly #directory: string;
  /** False: the directory is on the disk of all, which is never filled. */
  readonly mounted: boolean;

  /** @param size as `mount` takes it, "48m"; undefined: no disk of its own */
  constructor(directory: string, size: string | undefined) {
    this.#directory = directory;
    mkdirSync(directory, { recursive: true });
    this.mounted =
      size !== undefined && run("mount", "-t", "tmpfs", "-o", `size=${size}`, "tmpfs", directory);
  }

  fill(): void {
    if (!this.mounted) throw new Error(`${this.#directory} is no disk of its own`);
    const fd = openSync(this.#filler, "w");
    try {
      const piece = Buffer.alloc(PIECE_BYTES, 1);
      // At the end byte by byte, or nothing of a page would be left to find full.
      for (let size = piece.length; size >= 1; )
        try {
          writeSync(fd, piece, 0, size);
        } catch {
          size = Math.floor(size / 2);
        }
    } finally {
      closeSync(fd);
    }
  }

  free(): void {
    rmSync(this.#filler, { force: true });
  }

  close(): void {
    if (this.mounted) run("umount", "-l", this.#directory);
  }

  get #filler(): string {
    return join(this.#directory, "filler");
  }
}

/** Root, and mounts work. */
export function canMount(directory: string): boolean {
  mkdirSync(directory, { recursive: true });
  return run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory) && run("umount", directory);
}

function run(command: string, ...args: string[]): boolean {
  return spawnSync(command, args, { stdio: "ignore" }).status === 0;
}
