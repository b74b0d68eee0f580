/**
 * The images of a site, unpacked below the agent's state directory: `images/<digest>/rootfs` and beside it what is to be
 * known of it. An image is there as a whole or not at all.
 */
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Digest } from "../../shared/model/names.ts";
import { copyImage, type FoundImage, findImage } from "./image-layout.ts";

const run = promisify(execFile);
const RECORD = "image.json";
const UNPACKING = ".import-";

/** What of an image's configuration is heeded. */
export const ImageRecord = z.object({
  v: z.literal(1),
  digest: Digest,
  /** Other digests that lead to it: of the indexes for several platforms that it was found in. */
  indexes: z.array(Digest),
  /** `NAME=value` each. */
  env: z.array(z.string()),
  entrypoint: z.array(z.string()),
  cmd: z.array(z.string()),
  importedAtMs: z.int(),
});
export type ImageRecord = z.infer<typeof ImageRecord>;
export interface StoredImage extends ImageRecord {
  rootfs: string;
}

export class ImageStore {
  readonly #directory: string;

  constructor(stateDir: string) {
    this.#directory = join(stateDir, "images");
  }

  /** By the digest of its manifest or of an index. Undefined: it has not been imported. */
  async find(digest: string): Promise<StoredImage | undefined> {
    const direct = await this.#read(hexOf(digest));
    if (direct) return direct;
    return (await this.list()).find(({ indexes }) => indexes.includes(digest));
  }

  async list(): Promise<StoredImage[]> {
    const names = await readdir(this.#directory).catch(() => []);
    const images = await Promise.all(
      names.filter((name) => /^[0-9a-f]{64}$/.test(name)).map((name) => this.#read(name)),
    );
    return images.filter((image) => image !== undefined);
  }

  /**
   * @param path an OCI image layout, as a directory or as a tar archive of one
   * @throws request.invalid for what is no image, or not the one that its digest says
   */
  async import(
    path: string,
    {
      wanted,
      nowMs,
      architecture = process.arch,
    }: { wanted?: string | undefined; nowMs: number; architecture?: string },
  ): Promise<{ image: StoredImage; isNew: boolean }> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const temporary = await mkdtemp(join(this.#directory, UNPACKING));
    try {
      const layout = await layoutAt(path, join(temporary, "archive"));
      const found = await findImage(layout, { wanted, architecture });
      const known = await this.#read(hexOf(found.digest));
      const indexes = [...new Set([...found.indexes, ...(known?.indexes ?? [])])].sort();
      const { digest, env, entrypoint, cmd } = found;
      const record: ImageRecord = { v: 1, digest, indexes, env, entrypoint, cmd, importedAtMs: nowMs };
      if (known) await replaceFile(join(this.#directory, hexOf(digest), RECORD), record);
      else await this.#unpack(layout, found, record, temporary);
      return { image: { ...record, rootfs: this.#rootfs(hexOf(digest)) }, isNew: !known };
    } finally {
      await rm(temporary, { recursive: true, force: true });
    }
  }

  /** False: it is not there. Steps that run from it lose its files. */
  async remove(digest: string): Promise<boolean> {
    const image = await this.find(digest);
    if (!image) return false;
    const gone = await mkdtemp(join(this.#directory, UNPACKING));
    await rename(join(this.#directory, hexOf(image.digest)), join(gone, "image"));
    await rm(gone, { recursive: true, force: true });
    return true;
  }

  async #unpack(layout: string, found: FoundImage, record: ImageRecord, temporary: string): Promise<void> {
    const own = join(temporary, "layout");
    await copyImage(layout, found, own);
    const unpacked = join(temporary, "image");
    await mkdir(unpacked, { mode: 0o700 });
    await tool("umoci", ["raw", "unpack", "--rootless", "--image", `${own}:image`, join(unpacked, "rootfs")]);
    await writeFile(join(unpacked, RECORD), JSON.stringify(record), { mode: 0o600 });
    // A power cut must not leave an image that looks whole and has empty files.
    await tool("sync", ["-f", unpacked]);
    await rename(unpacked, join(this.#directory, hexOf(found.digest)));
    await tool("sync", ["-f", this.#directory]);
  }

  async #read(hex: string): Promise<StoredImage | undefined> {
    const text = await readFile(join(this.#directory, hex, RECORD), "utf8").catch(() => undefined);
    if (text === undefined) return undefined;
    return { ...ImageRecord.parse(JSON.parse(text)), rootfs: this.#rootfs(hex) };
  }

  #rootfs(hex: string): string {
    return join(this.#directory, hex, "rootfs");
  }
}

function hexOf(digest: string): string {
  return Digest.parse(digest).slice("sha256:".length);
}

async function layoutAt(path: string, unpackTo: string): Promise<string> {
  const about = await stat(path).catch((err: Error) => {
    throw new InsituError("request.invalid", `${path} cannot be read: ${err.message}`);
  });
  if (about.isDirectory()) return path;
  await mkdir(unpackTo, { mode: 0o700 });
  await tool("tar", [
    "--extract",
    "--no-same-owner",
    "--no-same-permissions",
    "--directory",
    unpackTo,
    "--file",
    path,
  ]);
  return unpackTo;
}

async function replaceFile(path: string, record: ImageRecord): Promise<void> {
  await writeFile(`${path}.new`, JSON.stringify(record), { mode: 0o600, flush: true });
  await rename(`${path}.new`, path);
}

/** @throws request.invalid with what it complained of */
async function tool(command: string, args: string[]): Promise<void> {
  try {
    await run(command, args);
  } catch (err) {
    const { code, stderr, message } = err as NodeJS.ErrnoException & { stderr?: string };
    if (code === "ENOENT")
      throw new InsituError(
        "request.invalid",
        `${command} is not installed (Debian, Ubuntu: apt-get install ${command})`,
      );
    throw new InsituError("request.invalid", `${command} failed: ${stderr?.trim() || message}`, {
      cause: err,
    });
  }
}
