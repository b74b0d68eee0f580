/** Reads documents from files, folders and standard input, with the text files that their steps name. */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import type { DocumentSet } from "../api/services.ts";

const EXTENSIONS = /\.(ya?ml|json)$/;
/** Nobody keeps documents in these, and walking them takes long. */
const SKIPPED = new Set(["node_modules", ".git", ".insitu", "dist"]);
const FILE_MAX_BYTES = 8 * 1024 * 1024;

/**
 * Checks everything here, so that errors come at once and with the lines of the files at hand.
 *
 * @param paths files, folders (searched to any depth for .yaml, .yml and .json), or `-` for standard input
 * @throws InsituError `document.invalid` with `details.errors`, `request.invalid` when a path cannot be read
 */
export async function readDocumentSet(
  paths: readonly string[],
  options: { cwd: string; readStdin(): Promise<string>; staleSignatures?: "allowed" },
): Promise<DocumentSet> {
  if (paths.length === 0) {
    throw new InsituError(
      "request.invalid",
      "name a file or a folder: -f pipeline.yaml, -f pipelines/, or -f - for standard input",
    );
  }
  const documents: DocumentSet["documents"] = [];
  for (const path of paths) {
    if (path === "-") documents.push({ file: "<stdin>", text: await options.readStdin() });
    else {
      for (const file of filesOf(resolve(options.cwd, path), path)) {
        documents.push({ file: shown(file, options.cwd), text: readText(file) });
      }
    }
  }
  const { loadDocuments } = await import("../../shared/model/load-documents.ts");
  const loaded = loadDocuments({
    files: documents,
    readAttachment: (path) => attachment(resolve(options.cwd, path)),
    ...(options.staleSignatures === undefined ? {} : { staleSignatures: options.staleSignatures }),
  });
  if (loaded.errors.length > 0) {
    const count = loaded.errors.length === 1 ? "1 error" : `${loaded.errors.length} errors`;
    const errors = loaded.errors.map(({ message, path, ...rest }) => ({
      ...rest,
      detail: message,
      pointer: path,
    }));
    throw new InsituError("document.invalid", `${count} in the documents; nothing was changed`, {
      details: { errors, sources: sourcesOf(documents) },
    });
  }
  return { documents, attachments: loaded.attachments };
}

/** Texts by file, with which errors show the line that they mean. */
function sourcesOf(documents: DocumentSet["documents"]): Map<string, string> {
  return new Map(documents.map(({ file, text }) => [file, text]));
}

/** Gives the errors that the server found the lines that they mean. */
export async function withSources<T>(set: DocumentSet, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (thrown) {
    if (!(thrown instanceof InsituError) || !Array.isArray(thrown.details.errors)) throw thrown;
    throw new InsituError(thrown.code, thrown.message, {
      cause: thrown,
      details: { ...thrown.details, sources: sourcesOf(set.documents) },
    });
  }
}

function filesOf(path: string, given: string): string[] {
  let info: ReturnType<typeof statSync>;
  try {
    info = statSync(path);
  } catch (err) {
    const reason =
      (err as NodeJS.ErrnoException).code === "ENOENT"
        ? "there is no such file or folder"
        : "it cannot be read";
    throw new InsituError("request.invalid", `-f ${given}: ${reason}`, { cause: err });
  }
  if (!info.isDirectory()) return [path];
  const found = walk(path);
  if (found.length === 0) {
    throw new InsituError("request.invalid", `-f ${given}: the folder holds no .yaml, .yml or .json file`);
  }
  return found;
}

function walk(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(directory, entry.name);
      // Links to folders are not followed: they may lead round in circles.
      if (entry.isDirectory()) return SKIPPED.has(entry.name) ? [] : walk(path);
      return EXTENSIONS.test(entry.name) && existsSync(path) ? [path] : [];
    });
}

function readText(path: string): string {
  const { size } = statSync(path);
  if (size > FILE_MAX_BYTES) {
    throw new InsituError(
      "request.too-large",
      `${path} holds ${size} bytes; a document may hold ${FILE_MAX_BYTES}`,
    );
  }
  try {
    return readFileSync(path, "utf8");
  } catch (err) {
    const reason = (err as NodeJS.ErrnoException).code ?? "unreadable";
    throw new InsituError("request.invalid", `cannot read ${path} (${reason})`, { cause: err });
  }
}

function attachment(path: string): string | undefined {
  try {
    return readText(path);
  } catch (err) {
    if (err instanceof InsituError && err.code === "request.too-large") throw err;
    return undefined; // the loader says which step names it, with the line
  }
}

/** Relative to where the person stands, when that is shorter. */
function shown(path: string, cwd: string): string {
  const short = relative(cwd, path);
  return short.startsWith(`..${"/"}..`) || short === "" ? path : short;
}
