/** The console's files: read once at start, served as they are. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { InsituError } from "../../shared/errors.ts";

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
  "/dom.js": ["dom.js", "text/javascript; charset=utf-8"],
  "/views.js": ["views.js", "text/javascript; charset=utf-8"],
  "/session.js": ["session.js", "text/javascript; charset=utf-8"],
  "/sign-in-views.js": ["sign-in-views.js", "text/javascript; charset=utf-8"],
  "/icon.svg": ["icon.svg", "image/svg+xml"],
} as const;

/** As seen from this file's source, from dist/, and from dist/chunks/. */
const DIRECTORIES = ["../console/", "../control-plane/console/", "../../control-plane/console/"];

/** @param dir the folder `control-plane/console`; found beside the program when it is not named */
export async function loadConsole(dir = findConsole()): Promise<ConsoleAssets> {
  const assets = await Promise.all(
    Object.entries(FILES).map(async ([path, [file, contentType]]) => {
      const body = await readFile(join(dir, file), "utf8");
      const etag = `"${createHash("sha256").update(body).digest("base64url").slice(0, 22)}"`;
      return [path, { body, contentType, etag }] as const;
    }),
  );
  return new Map(assets);
}

function findConsole(): string {
  const candidates = DIRECTORIES.map((path) => fileURLToPath(new URL(path, import.meta.url)));
  const found = candidates.find((path) => existsSync(join(path, "index.html")));
  if (found === undefined) {
    throw new InsituError(
      "internal",
      `the console's files are in none of ${candidates.join(", ")}; install again`,
    );
  }
  return found;
}
