/** Container images made on the spot, as OCI image layouts: the host's static busybox and what a test wants besides. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const BUSYBOX = ["/bin/busybox", "/usr/bin/busybox"].find((path) => existsSync(path));
const ARCHITECTURE = process.arch === "arm64" ? "arm64" : "amd64";

/** Undefined where images can be made and unpacked; CI sets INSITU_REQUIRE_IMAGES, so that it is not passed over there. */
export const NO_IMAGES = whyNot();
if (NO_IMAGES !== undefined) {
  if (process.env.INSITU_REQUIRE_IMAGES === "1")
    throw new Error(`${NO_IMAGES}; INSITU_REQUIRE_IMAGES is set`);
  process.stderr.write(`SKIPPED: tests of container images: ${NO_IMAGES}\n`);
}

function whyNot(): string | undefined {
  if (BUSYBOX === undefined) return "busybox is not installed (apt-get install busybox-static)";
  if (!execFileSync("sh", ["-c", "command -v umoci || true"]).length)
    return "umoci is not installed (apt-get install umoci)";
  const needs = execFileSync("sh", ["-c", `ldd ${BUSYBOX} 2>&1 || true`]).toString("utf8");
  return /not a dynamic/.test(needs) ? undefined : "busybox is not static (apt-get install busybox-static)";
}

export interface LayoutRequest {
  /** Text by path; `mode` as that of the file. */
  files?: Readonly<Record<string, string | { text: string; mode: number }>>;
  links?: Readonly<Record<string, string>>;
  directories?: readonly string[];
  /** Shell, run in the root of the layer, for what has no other word here. */
  prepare?: string;
  /** Further layers: each an archive of these files. */
  layers?: readonly Readonly<Record<string, string>>[];
  busybox?: boolean;
  config?: object;
  architecture?: string;
  /** Wrapped in an index for platforms, as registries serve images. */
  index?: boolean;
}

export interface MadeLayout {
  path: string;
  /** Of the manifest. */
  digest: string;
  index: string | undefined;
}

export function makeLayout(path: string, request: LayoutRequest = {}): MadeLayout {
  const { config = {}, architecture = ARCHITECTURE, layers = [], index = false } = request;
  mkdirSync(join(path, "blobs", "sha256"), { recursive: true });
  const put = (bytes: Buffer | string, mediaType: string) => {
    const digest = createHash("sha256").update(bytes).digest("hex");
    writeFileSync(join(path, "blobs", "sha256", digest), bytes);
    return { mediaType, digest: `sha256:${digest}`, size: Buffer.byteLength(bytes) };
  };
  const tars = [baseLayer(request), ...layers.map((files) => layerOf((root) => putFiles(root, files)))];
  const manifest = put(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      config: put(
        JSON.stringify({
          architecture,
          os: "linux",
          config,
          rootfs: {
            type: "layers",
            diff_ids: tars.map((tar) => `sha256:${createHash("sha256").update(tar).digest("hex")}`),
          },
        }),
        "application/vnd.oci.image.config.v1+json",
      ),
      layers: tars.map((tar) => put(tar, "application/vnd.oci.image.layer.v1.tar")),
    }),
    "application/vnd.oci.image.manifest.v1+json",
  );
  const platforms = index
    ? put(
        JSON.stringify({
          schemaVersion: 2,
          manifests: [
            { ...manifest, platform: { architecture, os: "linux" } },
            { ...manifest, platform: { architecture: "s390x", os: "linux" } },
          ],
        }),
        "application/vnd.oci.image.index.v1+json",
      )
    : undefined;
  writeFileSync(join(path, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  writeFileSync(
    join(path, "index.json"),
    JSON.stringify({ schemaVersion: 2, manifests: [platforms ?? manifest] }),
  );
  return { path, digest: manifest.digest, index: platforms?.digest };
}

function baseLayer({
  files = {},
  links = {},
  directories = [],
  prepare,
  busybox = true,
}: LayoutRequest): Buffer {
  return layerOf((root) => {
    if (busybox) {
      mkdirSync(join(root, "bin"));
      copyFileSync(BUSYBOX!, join(root, "bin", "busybox"));
      chmodSync(join(root, "bin", "busybox"), 0o755);
      for (const name of APPLETS) symlinkSync("busybox", join(root, "bin", name));
    }
    for (const directory of directories) mkdirSync(join(root, directory), { recursive: true });
    putFiles(root, files);
    for (const [link, target] of Object.entries(links)) {
      mkdirSync(dirname(join(root, link)), { recursive: true });
      symlinkSync(target, join(root, link));
    }
    if (prepare !== undefined) execFileSync("sh", ["-ec", prepare], { cwd: root });
  });
}

const APPLETS = [
  ...[
    "sh",
    "cat",
    "ls",
    "id",
    "echo",
    "env",
    "touch",
    "mkdir",
    "mount",
    "wget",
    "sleep",
    "grep",
    "stat",
    "kill",
  ],
  ...["setsid", "hostname", "find", "dd", "unshare", "mknod", "head", "ps", "nc", "chroot"],
];

function putFiles(root: string, files: NonNullable<LayoutRequest["files"]>): void {
  for (const [path, content] of Object.entries(files)) {
    const { text, mode } = typeof content === "string" ? { text: content, mode: 0o644 } : content;
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
    chmodSync(join(root, path), mode);
  }
}

function layerOf(fill: (root: string) => void): Buffer {
  const root = mkdtempSync(join(tmpdir(), "insitu-layer-"));
  try {
    chmodSync(root, 0o755);
    fill(root);
    return execFileSync(
      "tar",
      [
        "--create",
        "--directory",
        root,
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        ".",
      ],
      {
        maxBuffer: 64 * 1024 * 1024,
      },
    );
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}
