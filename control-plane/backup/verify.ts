/** Says whether a backup is whole, without a server. */
import { createHash } from "node:crypto";
import { damaged, type ReadMember, readArchive, wholeOf } from "./archive-reader.ts";
import { KEPT_STREAMS } from "./contents.ts";
import {
  digestLine,
  FORMAT,
  MANIFEST,
  MANIFEST_DIGEST,
  MANIFEST_MAX_BYTES,
  Manifest,
  SECRETS,
} from "./manifest.ts";
import { SEALED_MAX_BYTES, type Secrets, unseal } from "./sealed-secrets.ts";

export interface Verified {
  manifest: Manifest;
  /** Opened with the passphrase; undefined without one, or when the backup holds none. */
  secrets: Secrets | undefined;
}

/**
 * Reads the whole file once, in bounded memory.
 *
 * @throws backup.damaged naming the member
 * @throws auth.denied when the passphrase does not open the secrets
 */
export async function verifyBackup(
  file: string,
  options: { passphrase?: string | undefined },
): Promise<Verified> {
  const found = new Map<string, { bytes: number; sha256: string }>();
  const kept = new Map<string, Buffer>();
  for await (const member of readArchive(file)) {
    const { name, size } = member;
    if (found.has(name)) throw damaged(file, name, "it is there twice");
    if (name === SECRETS || name.startsWith("manifest.")) {
      const bytes = await wholeOf(file, member, name === SECRETS ? SEALED_MAX_BYTES : MANIFEST_MAX_BYTES);
      kept.set(name, bytes);
      found.set(name, { bytes: size, sha256: createHash("sha256").update(bytes).digest("hex") });
    } else found.set(name, { bytes: size, sha256: await digestOf(member) });
  }
  const manifest = readManifest(file, kept, found.get(MANIFEST)?.sha256);
  const named = new Set(manifest.members.map(({ name }) => name));
  for (const { name, bytes, sha256 } of manifest.members) {
    const its = found.get(name);
    if (!its) throw damaged(file, name, "it is missing");
    if (its.bytes !== bytes) throw damaged(file, name, `it has ${its.bytes} bytes instead of ${bytes}`);
    if (its.sha256 !== sha256) throw damaged(file, name, "its content is not what was written (SHA-256)");
  }
  for (const name of found.keys()) {
    if (!named.has(name) && name !== MANIFEST && name !== MANIFEST_DIGEST)
      throw damaged(file, name, "the manifest does not name it");
  }
  checkContents(file, manifest, named);
  const { passphrase } = options;
  if (!manifest.secrets || passphrase === undefined) return { manifest, secrets: undefined };
  const secrets = await unseal(kept.get(SECRETS)!, passphrase);
  if (!secrets) throw damaged(file, SECRETS, "it is not what this release writes");
  return { manifest, secrets };
}

function readManifest(file: string, kept: ReadonlyMap<string, Buffer>, sha256: string | undefined): Manifest {
  const bytes = kept.get(MANIFEST);
  const digest = kept.get(MANIFEST_DIGEST)?.toString("utf8");
  if (!bytes) throw damaged(file, MANIFEST, "it is missing");
  if (!digest) throw damaged(file, MANIFEST_DIGEST, "it is missing");
  if (!sha256 || digest !== digestLine(sha256))
    throw damaged(file, MANIFEST, "its content is not what was written (SHA-256)");
  const json: unknown = JSON.parse(bytes.toString("utf8"));
  const parsed = Manifest.safeParse(json);
  if (parsed.success) return parsed.data;
  const faults = parsed.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`).join("; ");
  throw damaged(file, MANIFEST, `it is not of format ${FORMAT}, which this release reads (${faults})`);
}

/** The manifest names what a restore needs. */
function checkContents(file: string, manifest: Manifest, named: ReadonlySet<string>): void {
  for (const { name, parts } of manifest.streams) {
    if (!KEPT_STREAMS.includes(name)) throw damaged(file, MANIFEST, `${name} is no stream of this release`);
    for (const part of parts) if (!named.has(part)) throw damaged(file, part, "it is missing");
  }
  if (!manifest.streams.some(({ name }) => name === "RUNS"))
    throw damaged(file, MANIFEST, "it names no RUNS");
  if (manifest.secrets && !named.has(SECRETS)) throw damaged(file, SECRETS, "it is missing");
}

async function digestOf(member: ReadMember): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of member.content()) hash.update(piece);
  return hash.digest("hex");
}
