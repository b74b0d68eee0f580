/**
 * The host's shell and setpriv, so that they run in a box whose root is an image that may have neither, or others of
 * that name. They lie in a directory of the box with all libraries that they need, and are started by their own loader.
 */
import { execFile } from "node:child_process";
import { basename, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const TIMEOUT_MS = 10_000;
/** In a box of an image. */
export const LAUNCHER_DIRECTORY = "/run/insitu";
const LIBRARIES = join(LAUNCHER_DIRECTORY, "lib");

export interface Launcher {
  files: readonly { source: string; path: string }[];
  /** Command lines, to be followed by arguments. */
  sh: readonly string[];
  setpriv: readonly string[];
}

/** @throws Error when it cannot be told what the programs need */
export async function findLauncher(setpriv: string): Promise<Launcher> {
  const programs = ["/bin/sh", ...(setpriv === "" ? [] : [setpriv])];
  const needs = await Promise.all(programs.map(needsOf));
  const libraries = new Map(needs.flatMap(({ libraries: found }) => found));
  const started = programs.map((program, index) => {
    const { loader } = needs[index]!;
    const path = join(LAUNCHER_DIRECTORY, basename(program));
    return { source: program, path, loader };
  });
  const commands = started.map(({ path, loader }) =>
    loader === undefined ? [path] : [join(LIBRARIES, basename(loader)), "--library-path", LIBRARIES, path],
  );
  const [sh = [], drop = []] = commands;
  const shared = [...libraries].map(([name, source]) => ({ source, path: join(LIBRARIES, name) }));
  return { files: [...started.map(({ source, path }) => ({ source, path })), ...shared], sh, setpriv: drop };
}

interface Needs {
  /** Undefined: linked statically. */
  loader: string | undefined;
  libraries: [name: string, source: string][];
}

async function needsOf(program: string): Promise<Needs> {
  const told = await run("ldd", [program], { timeout: TIMEOUT_MS, env: { LC_ALL: "C" } }).catch(
    (err: NodeJS.ErrnoException & { stdout?: string; stderr?: string }) => {
      const text = `${err.stdout ?? ""}${err.stderr ?? ""}`;
      if (/not a dynamic executable|not a valid dynamic program/i.test(text)) return { stdout: "" };
      throw new Error(`what ${program} needs cannot be told: ldd: ${text.trim() || err.message}`);
    },
  );
  return parseNeeds(program, told.stdout);
}

/** From what ldd writes, of glibc or musl. @throws Error for a library that is not there */
export function parseNeeds(program: string, text: string): Needs {
  const lines = text.split("\n").map((line) => line.trim());
  const missing = lines.find((line) => line.endsWith("=> not found"));
  if (missing !== undefined) throw new Error(`${program} lacks a library: ${missing}`);
  const named = lines.flatMap((line) => {
    const [, name, path] = /^(\S+) => (\/\S+) \(0x/.exec(line) ?? [];
    return name === undefined ? [] : [{ name: basename(name), path: path! }];
  });
  // By its path alone: the loader itself.
  const bare = lines.flatMap((line) => /^(\/\S+) \(0x/.exec(line)?.[1] ?? []);
  const loader = bare.find((path) => /^ld[-.]|^ld64/.test(basename(path)));
  if (named.length > 0 && loader === undefined)
    throw new Error(`the loader of ${program} cannot be told from what ldd says`);
  const all = [...named, ...bare.map((path) => ({ name: basename(path), path }))];
  return { loader, libraries: all.map(({ name, path }) => [name, path]) };
}
