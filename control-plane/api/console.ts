/** The console's files: read once at start, served as they are. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

export interface ConsoleAsset {
  body: string;
  contentType: string;
  etag: string;
}

/** By path below the root; "/" is the page itself. */
export type ConsoleAssets = ReadonlyMap<string, ConsoleAsset>;

const FILES = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/console.css": ["console.css", "text/css; charset=utf-8"],
  "/console.js": ["console.js", "text/javascript; charset=utf-8"],
  "/client.js": ["client.js", "text/javascript; charset=utf-8"],
  "/icon.svg": ["icon.svg", "image/svg+xml"],
} as const;

/** @param dir the folder `control-plane/console` */
export async function loadConsole(dir: string): Promise<ConsoleAssets> {
  const assets = await Promise.all(
    Object.entries(FILES).map(async ([path, [file, contentType]]) => {
      const body = await readFile(join(dir, file), "utf8");
      const etag = `"${createHash("sha256").update(body).digest("base64url").slice(0, 22)}"`;
      return [path, { body, contentType, etag }] as const;
    }),
  );
  return new Map(assets);
}
