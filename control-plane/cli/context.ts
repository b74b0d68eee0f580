/** Finds out which server to talk to, with which token, and remembers where each came from. */
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { newSecret } from "../../shared/system.ts";
import type { Settings } from "./config.ts";

export interface Target {
  /** Base URL without a slash at its end. */
  server: string;
  /** All replicas that were named, `server` first: the next one is asked when one cannot be reached. */
  servers: readonly string[];
  /** Where the address came from, in words for people. */
  source: string;
  token: string | null;
  /** PEM of the certificate authority to trust besides the system's; null for the system's alone. */
  ca: string | null;
  /** Where that stands, from the root. */
  caFile?: string;
}

export interface TargetFlags {
  server?: string | undefined;
  token?: string | undefined;
  caFile?: string | undefined;
}

interface ContextFile {
  path: string;
  server: string;
  token: string | null;
  caFile: string | null;
}

const START_HELP =
  "Start one on this machine with `insitu dev` (with a demonstration) or `insitu server`, or name one with --server or INSITU_SERVER.";

/**
 * Flags, then the environment, then the nearest `.insitu/context.json` upward, then the user's own file.
 *
 * A token from a file goes to the server of that file and to no other. One that was named is looked for in both files.
 *
 * @throws InsituError `request.invalid` when an address or a file is not valid, `unreachable` when there is no address
 */
export function findTarget(flags: TargetFlags, settings: Settings): Target {
  const file = nearestContext(settings);
  const given = flags.server
    ? { server: flags.server, source: "--server" }
    : settings.server
      ? { server: settings.server, source: "INSITU_SERVER" }
      : file && { server: file.server, source: file.path };
  if (!given) {
    throw new InsituError("unreachable", `no server is known here. ${START_HELP}`);
  }
  const servers = checkedAddresses(given.server, given.source);
  const server = servers[0]!;
  const isOf = (one: ContextFile): boolean => checkedAddresses(one.server, one.path).includes(server);
  const own = file?.path === settings.userContextFile ? null : readContext(settings.userContextFile);
  const fromFile = [file, own].find((one) => one !== null && isOf(one)) ?? null;
  const token = flags.token ?? settings.token ?? fromFile?.token ?? null;
  const caFile =
    flags.caFile ?? settings.caFile ?? (fromFile?.caFile && besideFile(fromFile.path, fromFile.caFile));
  const target = { server, servers, source: given.source, token };
  return caFile
    ? { ...target, ca: readCa(caFile), caFile: resolve(settings.cwd, caFile) }
    : { ...target, ca: null };
}

/** Writes the user's own file, which then speaks of this server. @returns its path */
export function keepToken(
  { userContextFile }: Settings,
  { servers, caFile }: Pick<Target, "servers" | "caFile">,
  token: string,
): string {
  const context = { server: servers.join(","), token, ...(caFile === undefined ? {} : { caFile }) };
  writePrivately(userContextFile, `${JSON.stringify(context, null, 2)}\n`);
  return userContextFile;
}

/** @returns the user's own file, or null when the token is not in it */
export function forgetToken({ userContextFile }: Settings, token: string): string | null {
  const context = readContext(userContextFile);
  if (context === null || context.token !== token) return null;
  const { server, caFile } = context;
  writePrivately(
    userContextFile,
    `${JSON.stringify({ server, ...(caFile === null ? {} : { caFile }) }, null, 2)}\n`,
  );
  return userContextFile;
}

/** Whole or not at all, and for nobody else at any moment. */
function writePrivately(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const draft = `${path}.${newSecret(6)}`;
  try {
    writeFileSync(draft, text, { mode: 0o600, flag: "wx" });
    chmodSync(draft, 0o600);
    renameSync(draft, path);
  } catch (err) {
    rmSync(draft, { force: true });
    throw new InsituError("request.invalid", `cannot write ${path}: ${(err as Error).message}`, {
      cause: err,
    });
  }
}

/** What to do when nobody answers at the address. */
export function startHelp(): string {
  return START_HELP;
}

/** One, or several with commas between them. */
function checkedAddresses(text: string, source: string): string[] {
  return text.split(",").map((address) => checkedAddress(address.trim(), source));
}

function checkedAddress(text: string, source: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch (err) {
    const message = `${source} is "${text}", which is not an address like http://127.0.0.1:7400`;
    throw new InsituError("request.invalid", message, { cause: err });
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw new InsituError(
      "request.invalid",
      `${source} is "${text}"; it must begin with http:// or https://`,
    );
  }
  if (url.protocol === "http:" && !isLoopback(url.hostname)) {
    const message = `${source} is "${text}": without TLS only this machine is spoken to; use https://`;
    throw new InsituError("request.invalid", message);
  }
  return `${url.origin}${url.pathname}`.replace(/\/+$/, "");
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

function nearestContext(settings: Settings): ContextFile | null {
  for (let directory = resolve(settings.cwd); ; directory = dirname(directory)) {
    const found = readContext(join(directory, ".insitu", "context.json"));
    if (found !== null) return found;
    if (dirname(directory) === directory) return readContext(settings.userContextFile);
  }
}

function readContext(path: string): ContextFile | null {
  let text: string;
  try {
    const info = statSync(path);
    // Somebody else's file in a shared folder could send our commands, and what they carry, to their server.
    if (process.getuid && info.uid !== process.getuid() && info.uid !== 0) return null;
    text = readFileSync(path, "utf8");
  } catch (err) {
    const { code } = err as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR" || code === "EACCES") return null; // no context there for us
    throw err;
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (err) {
    throw new InsituError("request.invalid", `${path} is not JSON; delete it and start the server again`, {
      cause: err,
    });
  }
  const fields = (typeof parsed === "object" && parsed !== null ? parsed : {}) as Record<string, unknown>;
  const { server, token, caFile } = fields;
  if (typeof server !== "string") {
    throw new InsituError(
      "request.invalid",
      `${path} names no "server"; delete it and start the server again`,
    );
  }
  return {
    path,
    server,
    token: typeof token === "string" ? token : null,
    caFile: typeof caFile === "string" ? caFile : null,
  };
}

function besideFile(path: string, name: string): string {
  return isAbsolute(name) ? name : join(dirname(path), name);
}

function readCa(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (err) {
    const reason = (err as NodeJS.ErrnoException).code ?? "unreadable";
    throw new InsituError("request.invalid", `cannot read the CA file ${path} (${reason})`, { cause: err });
  }
}
