/**
 * Reads an OCI image layout (a directory as `skopeo copy … oci:DIR` makes it) and copies one image out of it. Nothing
 * of it is believed that its digest does not vouch for.
 */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Digest } from "../../shared/model/names.ts";

const MANIFEST_MAX_BYTES = 4 * 1024 * 1024;
const LAYERS_MAX = 500;
/** An index of indexes of … is nobody's image. */
const DEPTH_MAX = 4;
const INDEX_TYPES = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json";
/** By Node's names for them. */
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: "amd64", arm64: "arm64" };

const Descriptor = z.object({
  mediaType: z.string(),
  digest: Digest,
  size: z.int().min(0),
  platform: z.object({ architecture: z.string(), os: z.string() }).optional(),
});
type Descriptor = z.infer<typeof Descriptor>;
const Index = z.object({ manifests: z.array(Descriptor) });
const Manifest = z.object({ config: Descriptor, layers: z.array(Descriptor).max(LAYERS_MAX) });
const Words = z.array(z.string()).nullish();
const Config = z.object({
  architecture: z.string(),
  os: z.string(),
  config: z.object({ Env: Words, Entrypoint: Words, Cmd: Words }).nullish(),
});

export interface FoundImage {
  /** Of the manifest. */
  digest: string;
  /** Of the indexes that led to it. A step may name one of these as well. */
  indexes: string[];
  blobs: Descriptor[];
  manifest: Descriptor;
  env: string[];
  entrypoint: string[];
  cmd: string[];
}

/**
 * @param wanted digest of a manifest or index; needed when the layout holds several images
 * @throws request.invalid when there is no such image for this host's architecture, or a digest does not hold
 */
export async function findImage(
  layout: string,
  { wanted, architecture }: { wanted: string | undefined; architecture: string },
): Promise<FoundImage> {
  const platform = ARCHITECTURES[architecture];
  if (platform === undefined) throw invalid(`there are no images for ${architecture} here`);
  const index = parsed(Index, await readIndex(layout), "index.json");
  const found = (await Promise.all(index.manifests.map((entry) => walk(layout, entry, platform, [])))).flat();
  const digests = [...new Set(found.map(({ manifest }) => manifest.digest))];
  const fitting = found.filter(
    ({ manifest, indexes }) => wanted === undefined || [manifest.digest, ...indexes].includes(wanted),
  );
  const [first] = fitting;
  if (first === undefined)
    throw invalid(
      wanted === undefined || digests.length === 0
        ? `${layout} holds no image for linux/${platform}`
        : `${layout} holds no image ${wanted} for linux/${platform}; it holds ${digests.join(", ")}`,
    );
  if (new Set(fitting.map(({ manifest }) => manifest.digest)).size > 1)
    throw invalid(`${layout} holds several images; say which with --digest: ${digests.join(", ")}`);
  const { config, layers } = parsed(Manifest, await readBlob(layout, first.manifest), first.manifest.digest);
  const about = parsed(Config, await readBlob(layout, config), config.digest);
  if (about.os !== "linux" || about.architecture !== platform)
    throw invalid(`the image is for ${about.os}/${about.architecture}, and this host is linux/${platform}`);
  const { Env, Entrypoint, Cmd } = about.config ?? {};
  return {
    digest: first.manifest.digest,
    indexes: first.indexes,
    blobs: [first.manifest, config, ...layers],
    manifest: first.manifest,
    env: Env ?? [],
    entrypoint: Entrypoint ?? [],
    cmd: Cmd ?? [],
  };
}

/** Writes a layout with that image alone, under the name `image`. @throws request.invalid when a digest does not hold */
export async function copyImage(layout: string, { blobs, manifest }: FoundImage, to: string): Promise<void> {
  await mkdir(join(to, "blobs", "sha256"), { recursive: true, mode: 0o700 });
  for (const blob of blobs) await copyBlob(layout, blob, to);
  await writeFile(join(to, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  const { mediaType, digest, size } = manifest;
  const annotations = { "org.opencontainers.image.ref.name": "image" };
  const index = { schemaVersion: 2, manifests: [{ mediaType, digest, size, annotations }] };
  await writeFile(join(to, "index.json"), JSON.stringify(index));
}

interface Walked {
  manifest: Descriptor;
  indexes: string[];
}

async function walk(
  layout: string,
  entry: Descriptor,
  architecture: string,
  above: string[],
): Promise<Walked[]> {
  const { platform, mediaType, digest } = entry;
  // Attestations and other platforms lie beside the image.
  if (platform && (platform.os !== "linux" || platform.architecture !== architecture)) return [];
  if (mediaType === MANIFEST_TYPE) return [{ manifest: entry, indexes: above }];
  if (!INDEX_TYPES.includes(mediaType)) {
    const advice = "make it an OCI image: skopeo copy --format oci …; its digest is another one then";
    throw invalid(`${digest} is of the type ${mediaType}, which is not taken here (${advice})`);
  }
  if (above.length >= DEPTH_MAX) throw invalid(`the index ${digest} lies too deep`);
  const { manifests } = parsed(Index, await readBlob(layout, entry), digest);
  const inner = manifests.map((next) => walk(layout, next, architecture, [...above, digest]));
  return (await Promise.all(inner)).flat();
}

async function readIndex(layout: string): Promise<Buffer> {
  const advice =
    "make an OCI image layout: skopeo copy --preserve-digests docker://NAME@sha256:… oci-archive:FILE.tar";
  return await readSmall(join(layout, "index.json")).catch((err: Error) => {
    throw invalid(`${layout} is no OCI image layout: ${err.message} (${advice})`);
  });
}

async function readBlob(layout: string, { digest, size }: Descriptor): Promise<Buffer> {
  const bytes = await readSmall(pathOf(layout, digest)).catch((err: Error) => {
    throw invalid(`${digest} cannot be read: ${err.message}`);
  });
  check(digest, size, createHash("sha256").update(bytes).digest("hex"), bytes.length);
  return bytes;
}

async function readSmall(path: string): Promise<Buffer> {
  const file = await open(path, "r");
  try {
    const { size } = await file.stat();
    if (size > MANIFEST_MAX_BYTES)
      throw new Error(`it has ${size} bytes, ${MANIFEST_MAX_BYTES} at most are taken`);
    return await file.readFile();
  } finally {
    await file.close();
  }
}

async function copyBlob(layout: string, { digest, size }: Descriptor, to: string): Promise<void> {
  const hash = createHash("sha256");
  let bytes = 0;
  try {
    await pipeline(
      createReadStream(pathOf(layout, digest)),
      async function* (source: AsyncIterable<Buffer>) {
        for await (const chunk of source) {
          hash.update(chunk);
          bytes += chunk.length;
          if (bytes > size) throw new Error(`it has more bytes than the ${size} that were stated`);
          yield chunk;
        }
      },
      createWriteStream(pathOf(to, digest), { mode: 0o600 }),
    );
  } catch (err) {
    throw invalid(`${digest} cannot be copied: ${err instanceof Error ? err.message : err}`);
  }
  check(digest, size, hash.digest("hex"), bytes);
}

function check(digest: string, size: number, hex: string, bytes: number): void {
  if (digest !== `sha256:${hex}`)
    throw invalid(`the content of ${digest} is damaged or was changed: it has the digest sha256:${hex}`);
  if (bytes !== size) throw invalid(`${digest} has ${bytes} bytes, and ${size} were stated`);
}

function pathOf(layout: string, digest: string): string {
  return join(layout, "blobs", "sha256", Digest.parse(digest).slice("sha256:".length));
}

function parsed<T>(schema: z.ZodType<T>, bytes: Buffer, name: string): T {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch {
    throw invalid(`${name} is not JSON`);
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw invalid(`${name} is not as OCI says: ${issue?.path.join(".")}: ${issue?.message}`);
}

function invalid(message: string): InsituError {
  return new InsituError("request.invalid", message);
}
