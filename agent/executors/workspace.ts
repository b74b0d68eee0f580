/** The directory of one attempt: its files and inputs when it starts, its outputs and artifacts when it ends. */
import { createHash } from "node:crypto";
import { constants, createWriteStream } from "node:fs";
import { lchown, mkdir, open, readdir, realpath, rename, rm, rmdir, writeFile } from "node:fs/promises";
import { dirname, isAbsolute, join, relative } from "node:path";
import { pipeline } from "node:stream/promises";
import { InsituError } from "../../shared/errors.ts";
import type { ArtifactSpec, OutputSpec } from "../../shared/model/spec.ts";
import { newSecret } from "../../shared/system.ts";
import type { LeaseKey, Offer } from "../../shared/wire/attempt.ts";
import type { RawOutput } from "../egress/egress-gate.ts";
import type { KeptArtifact } from "./executor.ts";

export interface Workspace {
  /** The step's working directory. */
  work: string;
  inputs: string;
  outputs: string;
  /** For temporary files, on disk. */
  scratch: string;
  /** Holds the four; removed as a whole. */
  root: string;
}

/** An output or artifact that is not as declared: the attempt fails with its code. */
export class ProductError extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** Below an agent's state directory. */
export const WORK = "work";

export function workspaceRoot(base: string, lease: LeaseKey): string {
  return join(base, lease.runId, `${lease.stepId}.${lease.attempt}.${lease.epoch}`);
}

export function workspaceAt(base: string, lease: LeaseKey): Workspace {
  const root = workspaceRoot(base, lease);
  return {
    root,
    work: join(root, "work"),
    inputs: join(root, "inputs"),
    outputs: join(root, "outputs"),
    scratch: join(root, "scratch"),
  };
}

/** @throws offer.refused when a file's path leaves the working directory */
export async function createWorkspace(base: string, offer: Offer): Promise<Workspace> {
  const workspace = workspaceAt(base, offer.lease);
  const { root } = workspace;
  await rm(root, { recursive: true, force: true });
  for (const directory of [workspace.work, workspace.inputs, workspace.outputs, workspace.scratch]) {
    await mkdir(directory, { recursive: true, mode: 0o700 });
  }
  for (const [path, content] of Object.entries(offer.files)) {
    const target = join(workspace.work, path);
    if (!isInside(workspace.work, target))
      throw new InsituError("offer.refused", `file ${path} leaves the working directory`);
    await mkdir(dirname(target), { recursive: true });
    await writeFile(target, content, { mode: 0o700 });
  }
  for (const [step, outputs] of Object.entries(offer.inputs)) {
    for (const [name, value] of Object.entries(outputs)) {
      if (value.text === undefined) continue; // only its digest left the other site
      await mkdir(join(workspace.inputs, step), { recursive: true });
      await writeFile(join(workspace.inputs, step, name), value.text, { mode: 0o600 });
    }
  }
  return workspace;
}

/** Gives directories and all that is in them, which the agent has just made, to the user that a step runs as. */
export async function handOver(
  directories: readonly string[],
  { uid, gid }: { uid: number; gid: number },
): Promise<void> {
  for (const directory of directories) {
    await lchown(directory, uid, gid);
    for (const entry of await readdir(directory, { recursive: true }))
      await lchown(join(directory, entry), uid, gid);
  }
}

export async function removeWorkspace(root: string): Promise<void> {
  await rm(root, { recursive: true, force: true, maxRetries: 3 });
  await rmdir(dirname(root)).catch(() => undefined); // the run's, once it is empty
}

/**
 * Removes what belongs to none of the attempts that run, who are asked for after the look: one that begins meanwhile
 * is not among what was found. Returns how many that were.
 */
export async function sweepWorkspaces(stateDir: string, running: () => readonly LeaseKey[]): Promise<number> {
  const base = join(stateDir, WORK);
  const found: string[] = [];
  for (const run of await readdir(base).catch(() => [])) {
    for (const attempt of await readdir(join(base, run)).catch(() => []))
      found.push(join(base, run, attempt));
    await rmdir(join(base, run)).catch(() => undefined); // a crash has left it empty, or it is not
  }
  const kept = new Set(running().map((lease) => workspaceRoot(base, lease)));
  const left = found.filter((root) => !kept.has(root));
  for (const root of left) await removeWorkspace(root).catch(() => undefined); // the next sweep tries again
  return left.length;
}

/** Removes artifacts that a crash has left half copied. Before any attempt is taken up: none is being copied now. */
export async function sweepArtifacts(store: string): Promise<void> {
  const directory = join(store, "sha256");
  const names = await readdir(directory).catch(() => []);
  for (const name of names) {
    if (name.startsWith(".")) await rm(join(directory, name), { force: true }).catch(() => undefined);
  }
}

/** Reads the declared outputs; others stay where they are and vanish with the directory. @throws ProductError */
export async function collectOutputs(
  workspace: Workspace,
  specs: Readonly<Record<string, OutputSpec>>,
): Promise<Record<string, RawOutput>> {
  const outputs: Record<string, RawOutput> = {};
  for (const [name, spec] of Object.entries(specs))
    outputs[name] = await readOutput(workspace.outputs, name, spec);
  return outputs;
}

async function readOutput(directory: string, name: string, spec: OutputSpec): Promise<RawOutput> {
  // Links are not followed: one could bring in any file that the agent can read. Not waited for: opening a FIFO
  // that nobody writes would hold a thread of the agent for ever.
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await open(join(directory, name), flags).catch(() => undefined);
  if (!file) {
    throw new ProductError(
      "output.missing",
      `output ${name} was declared and not written; write it to $INSITU_OUTPUT_DIR/${name}`,
    );
  }
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new ProductError("output.invalid", `output ${name} is not a regular file`);
    if (stat.size > spec.maxBytes) {
      const limit = `${spec.maxBytes} bytes are allowed`;
      throw new ProductError(
        "output.too-large",
        `output ${name} has ${stat.size} bytes; ${limit} (raise maxBytes, or make it an artifact)`,
      );
    }
    const bytes = await file.readFile();
    const text = decodeText(name, bytes);
    if (spec.type === "json") checkJson(name, text);
    return { type: spec.type, digest: `sha256:${createHash("sha256").update(bytes).digest("hex")}`, text };
  } finally {
    await file.close();
  }
}

function decodeText(name: string, bytes: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new ProductError("output.invalid", `output ${name} is not UTF-8 text; make it an artifact`);
  }
}

function checkJson(name: string, text: string): void {
  try {
    JSON.parse(text);
  } catch (err) {
    const reason = err instanceof Error ? err.message : String(err);
    throw new ProductError(
      "output.invalid",
      `output ${name} is not JSON (${reason}); declare "type: text" if it is meant so`,
    );
  }
}

/** Copies the declared artifacts into the content-addressed store of the site. @throws ProductError */
export async function keepArtifacts(
  workspace: Workspace,
  specs: Readonly<Record<string, ArtifactSpec>>,
  store: string,
): Promise<KeptArtifact[]> {
  const kept: KeptArtifact[] = [];
  for (const [name, spec] of Object.entries(specs))
    kept.push(await keepArtifact(workspace, name, spec, store));
  return kept;
}

async function keepArtifact(
  workspace: Workspace,
  name: string,
  spec: ArtifactSpec,
  store: string,
): Promise<KeptArtifact> {
  const path = join(workspace.work, spec.path);
  const real = await realpath(path).catch(() => undefined);
  if (real === undefined)
    throw new ProductError("artifact.missing", `artifact ${name}: the step wrote no ${spec.path}`);
  if (!isInside(await realpath(workspace.work), real)) {
    throw new ProductError(
      "artifact.invalid",
      `artifact ${name}: ${spec.path} leads out of the working directory`,
    );
  }
  // What was looked at is what is read: one file, opened once, without following a link that came meanwhile.
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await open(real, flags).catch(() => undefined);
  if (!file) throw new ProductError("artifact.invalid", `artifact ${name}: ${spec.path} cannot be read`);
  await using _closed = { [Symbol.asyncDispose]: () => file.close() };
  const stat = await file.stat();
  if (!stat.isFile())
    throw new ProductError("artifact.invalid", `artifact ${name}: ${spec.path} is not a regular file`);
  if (stat.size > spec.maxBytes) {
    throw new ProductError(
      "artifact.too-large",
      `artifact ${name} has ${stat.size} bytes; ${spec.maxBytes} are allowed`,
    );
  }
  const hash = createHash("sha256");
  const directory = join(store, "sha256");
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const temporary = join(directory, `.${newSecret(9)}`);
  let bytes = 0;
  await pipeline(
    file.createReadStream({ autoClose: false }),
    async function* (source: AsyncIterable<Buffer>) {
      for await (const chunk of source) {
        hash.update(chunk);
        bytes += chunk.length;
        yield chunk;
      }
    },
    createWriteStream(temporary, { mode: 0o600, flush: true } as Parameters<typeof createWriteStream>[1]),
  );
  const hex = hash.digest("hex");
  await rename(temporary, join(directory, hex));
  return { name, digest: `sha256:${hex}`, bytes };
}

function isInside(directory: string, path: string): boolean {
  const way = relative(directory, path);
  return way !== "" && !way.startsWith("..") && !isAbsolute(way);
}
