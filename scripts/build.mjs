/**
 * Bundles the two programs into dist/ when a source is newer than the last bundle. Says nothing when all is fresh.
 *
 *   node scripts/build.mjs [--force]
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { builtinModules } from "node:module";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const DIST = join(ROOT, "dist");
const STAMP = join(DIST, ".stamp");

/** Entry point → name in dist/. */
const PROGRAMS = {
  "control-plane/cli/main.ts": "insitu",
  "agent/main.ts": "insitu-agent",
  "agent/supervisor/main.ts": "insitu-supervisor",
  "agent/policy/evaluator.ts": "insitu-evaluator",
};
/** In one file each, whatever they share with the others: they are carried to where nothing else is. */
const ALONE = { "control-plane/cli/verify/main.ts": "insitu-verify" };
const SOURCES = [
  "shared",
  "control-plane",
  "agent",
  "proto",
  "scripts/find-nats-server.mjs",
  "scripts/build.mjs",
];
/** Native addons, WebAssembly beside its loader, and what finds files of its own by its place on disk. */
const EXTERNAL = ["lmdb", "@cedar-policy/cedar-wasm", "esbuild", "pino"];

/** @returns {Promise<boolean>} whether anything was built */
export async function build({ force = false, say = console.log } = {}) {
  const entries = Object.entries(PROGRAMS).filter(([source]) => existsSync(join(ROOT, source)));
  if (entries.length === 0) return false;
  const fingerprint = fingerprintOf(SOURCES);
  if (!force && isFresh(entries, fingerprint)) return false;

  const { build: bundle } = await import("esbuild");
  const staging = `${DIST}.${process.pid}`;
  try {
    const common = {
      absWorkingDir: ROOT,
      outdir: staging,
      bundle: true,
      format: "esm",
      platform: "node",
      target: "node20",
      sourcemap: true,
      legalComments: "linked",
      logLevel: "warning",
      external: [...EXTERNAL, ...builtinModules.map((name) => `node:${name}`)],
      loader: { ".proto": "text", ".cedar": "text" },
      // CommonJS packages inside the bundle call `require` of built-ins; an ES module has none of its own.
      banner: {
        js: 'import { createRequire as __insituRequire } from "node:module"; const require = __insituRequire(import.meta.url);',
      },
    };
    const points = (list) => list.map(([source, name]) => ({ in: source, out: name }));
    await bundle({
      ...common,
      entryPoints: points(entries),
      splitting: true,
      chunkNames: "chunks/[name]-[hash]",
    });
    await bundle({ ...common, entryPoints: points(Object.entries(ALONE)), sourcemap: false, external: [] });
    writeFileSync(join(staging, ".stamp"), fingerprint);
    // Swapped whole: a program that starts meanwhile finds the old bundle or the new one, never a mixture.
    const old = `${DIST}.old.${process.pid}`;
    if (existsSync(DIST)) renameSync(DIST, old);
    renameSync(staging, DIST);
    rmSync(old, { recursive: true, force: true });
  } finally {
    rmSync(staging, { recursive: true, force: true });
  }
  say(`Built ${[...entries, ...Object.entries(ALONE)].map(([, name]) => `dist/${name}.js`).join(" and ")}`);
  return true;
}

function isFresh(entries, fingerprint) {
  return (
    entries.every(([, name]) => existsSync(join(DIST, `${name}.js`))) &&
    existsSync(STAMP) &&
    readFileSync(STAMP, "utf8") === fingerprint
  );
}

/** Of names, sizes and times of change: it also sees a file that went away or came from an older checkout. */
function fingerprintOf(sources) {
  const hash = createHash("sha256");
  const add = (path) => {
    const info = statSync(join(ROOT, path));
    if (info.isDirectory()) {
      for (const name of readdirSync(join(ROOT, path)).sort()) add(join(path, name));
    } else if (!/\.test\.ts$/.test(path)) {
      hash.update(`${path}\0${info.size}\0${info.mtimeMs}\n`);
    }
  };
  for (const source of sources) if (existsSync(join(ROOT, source))) add(source);
  return hash.digest("hex");
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await build({ force: process.argv.includes("--force") });
}
