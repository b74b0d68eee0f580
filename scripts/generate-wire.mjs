/**
 * Generates shared/wire/gen from proto/: the types, and the descriptor that the programs carry in their bundle.
 *
 *   node scripts/generate-wire.mjs [--check]      --check: changes nothing, exits 1 when gen/ is stale
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const GENERATED = join(ROOT, "shared/wire/gen");
const PROTO = "insitu/agent/v1/agent.proto";
/** The loader's options in shared/wire/grpc.ts must say the same. */
const SHAPE = ["--longs=String", "--enums=String", "--defaults", "--oneofs"];

function generate(directory) {
  execFileSync(
    process.execPath,
    [
      join(ROOT, "node_modules/@grpc/proto-loader/build/bin/proto-loader-gen-types.js"),
      ...SHAPE,
      "--grpcLib=@grpc/grpc-js",
      "--importFileExtension=.ts",
      "-I",
      "proto",
      "-O",
      directory,
      PROTO,
    ],
    { cwd: ROOT, stdio: ["ignore", "ignore", "inherit"] },
  );
  const descriptor = protobuf.loadSync(join(ROOT, "proto", PROTO)).toJSON();
  writeFileSync(
    join(directory, "descriptor.ts"),
    `// Original file: proto/${PROTO}\n\nexport const DESCRIPTOR = ${JSON.stringify(descriptor, null, 2)};\n`,
  );
}

function contents(directory) {
  const files = new Map();
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath ?? entry.path, entry.name);
    files.set(relative(directory, path), readFileSync(path, "utf8"));
  }
  return files;
}

if (process.argv.includes("--check")) {
  const fresh = mkdtempSync(join(tmpdir(), "insitu-wire-"));
  try {
    generate(fresh);
    const [wanted, found] = [contents(fresh), contents(GENERATED)];
    const stale = [...new Set([...wanted.keys(), ...found.keys()])].filter(
      (name) => wanted.get(name) !== found.get(name),
    );
    if (stale.length > 0) {
      console.error(`shared/wire/gen is stale (${stale.join(", ")}): run node scripts/generate-wire.mjs`);
      process.exitCode = 1;
    }
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
} else {
  rmSync(GENERATED, { recursive: true, force: true });
  mkdirSync(GENERATED, { recursive: true });
  generate(GENERATED);
}
